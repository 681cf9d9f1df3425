"""Training times: their distribution, importance weights, and what LossAware learns."""

import pytest
import torch
from torch import distributed

from ldm.diffusion.schedule import PublishedSchedule, RectifiedFlow, VarianceExploding
from ldm.diffusion.times import (
    LogitNormal,
    LogNormal,
    LossAware,
    Stratified,
    Uniform,
    conditioning_times,
)
from tests.reference import Case

SCHEDULE = PublishedSchedule(20)
EVERY_U = (torch.arange(20_000) + 0.5) / 20_000  # a grid in place of random numbers


def learned(losses_of, history=10):
    """A LossAware whose every time has seen `losses_of(t)`."""
    sampler = LossAware(20, history=history)
    t = torch.arange(20).repeat(history)
    sampler.update(t, losses_of(t))
    return sampler


@pytest.mark.parametrize(
    "sampler",
    [Uniform(), Stratified(), LogitNormal(), LossAware(20), learned(lambda t: 1.0 + t)],
    ids=lambda s: type(s).__name__,
)
def test_times_are_integers_of_the_schedule(sampler):
    u = torch.cat([EVERY_U, torch.tensor([0.0, 1 - 2.0**-24])])
    t, weight = sampler.sample(u, SCHEDULE)
    assert t.dtype == torch.int64
    assert t.min() == 0
    assert t.max() == 19
    assert weight.shape == t.shape == u.shape


def test_uniform_times_are_the_floor_of_u_times_t():
    t, weight = Uniform().sample(torch.tensor([0.0, 0.049, 0.051, 0.999]), SCHEDULE)
    assert t.tolist() == [0, 0, 1, 19]
    assert weight.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("num_timesteps", [1, 7, 1000, 100_001])
def test_the_largest_u_is_still_a_time(num_timesteps):
    schedule = PublishedSchedule(num_timesteps, linear_end=2e-4)
    t, _ = Uniform().sample(torch.tensor([1 - 2.0**-24]), schedule)
    assert t.item() == num_timesteps - 1


@pytest.mark.parametrize("schedule", [RectifiedFlow(), VarianceExploding()])
@pytest.mark.parametrize("sampler", [Uniform(), LogitNormal()])
def test_continuous_times_are_never_clean_data(schedule, sampler):
    t, _ = sampler.sample(torch.tensor([0.0, 0.5, 1 - 2.0**-24]), schedule)
    assert (t > schedule.t_clean).all()
    assert (t <= schedule.t_max).all()
    assert schedule.log_snr(t).isfinite()[:2].all()


def test_stratified_times_fall_one_into_each_stratum():
    t, _ = Stratified().sample(torch.rand(20), SCHEDULE)
    assert t.tolist() == list(range(20))


def test_what_a_stratified_sampler_learns_is_saved():
    stratified = Stratified(LossAware(3))
    stratified.update(torch.tensor([1]), torch.tensor([5.0]))
    assert stratified.state_dict()["times.counts"].tolist() == [0, 1, 0]
    stratified.eval()
    stratified.update(torch.tensor([1]), torch.tensor([5.0]))
    assert stratified.times.counts.tolist() == [0, 1, 0]


def test_logit_normal_times_have_the_logit_normal_distribution():
    t, _ = LogitNormal(mean=0.3, std=0.8).sample(EVERY_U.double(), RectifiedFlow())
    logit = torch.logit(t)
    torch.testing.assert_close(logit.mean().item(), 0.3, rtol=1e-3, atol=0)
    torch.testing.assert_close(logit.std().item(), 0.8, rtol=1e-3, atol=0)


def test_log_normal_levels_have_the_log_normal_distribution():
    sigma, _ = LogNormal(mean=-1.2, std=1.2).sample(EVERY_U.double(), VarianceExploding())
    torch.testing.assert_close(sigma.log().mean().item(), -1.2, rtol=1e-3, atol=0)
    torch.testing.assert_close(sigma.log().std().item(), 1.2, rtol=1e-3, atol=0)


def test_log_normal_levels_need_a_schedule_of_levels():
    with pytest.raises(ValueError, match="LogitNormal"):
        LogNormal().sample(EVERY_U, SCHEDULE)


def test_loss_aware_is_uniform_until_every_time_has_its_history():
    sampler = LossAware(20)
    t = torch.arange(20).repeat(10)[:-1]  # one loss short
    sampler.update(t, 1.0 + t)
    torch.testing.assert_close(sampler.probabilities(), torch.full((20,), 1 / 20))
    _, weight = sampler.sample(EVERY_U, SCHEDULE)
    torch.testing.assert_close(weight, torch.ones_like(weight))


def test_loss_aware_draws_in_proportion_to_the_root_mean_square_loss():
    sampler = learned(lambda t: 1.0 + t)
    want = 0.999 * (1.0 + torch.arange(20)) / 210 + 0.001 / 20
    torch.testing.assert_close(sampler.probabilities(), want)
    t, weight = sampler.sample(EVERY_U, SCHEDULE)
    frequency = torch.bincount(t, minlength=20) / len(t)
    # the grid of u resolves 1 / 20000
    torch.testing.assert_close(frequency, want, rtol=0, atol=1.1e-4)
    torch.testing.assert_close(weight, 1 / (20 * want[t]))


def test_loss_aware_weights_make_the_estimate_unbiased():
    sampler = learned(lambda t: 1.0 + t**2)
    loss = torch.randn(20).exp()
    p = sampler.probabilities()
    weight = 1 / (20 * p)
    torch.testing.assert_close((p * weight * loss).sum(), loss.mean())
    t, drawn = sampler.sample(EVERY_U, SCHEDULE)
    torch.testing.assert_close((drawn * loss[t]).mean(), loss.mean(), rtol=5e-3, atol=0)


def test_loss_aware_remembers_the_last_losses_only():
    sampler = LossAware(3, history=2)
    for t, loss in [(0, 9.0), (1, 9.0), (0, 1.0), (2, 4.0), (0, 3.0), (1, 2.0), (2, 4.0), (1, 6.0)]:
        sampler.update(torch.tensor([t]), torch.tensor([loss]))
    assert sorted(sampler.history[0].tolist()) == [1, 3]
    assert sorted(sampler.history[1].tolist()) == [2, 6]
    assert sorted(sampler.history[2].tolist()) == [4, 4]


def test_loss_aware_learns_the_same_from_one_batch_as_from_many():
    t = torch.randint(0, 5, (64,), generator=torch.Generator().manual_seed(0))
    losses = torch.arange(64.0)
    together, apart = LossAware(5, history=4), LossAware(5, history=4)
    together.update(t, losses)
    for time, loss in zip(t, losses, strict=True):
        apart.update(time[None], loss[None])
    assert torch.equal(together.counts, apart.counts)
    assert torch.equal(together.history[:-1].sort().values, apart.history[:-1].sort().values)


def test_loss_aware_remembers_no_loss_that_is_not_finite():
    sampler = LossAware(3, history=2)
    t = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    sampler.update(t, torch.tensor([1.0, torch.nan, 3.0, 2.0, torch.inf, 4.0, 4.0]))
    sampler.update(torch.tensor([1]), torch.tensor([6.0]))
    assert sampler.counts.tolist() == [2, 2, 2]
    assert sampler.history[:-1].sort().values.tolist() == [[1, 3], [2, 6], [4, 4]]


def test_loss_aware_learns_in_training_mode_only():
    sampler = LossAware(3).eval()
    sampler.update(torch.tensor([0]), torch.tensor([1.0]))
    assert sampler.counts.sum() == 0


def test_loss_aware_history_survives_a_state_dict():
    sampler = learned(lambda t: 1.0 + t)
    restored = LossAware(20)
    restored.load_state_dict(sampler.state_dict())
    assert torch.equal(restored.probabilities(), sampler.probabilities())


def test_loss_aware_refuses_a_schedule_of_another_length():
    with pytest.raises(ValueError, match="num_timesteps"):
        LossAware(10).sample(EVERY_U, SCHEDULE)


def test_stratified_passes_losses_on():
    inner = LossAware(20)
    Stratified(inner).update(torch.tensor([4]), torch.tensor([1.0]))
    assert inner.counts[4] == 1


def test_loss_aware_learns_from_all_ranks(tmp_path):
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        sampler = learned(lambda t: 1.0 + t)
    finally:
        distributed.destroy_process_group()
    assert torch.equal(sampler.probabilities(), learned(lambda t: 1.0 + t).probabilities())


def test_conditioning_times_match_the_published_tables():
    case = Case("i_ldm_specifics", "cond_schedule")
    for arguments in case.spec["arguments"]:
        total, few = arguments["timesteps"], arguments["num_timesteps_cond"]
        case.check(f"cond_ids_T{total}_n{few}", conditioning_times(total, few))
    assert len(case.want) == len(case.spec["arguments"])
