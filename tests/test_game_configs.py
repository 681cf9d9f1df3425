"""First stages and data on which the discriminator's effect is shown, in any combination."""

import pytest
import torch

from ldm.config import check, instantiate_model, load, model_block
from tests.shipped_configs import ROOT

PARTS = ROOT / "configs" / "game"
MODELS = sorted((PARTS / "kinds").glob("*.yaml"))
PLACES = [f"data.params.{split}.params.root=." for split in ("train", "validation")]


@pytest.mark.parametrize("data", ["photographs", "shapes"])
@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_model_and_data_make_a_training(model, data, monkeypatch):
    monkeypatch.chdir(ROOT)
    overrides = PLACES if data == "photographs" else []
    config = load([PARTS / "training.yaml", PARTS / f"{data}.yaml", model], overrides)
    check(config)
    side = config.data.params.train.params.size
    assert side == config.model.params.ddconfig.resolution
    with torch.device("meta"):
        first_stage = instantiate_model(model_block(config))
        made = first_stage.autoencode(torch.empty(2, 3, side, side), None)
    assert first_stage.downsample_factor == 8
    assert made.reconstruction.shape == (2, 3, side, side)
    # the game begins within the training, and validation sees the images before it does
    loss, trainer = first_stage.loss, config.lightning.trainer
    assert loss.disc_start % trainer.val_check_interval == 0
    assert loss.disc_start + loss.rules["disc_warmup"] < trainer.max_steps


def test_both_kinds_of_first_stage_are_there():
    assert [path.stem for path in MODELS] == ["kl-f8", "vq-f8"]
