"""Low-resolution images that a model is told, held against its latents before the start."""

import pytest

from ldm.cli.preflight import preflight
from ldm.config import ConfigError, instantiate_from_config, load, to_plain
from tests.cli.runs import ROOT

RESCALER = "ldm.conditioning.spatial.SpatialRescaler"


def start(factor, *, stages=None, multiplier=2):
    """Check the shipped model of super-resolution with data of another factor."""
    config = to_plain(load([ROOT / "configs/tiny/ldm-superres.yaml"]))
    if stages is not None:
        params = {"n_stages": stages, "multiplier": multiplier}
        config["model"]["params"]["cond_stage_config"] = {"target": RESCALER, "params": params}
    for split in ("train", "validation"):
        config["data"]["params"][split]["params"]["factor"] = factor
    data = instantiate_from_config(config["data"])
    data.setup()
    preflight(config["model"], data)


@pytest.mark.parametrize(
    ("factor", "encoder"),
    [(2, {}), (4, {"stages": 1}), (8, {"stages": 2}), (1, {"stages": 1, "multiplier": 0.5})],
)
def test_a_low_resolution_image_may_have_or_be_brought_to_the_latents_size(factor, encoder):
    start(factor, **encoder)


@pytest.mark.parametrize(("factor", "encoder", "joined"), [(4, {}, 8), (2, {"stages": 1}, 32)])
def test_a_low_resolution_image_of_another_size_than_the_latents_is_refused(
    factor, encoder, joined
):
    side = 32 // factor
    given = rf"train: 'LR_image' of shape \({side}, {side}, 3\), which \w+ encodes, "
    with pytest.raises(ConfigError, match=rf"{given}becomes {joined} x .* has 16 x 16"):
        start(factor, **encoder)
