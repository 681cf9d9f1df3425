"""A batch to a condition: routes, joints, and what is dropped for classifier-free guidance."""

from typing import get_args

import pytest
import torch
from torch import nn

from ldm.conditioning.base import Embedder, FunctionEmbedder
from ldm.conditioning.conditioner import Conditioner, Part
from ldm.conditioning.hybrid import HybridConditioner
from ldm.conditioning.labels import ClassEmbedder
from ldm.conditioning.spatial import Method, SpatialRescaler
from ldm.config import ConfigError, check
from ldm.diffusion.draws import KeyedDraws

MAP = torch.rand(2, 8, 8, 3) * 2 - 1
BATCH = {"label": torch.tensor([1, 2]), "other": torch.tensor([0, 3]), "map": MAP}


def part(embedder, key):
    return Part(embedder, key, embedder.slot)


def two_labels(**options):
    return Conditioner(
        (
            part(ClassEmbedder(4, n_classes=5, **options), "label"),
            part(ClassEmbedder(4, n_classes=6), "other"),
        )
    )


def test_without_encoders_there_is_no_condition():
    assert Conditioner()(BATCH) is None
    assert Conditioner().null(BATCH) is None


def test_tokens_of_several_encoders_follow_each_other():
    conditioner = two_labels()
    cond = conditioner(BATCH)
    assert cond.slots().keys() == {"crossattn"}
    first, second = (each.embedder for each in conditioner.parts)
    assert torch.equal(cond.crossattn[:, 0], first.embedding.weight[[1, 2]])
    assert torch.equal(cond.crossattn[:, 1], second.embedding.weight[[0, 3]])


def test_each_encoder_fills_its_own_slot():
    conditioner = Conditioner((part(SpatialRescaler(), "map"), part(ClassEmbedder(4, 5), "label")))
    cond = conditioner(BATCH)
    assert cond.concat.shape == (2, 3, 4, 4)
    assert cond.crossattn.shape == (2, 1, 4)


def test_an_image_condition_arrives_with_channels_first():
    conditioner = Conditioner((Part(FunctionEmbedder(nn.Identity()), "map", "concat"),))
    assert torch.equal(conditioner(BATCH).concat, MAP.permute(0, 3, 1, 2))


def test_an_entry_that_is_not_in_the_batch_is_named():
    with pytest.raises(KeyError, match=r"'label' is not in the batch, which holds \['map'\]"):
        two_labels()({"map": MAP})


def test_a_function_embedder_owns_no_parameters():
    assert list(FunctionEmbedder(nn.Linear(2, 2)).parameters()) == []


def test_the_published_pair_returns_one_list_per_slot():
    pair = HybridConditioner(SpatialRescaler(), nn.Identity())
    out = pair(MAP.permute(0, 3, 1, 2), BATCH["label"])
    assert out["c_concat"][0].shape == (2, 3, 4, 4)
    assert torch.equal(out["c_crossattn"][0], BATCH["label"])


@pytest.mark.parametrize("method", get_args(Method))
def test_every_method_rescales_a_map(method):
    assert SpatialRescaler(method=method)(MAP.permute(0, 3, 1, 2)).shape == (2, 3, 4, 4)


@pytest.mark.parametrize("method", ["linear", "trilinear"])
def test_a_method_for_other_than_maps_is_refused(method):
    config = {
        "target": "ldm.conditioning.spatial.SpatialRescaler",
        "params": {"method": method},
    }
    message = rf"model\.params\.method: expected 'nearest' or .*, got '{method}'"
    with pytest.raises(ConfigError, match=message):
        check({"model": config})


# dropout


def dropped_share(drop_rate, count=20_000):
    """Share of examples whose label is the null label in training."""
    embedder = ClassEmbedder(1, n_classes=2, drop_rate=drop_rate)
    nn.init.constant_(embedder.embedding.weight, 0)
    nn.init.constant_(embedder.embedding.weight[1], 1)
    draws = KeyedDraws(range(count), seed=3)
    labels = torch.zeros(count, dtype=torch.long)
    return (
        Conditioner((part(embedder, "label"),))({"label": labels}, draws=draws)
        .crossattn.detach()
        .mean()
    )


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_labels_are_dropped_at_the_rate_that_was_asked_for(rate):
    four_standard_errors = 4 * (rate * (1 - rate) / 20_000) ** 0.5
    assert abs(float(dropped_share(rate)) - rate) <= four_standard_errors


def test_nothing_is_dropped_without_draws():
    conditioner = two_labels(drop_rate=0.99)
    first = conditioner.parts[0].embedder
    assert torch.equal(conditioner(BATCH).crossattn[:, 0], first.embedding.weight[[1, 2]])


def test_what_is_dropped_depends_on_the_example_and_not_on_its_batch():
    conditioner = Conditioner((part(ClassEmbedder(3, 5, drop_rate=0.5), "label"),))
    labels = torch.arange(16) % 4
    whole = conditioner({"label": labels}, draws=KeyedDraws(range(16), seed=1)).crossattn
    for start in (0, 8):
        keys = range(start, start + 8)
        half = conditioner({"label": labels[start : start + 8]}, draws=KeyedDraws(keys, seed=1))
        assert torch.equal(half.crossattn, whole[start : start + 8])


def test_each_entry_is_dropped_by_itself():
    parts = [ClassEmbedder(1, 3, drop_rate=0.5) for _ in range(2)]
    for embedder in parts:
        nn.init.zeros_(embedder.embedding.weight)
        nn.init.ones_(embedder.embedding.weight[2])
    conditioner = Conditioner((part(parts[0], "label"), part(parts[1], "other")))
    labels = torch.zeros(2000, dtype=torch.long)
    cond = conditioner({"label": labels, "other": labels}, draws=KeyedDraws(range(2000), seed=0))
    dropped = cond.crossattn[..., 0].bool()
    both = (dropped[:, 0] & dropped[:, 1]).float().mean()
    assert abs(float(both) - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5


def test_encoders_of_one_entry_drop_it_together():
    parts = [ClassEmbedder(1, 3, drop_rate=0.5) for _ in range(2)]
    for embedder in parts:
        nn.init.zeros_(embedder.embedding.weight)
        nn.init.ones_(embedder.embedding.weight[2])
    conditioner = Conditioner(tuple(part(embedder, "label") for embedder in parts))
    labels = torch.zeros(2000, dtype=torch.long)
    cond = conditioner({"label": labels}, draws=KeyedDraws(range(2000), seed=0))
    first, second = cond.crossattn[..., 0].bool().unbind(1)
    assert torch.equal(first, second)
    assert abs(float(first.float().mean()) - 0.5) < 4 * (0.25 / 2000) ** 0.5


def test_the_null_condition_is_the_null_label():
    conditioner = two_labels(drop_rate=0.1)
    null, (first, second) = conditioner.null(BATCH), (p.embedder for p in conditioner.parts)
    assert torch.equal(null.crossattn[:, 0], first.embedding.weight[[4, 4]])
    assert torch.equal(null.crossattn[:, 1], second.embedding.weight[[5, 5]])


@pytest.mark.parametrize(("rate", "kept"), [(0.0, True), (0.1, False)])
def test_the_null_condition_keeps_a_map_unless_it_was_dropped_in_training(rate, kept):
    null = Conditioner((part(SpatialRescaler(drop_rate=rate), "map"),)).null(BATCH)
    assert bool(null.concat.any()) is kept


def test_the_null_condition_of_any_tensor_is_zero():
    class Vector(Embedder):
        slot = "vector"

        def encode(self, value):
            return value

    vectors = {"v": torch.ones(2, 3)}
    assert not Conditioner((part(Vector(), "v"),)).null(vectors).vector.any()


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_drop_rate_outside_its_range_is_refused(rate):
    with pytest.raises(ValueError, match="expected a share in"):
        ClassEmbedder(4, 5, drop_rate=rate)


def test_dropout_needs_a_row_for_the_null_class():
    with pytest.raises(ValueError, match="and the null class that drop_rate needs"):
        ClassEmbedder(4, 1, drop_rate=0.1)
    assert ClassEmbedder(4, 2, drop_rate=0.1).null_label == 1


def test_a_rescaler_with_a_negative_number_of_stages_is_refused():
    with pytest.raises(ValueError, match="n_stages is -1"):
        SpatialRescaler(n_stages=-1)
