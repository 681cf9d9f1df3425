"""Conditions that are joined to x_t, held against the data before a start."""

import copy

import numpy as np
import pytest

from ldm.cli.preflight import preflight
from ldm.config import ConfigError, instantiate_from_config
from tests.cli.runs import unconditional


def by_map(classes=25, stages=1, data_labels=25, **data):
    """A model on maps, and the data of a start."""
    config = unconditional()
    params = config["model"]["params"]
    params["first_stage_config"]["params"]["ckpt_path"] = None
    params["cond_stage_key"] = "segmentation"
    params["cond_stage_config"] = {
        "target": "ldm.conditioning.spatial.SpatialRescaler",
        "params": {"n_stages": stages, "in_channels": classes, "out_channels": 3},
    }
    params["unet_config"]["params"]["in_channels"] = 7
    if data_labels:
        params = {"num_labels": data_labels, "source": config["data"]["params"]["train"]}
        train = {"target": "ldm.data.maps.SemanticMaps", "params": params}
        config["data"]["params"]["train"] = train
    config["data"]["params"] |= data
    return config


def start(config):
    data = instantiate_from_config(config["data"])
    data.setup()
    preflight(config["model"], data)


@pytest.mark.parametrize("labels", [None, 25])
def test_maps_that_fit_start(labels):
    start(by_map(classes=25, data_labels=labels))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            by_map(classes=24),
            r"in_channels: 24, but 'segmentation' of data\.params\.train has labels",
        ),
        (by_map(classes=1, data_labels=None), "in_channels: 1, but 'segmentation' of .* 0 to"),
        (by_map(stages=2), r"SpatialRescaler encodes, becomes 4 x 4 cells, .* diffused has 8 x 8"),
    ],
)
def test_maps_that_do_not_fit_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        start(config)


def by_boxes(size, classes=24, in_channels=10):
    """A model on painted boxes, beside a latent of 4."""
    config = by_map(data_labels=None)
    params = config["model"]["params"]
    params["cond_stage_key"] = "layout"
    params["cond_stage_config"] = {
        "target": "ldm.conditioning.boxes.BoxMap",
        "params": {"n_embed": 6, "num_classes": classes, "size": size},
    }
    params["unet_config"]["params"]["in_channels"] = in_channels
    sets = config["data"]["params"]
    for name in ("train", "validation"):
        params = {"source": sets[name]}
        sets[name] = {"target": "ldm.data.layouts.Layouts", "params": params}
    return config


def test_painted_boxes_that_fit_start():
    start(by_boxes(size=8))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (by_boxes(size=4), "BoxMap encodes, becomes 4 x 4 cells, .* diffused has 8 x 8"),
        (by_boxes(size=8, in_channels=9), r"in_channels: 9, .* latents of 4 channels \+ 6"),
        (by_boxes(size=8, classes=23), "num_classes: 23, but the data has 24 classes"),
    ],
)
def test_painted_boxes_that_do_not_fit_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        start(config)


def by_two_encoders(in_channels):
    """Two encoders of one entry, of 25 channels each, beside a latent of 4."""
    config = by_map()
    params = config["model"]["params"]
    tau = params["cond_stage_config"]
    tau["params"]["key"] = params.pop("cond_stage_key")
    del tau["params"]["out_channels"]
    params["cond_stage_config"] = [tau, copy.deepcopy(tau)]
    params["unet_config"]["params"]["in_channels"] = in_channels
    return config


def on_itself(in_channels):
    """A model that is told the latent, of 4 channels, of the entry that it diffuses."""
    config = unconditional()
    params = config["model"]["params"]
    params["first_stage_config"]["params"]["ckpt_path"] = None
    params |= {"cond_stage_config": "__is_first_stage__", "concat_mode": True}
    params["cond_stage_key"] = "image"
    params["unet_config"]["params"]["in_channels"] = in_channels
    return config


@pytest.mark.parametrize(
    ("config", "expected", "joined"),
    [
        (by_two_encoders, 54, r"4 \(image\) \+ 25 \(segmentation\) \+ 25 \(segmentation\)"),
        (on_itself, 8, r"4 \(image\) \+ 4 \(image\)"),
    ],
)
def test_an_entry_that_is_read_more_than_once_counts_each_time(config, expected, joined):
    start(config(expected))
    with pytest.raises(ConfigError, match=rf"in_channels: 7, but .* gives {joined}"):
        start(config(7))


class Channels:
    """Images with one-hot channels."""

    def __init__(self, channels):
        self.channels = channels

    def __len__(self):
        return 2

    def __getitem__(self, index):
        one_hot = np.zeros((16, 16, self.channels), np.float32)
        return {"image": np.zeros((16, 16, 3), np.uint8), "segmentation": one_hot}


@pytest.mark.parametrize("channels", [25, 24])
def test_one_hot_channels_are_as_many_as_the_encoder_takes(channels):
    train = {"target": f"{__name__}.Channels", "params": {"channels": channels}}
    config = by_map(data_labels=None, train=train, validation=None)
    if channels == 25:
        start(config)
        return
    with pytest.raises(ConfigError, match=r"shape \(16, 16, 24\), which .* does not fit it"):
        start(config)
