"""Encoders that do not know all classes of the data, named by their place."""

import copy

import numpy as np
import pytest
import torch

from ldm.cli.preflight_encoders import check_classes, encoder_path
from ldm.conditioning.boxes import BoxMap
from ldm.conditioning.hybrid import HybridConditioner
from ldm.conditioning.labels import ClassEmbedder
from ldm.conditioning.layout import LayoutEmbedder
from ldm.conditioning.spatial import SpatialRescaler
from ldm.config import ConfigError
from tests.cli.runs import second_stage
from tests.cli.test_preflight_concatenated import by_map, start
from tests.models.diffusion_models import latent, unet

PLACE = "model.params.cond_stage_config"
LABELS = "ldm.conditioning.labels"


def labels(n_classes=9):
    return ClassEmbedder(8, n_classes, key="class_label")


def layouts(num_classes=9):
    return LayoutEmbedder(8, 1, num_classes, vocab_size=64, key="layout")


def boxes(num_classes):
    return BoxMap(2, num_classes, 4, key="layout")


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
        ([layouts(9), boxes(5)], f"{PLACE}.1.params.num_classes: 5, but"),
        ([layouts(9), layouts(9), labels(5)], f"{PLACE}.2.params.n_classes: 5, but"),
    ],
)
def test_an_encoder_of_too_few_classes_is_named_by_its_place(tau, message):
    is_mapped = isinstance(tau, list) and isinstance(tau[-1], BoxMap)
    model = told(copy.deepcopy(tau), in_channels=5 if is_mapped else 3)
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


# labels and vectors that go to the network itself, and an example of the data


def by_label(rows=25, drop_rate=0.1, **tau):
    """A start of a model whose network has a table of `rows` classes; the data has 24."""
    config = second_stage()
    params = config["model"]["params"]
    for key in ("use_spatial_transformer", "context_dim"):
        params["unet_config"]["params"].pop(key)
    params["unet_config"]["params"]["num_classes"] = rows
    labels = {"n_classes": rows, "key": "class_label", "drop_rate": drop_rate} | tau
    params["cond_stage_config"] = {"target": f"{LABELS}.ClassLabels", "params": labels}
    params |= {"conditioning_key": "adm", "cond_stage_trainable": False}
    return config


def published(rows):
    """The same as the 2022 release says it: nothing but a key and a table."""
    config = by_label(rows)
    config["model"]["params"]["cond_stage_config"] = {"target": "torch.nn.Identity"}
    return config


def by_vector(width=3, **unet):
    """A start of a model that is told a vector of 3 numbers, as it is."""
    config = published(9)
    params = config["model"]["params"]
    del params["unet_config"]["params"]["num_classes"]
    params["unet_config"]["params"] |= {"adm_in_channels": width} | unet
    config["data"]["params"] |= {"train": {"target": f"{__name__}.Vectors"}, "validation": None}
    params["cond_stage_key"] = "vector"
    return config


class Vectors:
    """Images with a vector, and labels without names of classes."""

    label = 2

    def __len__(self):
        return 2

    def __getitem__(self, index):
        vector = np.zeros(3, np.float32)
        image = np.zeros((16, 16, 3), np.uint8)
        return {"image": image, "vector": vector, "class_label": self.label}


class Fractions(Vectors):
    label = 0.5


def unnamed(config, data="Vectors"):
    config["data"]["params"] |= {"train": {"target": f"{__name__}.{data}"}, "validation": None}
    return config


@pytest.mark.parametrize(
    "config",
    [by_label(25), by_label(24, 0.0), published(24), by_vector(), unnamed(by_label(4))],
)
def test_labels_and_vectors_that_fit_start(config):
    start(config)


ROWS = f"{PLACE}.params.n_classes"
TABLE = "model.params.unet_config.params.num_classes"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            by_label(24),
            f"{ROWS}: 24, but the data has 24 classes (data.params.train) and drop_rate needs one "
            "more row; expected at least 25",
        ),
        (
            published(23),
            f"{TABLE}: 23, but the data has 24 classes (data.params.train); expected at least 24",
        ),
        (by_label(25, n_classes=26), f"{TABLE}: 25, but labels are those of 26 classes (cond_"),
        (
            unnamed(by_label(3)),
            f"{ROWS}: 3, but data.params.train: 'class_label', which ClassLabels reads, is 2; "
            "expected labels 0 to 1 and the null class",
        ),
        (
            unnamed(by_label(4), "Fractions"),
            "data.params.train: 'class_label', which ClassLabels reads, is of type float; expected "
            "an integer class label",
        ),
        (
            by_vector(4),
            "model.params.unet_config.params.adm_in_channels: 4, but data.params.train: 'vector' "
            f"of shape (3,) and float32, which FunctionEmbedder encodes ({PLACE}), becomes 3 wide; "
            "expected 3",
        ),
        (
            by_vector(3, adm_in_channels=None, num_classes=9),
            "data.params.train: 'vector', which ClassLabels reads, is of shape (3,) and float32",
        ),
    ],
)
def test_labels_and_vectors_that_do_not_fit_are_named(config, message):
    with pytest.raises(ConfigError) as error:
        start(config)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("key", "changes", "message"),
    [
        (
            "class_label",
            {"conditioning_key": "crossattn"},
            r"'class_label' of type int, which FunctionEmbedder encodes .*, becomes \(\); expected "
            r"tokens \(N, D\), for 'crossattn'",
        ),
        (
            "caption",
            {"conditioning_key": "crossattn"},
            "'caption' of type str, which FunctionEmbedder encodes .* is no array",
        ),
    ],
)
def test_an_entry_that_is_neither_tokens_nor_vectors_is_named(key, changes, message):
    config = second_stage()
    params = config["model"]["params"]
    params["cond_stage_config"] = {"target": "torch.nn.Identity"}
    params |= {"cond_stage_key": key, "cond_stage_trainable": False} | changes
    with pytest.raises(ConfigError, match=message):
        start(config)


class Near(Vectors):
    """Images with the embeddings of two neighbours."""

    def __getitem__(self, index):
        return {**super().__getitem__(index), "neighbours": np.zeros((2, 6), np.float32)}


def test_neighbours_of_another_width_are_named_before_the_first_step():
    config = unnamed(second_stage(), "Near")
    params = config["model"]["params"]
    del params["cond_stage_key"]
    tau = {"target": "ldm.conditioning.retrieval.NeighbourEmbedder", "params": {"embed_dim": 8}}
    params |= {"cond_stage_config": tau, "cond_stage_trainable": False}
    params["unet_config"]["params"]["context_dim"] = 8
    message = r"'neighbours' of shape \(2, 6\) .*NeighbourEmbedder.*expected \(B, k, 8\)"
    with pytest.raises(ConfigError, match=message):
        start(config)
