"""Every published list of names and shapes loads strictly into our model, and back out of it."""

import pytest
import torch

from ldm.config import instantiate_from_config, locate
from ldm.diffusion.posterior import published_buffers
from ldm.io.checkpoint import load_into
from ldm.io.compvis import from_published, to_published
from tests.reference_configs import published_config
from tests.reference_state_dicts import NAMES, listing, meta_state


def meta_model(name):
    """The model of a published configuration on the meta device: shapes without memory."""
    config = published_config(name)["model"]
    for params in (
        config["params"],
        config["params"].get("first_stage_config", {}).get("params", {}),
    ):
        params.pop("ckpt_path", None)  # none of those files is here, and some are no checkpoints
    with torch.device("meta"):
        return instantiate_from_config(config, path="model")


def test_there_are_thirty_three_lists():
    assert len(NAMES) == 33


@pytest.mark.parametrize("name", NAMES)
def test_a_published_list_loads_strictly_and_is_written_again(name):
    model, published = meta_model(name), meta_state(name)
    assert type(model) is locate(listing(name)["top_level_class"])
    report = load_into(model, from_published(published, model.state_dict()), source=name)
    assert report.is_exact
    assert report.matched == len(model.state_dict())
    if not name.startswith(("first_stage", "train_autoencoder")):
        tables = published_buffers(model.schedule)
        marker = published_config(name)["model"]["params"]["cond_stage_config"]
        twice = marker == "__is_first_stage__"
        written = to_published(model.state_dict(), tables=tables, first_stage_conditions=twice)
        assert described(written) == described(published)


def described(state):
    return {key: (tuple(value.shape), value.dtype) for key, value in state.items()}
