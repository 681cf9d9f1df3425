"""Encoders that do not know all classes of the data, named by their place."""

import copy

import pytest
import torch

from ldm.cli.preflight_encoders import check_classes, encoder_path
from ldm.conditioning.hybrid import HybridConditioner
from ldm.conditioning.labels import ClassEmbedder
from ldm.conditioning.layout import LayoutEmbedder
from ldm.conditioning.spatial import SpatialRescaler
from ldm.config import ConfigError
from tests.cli.test_preflight_concatenated import by_map, start
from tests.models.diffusion_models import latent, unet

PLACE = "model.params.cond_stage_config"


def labels(n_classes=9):
    return ClassEmbedder(8, n_classes, key="class_label")


def layouts(num_classes=9):
    return LayoutEmbedder(8, 1, num_classes, vocab_size=64, key="layout")


def told(tau, **options):
    network = unet(use_spatial_transformer=True, context_dim=8, **options)
    return latent(cond_stage_config=tau, unet_config=network)


@pytest.mark.parametrize(
    ("tau", "message"),
    [
        (labels(5), f"{PLACE}.params.n_classes: 5, but the data has 9 classes"),
        (layouts(5), f"{PLACE}.params.num_classes: 5, but the data has 9 classes"),
        ([labels(5)], f"{PLACE}.0.params.n_classes: 5, but"),
        ([labels(9), layouts(5)], f"{PLACE}.1.params.num_classes: 5, but"),
        ([layouts(9), layouts(9), labels(5)], f"{PLACE}.2.params.n_classes: 5, but"),
    ],
)
def test_an_encoder_of_too_few_classes_is_named_by_its_place(tau, message):
    model = told(copy.deepcopy(tau))
    check_classes(model, 5)
    check_classes(model, None)
    with pytest.raises(ConfigError) as error:
        check_classes(model, 9)
    assert str(error.value).startswith(message)


def test_the_two_of_a_published_pair_have_places_of_their_own():
    rescaler = SpatialRescaler(0, in_channels=3, out_channels=2, key="image")
    model = told(HybridConditioner(rescaler, layouts(5)), in_channels=5)
    places = [encoder_path(model, part) for part in model.conditioner.parts]
    assert places == [f"{PLACE}.params.{name}_config" for name in ("c_concat", "c_crossattn")]
    with pytest.raises(ConfigError, match=r"c_crossattn_config\.params\.num_classes: 5, but"):
        check_classes(model, 9)


def test_a_map_of_more_labels_than_one_of_two_encoders_knows_is_named_by_its_place():
    config = by_map(classes=25)
    params = config["model"]["params"]
    tau = params["cond_stage_config"]
    tau["params"]["key"] = params.pop("cond_stage_key")
    params["cond_stage_config"] = [tau, copy.deepcopy(tau)]
    params["cond_stage_config"][1]["params"]["in_channels"] = 24
    params["unet_config"]["params"]["in_channels"] = 10
    with pytest.raises(ConfigError, match=r"cond_stage_config\.1\.params\.in_channels: 24, but"):
        start(config)


def test_a_model_without_a_condition_has_no_classes_to_check():
    check_classes(torch.nn.Identity(), 9)
