"""Names, shapes and types of every tensor in the published models, without the tensors."""

import gzip
import json
from pathlib import Path

import torch

ROOT = Path(__file__).parent / "state_dicts"

NAMES = sorted(path.name.removesuffix(".json.gz") for path in ROOT.glob("*.json.gz"))


def listing(name):
    """A listing: config, top_level_class, components, state_dict {key: [shape, dtype]}, buffers."""
    return json.loads(gzip.decompress((ROOT / f"{name}.json.gz").read_bytes()))


def meta_state(name):
    """The state dict of a published model on the meta device: it has shapes, and no values."""
    return {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for key, (shape, dtype) in listing(name)["state_dict"].items()
    }
