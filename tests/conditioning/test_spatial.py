"""Maps of labels against the one-hot channels that they stand for."""

import pytest
import torch
from torch.nn import functional as F

from ldm.conditioning.conditioner import Conditioner, Part
from ldm.conditioning.spatial import SpatialRescaler
from ldm.diffusion.draws import KeyedDraws

K = 5
LABELS = torch.randint(0, K, (3, 8, 12), generator=torch.Generator().manual_seed(0))


def rescaler(**options):
    torch.manual_seed(0)
    return SpatialRescaler(**{"in_channels": K, "n_stages": 2, **options}).double()


def one_hot():
    """Channels (B, K, H, W) of the labels."""
    return F.one_hot(LABELS, K).double().permute(0, 3, 1, 2)


def conditioned(embedder, value):
    return Conditioner((Part(embedder, "map", "concat"),))({"map": value}).concat


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic", "area"])
@pytest.mark.parametrize("options", [{}, {"out_channels": 3}, {"out_channels": 3, "bias": True}])
def test_labels_give_what_their_one_hot_channels_give(method, options):
    embedder = rescaler(method=method, **options)
    expected = embedder(one_hot())
    got = conditioned(embedder, LABELS)
    assert got.shape == (3, options.get("out_channels", K), 2, 3)
    tolerance = 1e-12 if options else 1e-6
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=tolerance)


def test_weights_learn_the_same_from_labels_as_from_channels():
    gradients = []
    for value in (LABELS[:, None], one_hot()):
        embedder = rescaler(out_channels=2, bias=True)
        weights = torch.linspace(-1, 2, 3 * 2 * 2 * 3, dtype=torch.float64).view(3, 2, 2, 3)
        (embedder.encode(value) * weights).sum().backward()
        gradients.append([each.grad for each in embedder.parameters()])
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_half_of_a_map_is_the_mean_of_its_labels():
    labels = torch.tensor([[[0, 1], [1, 1]]])
    got = conditioned(rescaler(n_stages=1), labels)
    assert got.flatten().tolist() == [0.25, 0.75, 0, 0, 0]


def test_no_label_is_nothing_on_all_channels():
    labels = torch.tensor([[[-1, 2]]])
    got = conditioned(rescaler(n_stages=0), labels)
    assert got[0, :, 0].T.tolist() == [[0] * K, [0, 0, 1, 0, 0]]


def test_a_dropped_map_has_no_labels():
    embedder = rescaler(out_channels=2, drop_rate=0.5)
    dropped = torch.tensor([True, False, True])
    value = embedder.drop(LABELS[:, None], dropped)
    assert torch.equal(value[1], LABELS[1:2])
    assert torch.equal(embedder.encode(value)[::2], torch.zeros(2, 2, 2, 3).double())


def test_the_null_of_guidance_is_the_map_unless_it_was_dropped_in_training():
    batch = {"map": LABELS}
    for rate, is_kept in ((0.0, True), (0.1, False)):
        conditioner = Conditioner(
            (Part(rescaler(out_channels=2, drop_rate=rate), "map", "concat"),)
        )
        null, cond = conditioner.null(batch).concat, conditioner(batch).concat
        assert torch.equal(null, cond) is is_kept
        assert bool((null == 0).all()) is not is_kept


def test_training_drops_whole_maps_at_their_rate():
    conditioner = Conditioner((Part(rescaler(drop_rate=0.5), "map", "concat"),))
    maps = torch.zeros(400, 4, 4, dtype=torch.int64)
    cond = conditioner({"map": maps}, draws=KeyedDraws(range(400), seed=0)).concat
    kept = cond.amax(dim=(1, 2, 3))
    assert set(kept.tolist()) == {0, 1}
    assert abs(kept.mean() - 0.5) < 4 * 0.025


@pytest.mark.parametrize("wrong", [-2, K, 255])
def test_labels_out_of_range_are_named(wrong):
    labels = LABELS.clone()
    labels[1, 2, 3] = wrong
    with pytest.raises(ValueError, match=f"labels .*{wrong}.*, expected 0 to {K - 1}"):
        conditioned(rescaler(), labels)


def test_a_grey_image_of_bytes_stays_an_image():
    image = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    got = conditioned(SpatialRescaler(n_stages=0, in_channels=1), image)
    assert got.tolist() == [[[[-1, 1]]]]
