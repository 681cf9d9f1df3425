"""Kinds of quantizers, each a few lines over the autoencoder of the comparison, on either data."""

import pytest
import torch

from ldm.config import check, instantiate_model, load, model_block
from ldm.nets.quantizer import Quantizer
from tests.shipped_configs import ROOT

PARTS = ROOT / "configs" / "quantizers"
KINDS = sorted((PARTS / "kinds").glob("*.yaml"))
PLACES = [f"data.params.{split}.params.root=." for split in ("train", "validation")]


@pytest.mark.parametrize("data", ["photographs", "shapes"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda path: path.stem)
@pytest.mark.parametrize("codes", [1024, 8192])
def test_kind_makes_a_model_of_either_size(data, kind, codes, monkeypatch):
    monkeypatch.chdir(ROOT)
    overrides = PLACES if data == "photographs" else []
    if not kind.stem.startswith("fsq"):  # has as many codes as its levels make
        overrides = [*overrides, f"model.params.n_embed={codes}"]
    config = load([PARTS / "autoencoder.yaml", PARTS / f"{data}.yaml", kind], overrides)
    check(config)
    with torch.device("meta"):
        model = instantiate_model(model_block(config))
        assert isinstance(model.quantize, Quantizer)
        codes = codes if "n_embed" in str(overrides) else int(kind.stem.partition("-")[2])
        assert model.quantize.num_codes == codes
        made = model.autoencode(torch.empty(2, 3, 32, 32), None)
    assert made.reconstruction.shape == (2, 3, 32, 32)
    assert made.codes.numel() == 2 * 256
