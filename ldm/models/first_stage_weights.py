"""Weights of a first stage out of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ldm.io.checkpoint import load_into, load_state
from ldm.nets.quantizer import Quantizer

__all__ = ["load_first_stage"]


def load_first_stage(
    model: nn.Module, loss: nn.Module, path: str | Path, *, ignore_keys: Sequence[str] = ()
) -> bool:
    """Give a model the networks' weights of a checkpoint, and what fits of its loss, if anything.

    A codebook may be of a quantizer without counters that this one has, see
    `Quantizer.completed`. Names that begin with one of `ignore_keys` are as if they were not there.

    Returns whether there was anything for the loss.
    Raises ConfigError when the file is none, or is of another model.
    """
    state = load_state(path)
    state = {key: state[key] for key in state if not key.startswith(tuple(ignore_keys))}
    quantizer = getattr(model, "quantize", None)
    if isinstance(quantizer, Quantizer):
        state = quantizer.completed(state, "quantize.")
    ignored = [*ignore_keys, "loss.", "model_ema.", "colorize"]
    load_into(model, state, ignore=ignored, source=str(path))
    own = loss.state_dict()
    given = {
        name.removeprefix("loss."): value
        for name, value in state.items()
        if name.startswith("loss.")
    }
    fitting = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    is_meta = any(value.is_meta for value in own.values())
    loss.load_state_dict(fitting, strict=False, assign=is_meta)
    return bool(fitting)
