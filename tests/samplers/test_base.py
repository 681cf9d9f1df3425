"""The loop of all samplers: counts, types, independence of the batch, start, callback, noise."""

from dataclasses import replace

import pytest
import torch

from ldm.diffusion.denoiser import DiffusionWrapper, NetDenoiser
from ldm.diffusion.draws import KeyedDraws
from ldm.diffusion.schedule import PublishedSchedule
from ldm.samplers.ancestral import Ancestral
from ldm.samplers.base import Step
from ldm.samplers.ddim import DDIM
from ldm.samplers.grid import PublishedQuadratic, PublishedUniform, Uniform
from ldm.types import Conditioning, Prediction
from tests.gaussian import GaussianDenoiser
from tests.samplers.solvers import SOLVERS, STOCHASTIC, WITH_MEMORY, name, noiseless, quiet

SCHEDULE = PublishedSchedule()
X = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
DRAWS = KeyedDraws(range(4), seed=0)
EVERY = pytest.mark.parametrize("sampler", SOLVERS, ids=name)


def sample(sampler, x=X, *, steps=6, schedule=SCHEDULE, draws=DRAWS, **options):
    denoiser = GaussianDenoiser(schedule)
    end = sampler.sample(denoiser, x, schedule=schedule, steps=steps, draws=draws, **options)
    return end, denoiser.evaluations


@pytest.mark.slow
def test_ddim_makes_as_many_evaluations_as_steps_for_every_number_of_them():
    x, count = torch.zeros(1, 1, 1, 1), 0
    prediction = Prediction(x0=x, eps=x)

    def counting(x_t, t, cond):
        nonlocal count
        count += 1
        return prediction

    for steps in range(1, 1001):
        count = 0
        DDIM().sample(counting, x, schedule=SCHEDULE, steps=steps)
        assert count == steps


@EVERY
@pytest.mark.parametrize("schedule", [PublishedSchedule(40, linear_end=0.3), SCHEDULE])
def test_a_sampler_makes_as_many_evaluations_as_it_says(sampler, schedule):
    x, draws = torch.zeros(1, 1, 1, 1), KeyedDraws([0], seed=0)
    for steps in range(1, 41) if schedule.num_timesteps == 40 else (2, 3, 9, 27, 333, 1000):
        made = sample(sampler, x, steps=steps, schedule=schedule, draws=draws)[1]
        assert made == sampler.evaluations(steps)


@EVERY
@pytest.mark.parametrize("start", [1, 4, 5])
def test_a_run_from_the_middle_makes_the_evaluations_of_its_steps(sampler, start):
    assert sample(sampler, start=start)[1] == sampler.evaluations(6 - start)


@EVERY
@pytest.mark.parametrize("grid", [PublishedUniform(), PublishedQuadratic()])
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_a_run_that_does_not_end_clean_makes_the_evaluations_it_says(sampler, grid, steps):
    taken = len(grid(SCHEDULE, steps)) - 1
    made = sample(replace(sampler, grid=grid), steps=steps)[1]
    assert made == sampler.evaluations(taken, ends_clean=False)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_keeps_its_type(sampler, dtype):
    seen = []
    end, _ = sample(
        sampler, X.to(dtype), schedule=PublishedSchedule().to(dtype),
        callback=lambda step, x, prediction: seen.append((x.dtype, prediction.x0.dtype)),
    )  # fmt: skip
    assert end.dtype == dtype
    assert set(seen) == {(dtype, dtype)}


@EVERY
def test_float32_stays_close_to_float64(sampler):
    narrow, _ = sample(sampler, steps=20)
    wide, _ = sample(sampler, X.double(), steps=20, schedule=PublishedSchedule().double())
    torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=2e-5)


@EVERY
def test_an_example_does_not_depend_on_its_batch(sampler):
    together, _ = sample(sampler)
    for i in range(4):
        alone, _ = sample(sampler, X[i : i + 1], draws=KeyedDraws([i], seed=0))
        assert torch.equal(alone[0], together[i])


@EVERY
def test_nothing_is_read_back_from_the_device(sampler):
    """A tensor of the meta device has no values, so asking for one would raise."""
    x = X.to("meta")
    prediction = Prediction(x0=torch.empty_like(x), eps=torch.empty_like(x))
    end = sampler.sample(lambda *_: prediction, x, schedule=SCHEDULE, steps=9, draws=DRAWS)
    assert end.device.type == "meta"
    assert end.shape == x.shape


@EVERY
def test_sampling_twice_gives_the_same_and_changes_no_argument(sampler):
    x = X.clone()
    first, _ = sample(sampler, x)
    assert torch.equal(x, X)
    assert torch.equal(sample(sampler, x)[0], first)


@EVERY
def test_predictions_are_not_changed_by_a_rule(sampler):
    made = []

    class Keeping(GaussianDenoiser):
        def __call__(self, x_t, t, cond):
            prediction = super().__call__(x_t, t, cond)
            made.append((prediction, prediction.x0.clone(), prediction.eps.clone()))
            return prediction

    sampler.sample(Keeping(SCHEDULE), X, schedule=SCHEDULE, steps=6, draws=DRAWS)
    for prediction, x0, eps in made:
        assert torch.equal(prediction.x0, x0)
        assert torch.equal(prediction.eps, eps)


@pytest.mark.parametrize(
    "sampler", [s for s in SOLVERS if not isinstance(s, WITH_MEMORY)], ids=name
)
def test_a_run_can_start_in_the_middle(sampler):
    states = []
    end, _ = sample(sampler, callback=lambda step, x, prediction: states.append(x))
    assert torch.equal(sample(sampler, states[2], start=3)[0], end)


@pytest.mark.parametrize("start", [-1, 6])
def test_a_start_outside_the_grid_is_refused(start):
    with pytest.raises(ValueError, match="expected a node from 0 to 5"):
        sample(DDIM(), start=start)


def test_the_callback_sees_every_step_and_its_prediction():
    seen = []
    sample(DDIM(), callback=lambda step, x, prediction: seen.append((step, x, prediction)))
    times = Uniform()(SCHEDULE, 6)
    assert [step for step, _, _ in seen] == [Step(i, 6, times[i], times[i + 1]) for i in range(6)]
    _, last, prediction = seen[-1]
    assert torch.equal(last, prediction.x0)


def test_a_state_returned_by_the_callback_is_the_one_sampled_on():
    def only_first(step, x, prediction):
        return torch.ones_like(x) if step.index == 0 else None

    replaced, _ = sample(DDIM(), callback=only_first)
    assert torch.equal(replaced, sample(DDIM(), torch.ones_like(X), start=1)[0])


@pytest.mark.parametrize("sampler", STOCHASTIC, ids=name)
def test_a_sampler_that_adds_noise_asks_for_draws(sampler):
    with pytest.raises(ValueError, match="pass draws"):
        sample(sampler, draws=None)


@pytest.mark.parametrize("eta", [-0.5, 1.5])
def test_more_noise_than_a_time_has_is_refused(eta):
    with pytest.raises(ValueError, match=f"eta is {eta}.*expected 0 to 1"):
        sample(DDIM(eta=eta))


@pytest.mark.parametrize("v", [-0.1, 1.1])
def test_a_variance_outside_the_two_published_ones_is_refused(v):
    with pytest.raises(ValueError, match=f"v is {v}, expected 0 to 1"):
        Ancestral(v=v)


@EVERY
def test_a_sampler_without_noise_needs_no_draws(sampler):
    if isinstance(sampler, Ancestral):
        sampler = quiet(sampler)
    sampler = noiseless(sampler)
    assert torch.equal(sample(sampler, draws=None)[0], sample(sampler)[0])


@pytest.mark.parametrize("sampler", STOCHASTIC, ids=name)
def test_a_factor_of_0_takes_the_noise_away_and_leaves_the_steps(sampler):
    still = sample(quiet(sampler), draws=KeyedDraws(range(4), seed=1))[0]
    assert torch.equal(sample(quiet(sampler))[0], still)
    assert not torch.equal(still, sample(sampler)[0])


@EVERY
def test_one_step_is_the_predicted_data(sampler):
    prediction = GaussianDenoiser(SCHEDULE)(X, torch.full((4,), 999), None)
    torch.testing.assert_close(sample(sampler, steps=1)[0], prediction.x0)


@EVERY
@pytest.mark.parametrize("grid", [PublishedUniform(), PublishedQuadratic()])
def test_published_grids_are_open_to_every_sampler(sampler, grid):
    # quadratic times repeat from 30 steps on
    end, _ = sample(replace(sampler, grid=grid), steps=40)
    assert end.isfinite().all()


def test_the_network_sees_integer_times_and_the_condition():
    class Net(torch.nn.Module):
        def forward(self, x, timesteps, context=None, y=None):
            seen.append(timesteps)
            return x * y[:, None, None, None]

    seen = []
    wrapper = DiffusionWrapper(Net(), "adm")
    cond = Conditioning(vector=torch.arange(4.0))
    DDIM().sample(NetDenoiser(wrapper, SCHEDULE), X, schedule=SCHEDULE, steps=5, cond=cond)
    assert all(t.dtype == torch.int64 for t in seen)
    assert [t.tolist() for t in seen] == [[t] * 4 for t in (999, 799, 599, 399, 199)]


def test_sampling_records_no_gradients():
    class Learned:
        def __init__(self):
            self.weight = torch.nn.Parameter(torch.ones(()))

        def __call__(self, x_t, t, cond):
            return Prediction(x0=x_t * self.weight, eps=x_t * self.weight)

    end = DDIM().sample(Learned(), X, schedule=SCHEDULE, steps=3)
    assert not end.requires_grad
