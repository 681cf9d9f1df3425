"""K-means and restarts of a codebook."""

import math

import pytest
import torch

from ldm.nets.quantizer import VectorQuantizer
from ldm.nets.quantizer_cures import (
    KMeansInit,
    Restart,
    gathered_sample,
    k_means,
    step_generator,
    sums_by_code,
)
from ldm.nets.quantizer_ema import EMAVectorQuantizer
from tests.nets.quantizers import latents, rows, train

BOTH = pytest.mark.parametrize("cls", [VectorQuantizer, EMAVectorQuantizer])


def generator():
    return torch.Generator().manual_seed(0)


def clusters(centres, each=20, spread=0.01):
    """Latents (len(centres) * each, d) around centres, in random order."""
    noise = spread * torch.randn(len(centres) * each, centres.shape[1])
    return (centres.repeat_interleave(each, dim=0) + noise)[torch.randperm(len(noise))]


def as_latents(vectors):
    """(N, d) as (N, d, 1, 1) with a gradient."""
    return vectors[:, :, None, None].clone().requires_grad_()


def distances_to_nearest(points, centres):
    return torch.cdist(points, centres).min(dim=1).values


@pytest.mark.parametrize("on_sphere", [False, True])
def test_k_means_finds_separated_clusters(on_sphere):
    torch.manual_seed(0)
    centres = 10 * torch.randn(8, 3)
    if on_sphere:
        centres = torch.nn.functional.normalize(torch.cat([torch.eye(3), -torch.eye(3)]), dim=1)
    points, count = clusters(centres), len(centres)
    found = k_means(points, count, generator=generator(), iterations=5, on_sphere=on_sphere)
    assert distances_to_nearest(centres, found).max() < 0.02
    assert distances_to_nearest(found, centres).max() < 0.02
    if on_sphere:
        torch.testing.assert_close(found.norm(dim=1), torch.ones(6))


def test_k_means_ends_at_the_means_of_its_clusters():
    torch.manual_seed(0)
    points = torch.randn(200, 2)
    found = k_means(points, 5, generator=generator(), iterations=100)
    nearest = torch.cdist(points, found).argmin(dim=1)
    for number, centre in enumerate(found):
        torch.testing.assert_close(centre, points[nearest == number].mean(dim=0))


def test_k_means_of_fewer_points_than_centres_stays_among_them():
    points = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    found = k_means(points, 4, generator=generator(), iterations=2)
    assert {tuple(row) for row in found.tolist()} == {(0.0, 1.0), (2.0, 3.0)}


def test_sums_and_counts_are_those_of_each_code():
    z = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    counts, sums = sums_by_code(z, torch.tensor([2, 0, 2]), 3)
    assert counts.tolist() == [1, 0, 2]
    assert sums.tolist() == [[3, 4], [0, 0], [6, 8]]


def test_a_sample_repeats_no_latent_unless_it_must():
    points = torch.arange(10.0)[:, None]
    assert len(gathered_sample(points, 10, generator=generator()).unique()) == 10
    few = gathered_sample(points[:3], 50, generator=generator())
    assert few.shape == (50, 1)
    assert set(few.flatten().tolist()) <= {0.0, 1.0, 2.0}


def test_random_numbers_are_a_function_of_seed_and_step():
    places = [(0, 1), (0, 1), (0, 2), (1, 1)]
    numbers = [torch.rand(2, generator=step_generator(*place)).tolist() for place in places]
    assert numbers[0] == numbers[1]
    assert len({tuple(pair) for pair in numbers}) == 3


@BOTH
@pytest.mark.parametrize("cure", ["restart", "kmeans_init"])
def test_cures_draw_by_the_seed_that_a_step_begins_with(cls, cure):
    codes = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        cures = {"restart": Restart(threshold=0.5, memory=1)}
        if cure == "kmeans_init":
            cures = {"kmeans_init": KMeansInit(latents_per_code=2)}
        quantizer = cls(12, 3, **cures).train()
        quantizer.begin_step(0, seed)
        quantizer(latents())
        quantizer.end_step()
        codes.append(quantizer.codes())
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])


@BOTH
def test_codebook_starts_at_the_centres_of_enough_latents(cls):
    torch.manual_seed(0)
    centres = 10 * torch.randn(6, 3)
    first, second = clusters(centres).chunk(2)
    quantizer = cls(6, 3, kmeans_init=KMeansInit(latents_per_code=20))
    start = quantizer.codes().clone()
    train(quantizer, [as_latents(first)])
    assert torch.equal(quantizer.codes(), start)  # 60 of the 120 latents it waits for
    assert not quantizer.is_initialized
    train(quantizer, [as_latents(second)])
    assert quantizer.is_initialized
    assert distances_to_nearest(centres, quantizer.codes()).max() < 0.02
    if cls is VectorQuantizer:
        found = quantizer.codes().clone()
        train(quantizer, [as_latents(first + 5)])
        assert torch.equal(quantizer.codes(), found)  # once


@BOTH
def test_latents_collected_before_go_on_to_k_means(cls):
    quantizers = [
        (torch.manual_seed(0), cls(6, 3, kmeans_init=KMeansInit(latents_per_code=20)))[1]
        for _ in range(3)
    ]
    whole, half, other = quantizers
    for quantizer in (whole, half):
        train(quantizer, [latents(1)], step=0)
    other.load_state_dict(half.state_dict())
    other.restore_collected(half.collected())
    assert len(other.collected()) == 40
    for step in (1, 2):
        for quantizer in (whole, other):
            train(quantizer, [latents(step + 1)], step=step)
    assert whole.is_initialized
    assert torch.equal(other.codes(), whole.codes())
    assert len(whole.collected()) == 0


@BOTH
@pytest.mark.parametrize("l2_norm", [False, True])
def test_cures_are_added_to_a_codebook_that_was_trained_without(cls, l2_norm):
    torch.manual_seed(0)
    source = VectorQuantizer(12, 3)
    cures = {"restart": True, "kmeans_init": KMeansInit(latents_per_code=1), "l2_norm": l2_norm}
    quantizer = cls(12, 3, **cures)
    quantizer.load_state_dict(source.state_dict())
    codes = source.codes().detach()
    if l2_norm:
        codes = torch.nn.functional.normalize(codes, dim=1)
    assert torch.equal(quantizer.codes(), codes)
    assert quantizer.usage.tolist() == [1.0] * 12
    assert quantizer.is_initialized
    if cls is EMAVectorQuantizer:
        assert quantizer.cluster_size.tolist() == [1.0] * 12
        torch.testing.assert_close(quantizer.cluster_sum, codes)
    train(quantizer, [latents()])
    assert (quantizer.codes() - codes).norm(dim=1).max() < 0.2  # k-means did not replace them


@BOTH
def test_counters_of_a_state_dict_come_before_those_of_the_beginning(cls):
    torch.manual_seed(0)
    source = cls(12, 3, restart=True, kmeans_init=KMeansInit(latents_per_code=100))
    train(source, [latents()])
    other = cls(12, 3, restart=True, kmeans_init=True)
    other.load_state_dict(source.state_dict())
    assert not other.is_initialized
    for name, value in source.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize("missing", ["embedding.weight", "cluster_sum"])
def test_a_state_dict_without_a_codebook_or_half_of_its_averages_is_refused(missing):
    quantizer = EMAVectorQuantizer(12, 3, restart=True)
    state = quantizer.state_dict()
    del state[missing], state["usage"]
    with pytest.raises(RuntimeError, match=f'Missing key.*"{missing}"'):
        quantizer.load_state_dict(state)


@BOTH
def test_a_loaded_codebook_is_not_initialized_again(cls):
    torch.manual_seed(0)
    source = cls(6, 3, kmeans_init=KMeansInit(latents_per_code=1))
    train(source, [latents()])
    other = cls(6, 3, kmeans_init=KMeansInit(latents_per_code=1))
    other.load_state_dict(source.state_dict())
    for quantizer in (source, other):
        train(quantizer, [latents(4)])
    assert torch.equal(source.codes(), other.codes())


def test_a_sample_by_weights_begins_with_the_heavy_ones():
    points, weights = torch.arange(4.0)[:, None], torch.tensor([0.0, 1.0, 2.0, 5.0])
    numbers = generator()
    samples = [gathered_sample(points, 4, generator=numbers, weights=weights) for _ in range(4000)]
    drawn = torch.stack(samples)[:, :, 0]
    assert (drawn.sort(dim=1).values == torch.arange(4.0)).all()  # each once
    assert (drawn[:, 3] == 0).all()  # without weight: when there is no other
    share = torch.bincount(drawn[:, 0].long(), minlength=4) / 4000
    # four standard errors of a share
    torch.testing.assert_close(share, weights / 8, rtol=0, atol=4 * 0.5 / 4000**0.5)


def test_a_code_is_dead_when_its_moving_usage_falls_below_the_threshold():
    restart, usage = Restart(threshold=0.3, memory=2), torch.ones(4)
    kept = math.exp(-1)  # of what was known, by 2 latents per code at a memory of 2
    counts = torch.tensor([6.0, 2.0, 0.0, 0.0])  # relative to the mean: 3, 1, 0, 0
    assert restart.dead(usage, counts).tolist() == [False] * 4
    torch.testing.assert_close(usage, torch.tensor([3 - 2 * kept, 1, kept, kept]))
    counts = torch.tensor([2.0, 4.0, 2.0, 0.0])  # 1, 2, 1, 0
    assert restart.dead(usage, counts).tolist() == [False, False, False, True]
    want = torch.tensor([1 + 2 * kept - 2 * kept**2, 2 - kept, 1 - kept + kept**2, 1])
    torch.testing.assert_close(usage, want)  # the dead one begins anew


@pytest.mark.parametrize("per_step", [0.25, 1.0, 8.0])
def test_a_code_that_is_never_used_is_dead_after_23_latents_per_code(per_step):
    restart, usage = Restart(), torch.ones(4)
    counts = per_step * torch.tensor([2.0, 1.0, 1.0, 0.0])
    steps = math.ceil(10 * math.log(10) / per_step)  # 23.03
    for _ in range(steps - 1):
        assert not restart.dead(usage, counts).any()
    assert restart.dead(usage, counts).tolist() == [False, False, False, True]


def test_a_step_without_latents_kills_nothing():
    usage = torch.tensor([1.0, 0.2])
    assert not Restart().dead(usage, torch.zeros(2)).any()
    assert torch.equal(usage, torch.tensor([1.0, 0.2]))


def test_restart_takes_latents_far_from_their_codes():
    """Of a heap and one that is far from it, the dead code takes the one."""
    heap = torch.tensor([1.0, 0.0]).expand(99, 2)
    z = torch.cat([heap, torch.tensor([[5.0, 5.0]])]).T.reshape(1, 2, 10, 10)
    quantizer = VectorQuantizer(3, 2, restart=Restart(threshold=0.01, memory=1))
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor([[1.0, 0.0], [-9.0, 0.0], [0.0, -9.0]]))
    train(quantizer, [z.requires_grad_()])
    assert (quantizer.codes() == 5).all(dim=1).any()


@BOTH
@pytest.mark.parametrize("l2_norm", [False, True])
def test_restart_replaces_exactly_the_dead_codes_by_latents(cls, l2_norm):
    torch.manual_seed(0)
    quantizer = cls(20, 3, l2_norm=l2_norm, restart=Restart(threshold=0.5, memory=1))
    z = latents(batch=1)
    before = quantizer.codes().detach().clone()
    used = quantizer.nearest(z.detach().permute(0, 2, 3, 1)).unique()
    is_dead = torch.ones(20, dtype=torch.bool)
    is_dead[used] = False
    assert 0 < is_dead.sum() < 20
    train(quantizer, [z])
    after = quantizer.codes().detach()
    vectors = rows(z.detach())
    if l2_norm:
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    assert distances_to_nearest(after[is_dead], vectors).max() < 1e-6
    assert len(after[is_dead].unique(dim=0)) == is_dead.sum()
    if cls is VectorQuantizer:
        assert torch.equal(after[~is_dead], before[~is_dead])
    else:  # those in use moved, by a hundredth of the way to their means
        assert (after[~is_dead] - before[~is_dead]).norm(dim=1).max() < 0.1
        assert quantizer.cluster_size[is_dead].tolist() == [1.0] * int(is_dead.sum())
        torch.testing.assert_close(quantizer.cluster_sum[is_dead], after[is_dead])


def test_published_layout_has_nothing_of_cures_that_are_off():
    assert list(VectorQuantizer(4, 2).state_dict()) == ["embedding.weight"]
    names = set(VectorQuantizer(4, 2, kmeans_init=True, restart=True).state_dict())
    assert names == {"embedding.weight", "usage", "is_initialized"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 1.0}, "threshold=1.0: expected at least 0 and less than 1"),
        ({"threshold": -0.1}, "threshold=-0.1: expected at least 0 and less than 1"),
    ],
)
def test_a_restart_of_all_codes_or_none_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Restart(**changes)
