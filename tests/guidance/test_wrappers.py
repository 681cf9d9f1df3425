"""What every denoiser around a denoiser promises, whatever it does."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from ldm.diffusion.moment import Memory, moment_of_run
from ldm.diffusion.parameterization import PARAMETERIZATIONS
from ldm.diffusion.schedule import PublishedSchedule
from ldm.samplers.ddim import DDIM
from ldm.tensor import expand_to
from ldm.types import Conditioning
from tests.guidance.wrappers import SCHEDULES, SIZE, WRAPPERS, net

B = 5
GENERATOR = torch.Generator().manual_seed(0)
NOISE = torch.randn(B, *SIZE, dtype=torch.float64, generator=GENERATOR)
COND = Conditioning(vector=torch.tensor([0.1, 0.5, -0.3, 1.0, 0.0], dtype=torch.float64))


def times_of(schedule):
    """From the noisiest time to nearly none."""
    times = schedule.t_clean + np.array([1.0, 0.8, 0.4, 0.1, 0.01]) * (
        schedule.t_max - schedule.t_clean
    )
    return schedule.tensor_of(times, NOISE)


def inputs(schedule):
    t = times_of(schedule)
    return schedule.noised(NOISE.flip(0), NOISE, t), t


def wrapped(name, schedule, parameterization="v", device="cpu"):
    return WRAPPERS[name](net(schedule, parameterization, device), schedule, device)


@pytest.fixture(params=WRAPPERS)
def name(request):
    return request.param


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_x0_and_eps_agree_with_x_t(name, schedule, parameterization):
    ends = schedule.ends_in_pure_noise
    refused = ends and (parameterization == "eps" or name == "corrected")
    with pytest.raises(ValueError, match="pure noise") if refused else nullcontext():
        denoiser = wrapped(name, schedule, parameterization)
    if refused or name == "quantized":  # which keeps eps, as published
        return
    x, t = inputs(schedule)
    prediction = denoiser(x, t, COND)
    alpha, sigma = (expand_to(level, x) for level in schedule.coefficients(t))
    assert prediction.x0.isfinite().all()
    terms = alpha * prediction.x0, sigma * prediction.eps
    # x0 is 1e20 where "sqrt" has nearly no signal and eps is predicted; windows blend in float32
    size = max(1.0, *(term.abs().max().item() for term in terms))
    error = (sum(terms) - x).abs().max() / size
    assert error < (1e-6 if name == "tiled" else 1e-12)


@pytest.mark.parametrize("schedule", [SCHEDULES["linear"], SCHEDULES["variance_exploding"]])
def test_an_example_does_not_depend_on_its_batch(name, schedule):
    denoiser = wrapped(name, schedule)
    x, t = inputs(schedule)
    together = denoiser(x, t, COND)
    for i in range(B):
        alone = denoiser(x[i : i + 1], t[i : i + 1], COND[i : i + 1])
        torch.testing.assert_close(alone.x0[0], together.x0[i], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(alone.eps[0], together.eps[i], rtol=1e-11, atol=1e-11)


def test_what_a_wrapper_was_given_is_left_as_it_was(name):
    schedule = SCHEDULES["linear"]
    x, t = inputs(schedule)
    cond = COND[:]
    copies = x.clone(), t.clone(), cond.vector.clone()
    first = wrapped(name, schedule)(x, t, cond)
    assert all(map(torch.equal, (x, t, cond.vector), copies))
    assert not x.requires_grad
    assert torch.equal(wrapped(name, schedule)(x, t, cond).x0, first.x0)


def test_a_wrapper_changes_the_prediction(name):
    schedule = SCHEDULES["linear"]
    x, t = inputs(schedule)
    plain, got = net(schedule)(x, t, COND), wrapped(name, schedule)(x, t, COND)
    assert got.x0.shape == got.eps.shape == x.shape
    assert (got.x0 - plain.x0).abs().max() > (1e-3 if name != "tiled" else 1e-6)


def test_a_wrapper_adds_no_state_dict_keys(name):
    model = torch.nn.Module()
    model.wrapper = wrapped(name, SCHEDULES["linear"])
    assert model.state_dict() == {}


def test_a_run_records_no_gradients(name):
    schedule = SCHEDULES["linear"]
    end = DDIM().sample(wrapped(name, schedule), NOISE, schedule=schedule, steps=3, cond=COND)
    assert end.isfinite().all()
    assert not end.requires_grad


def test_a_run_is_the_same_under_inference_mode(name):
    # what Lightning validates in
    schedule = SCHEDULES["linear"]

    denoiser = wrapped(name, schedule)

    def run():
        x = NOISE.clone()
        cond = Conditioning(vector=COND.vector.clone())
        return DDIM().sample(denoiser, x, schedule=schedule, steps=3, cond=cond)

    plain = run()
    with torch.inference_mode():
        assert torch.equal(run(), plain)


def test_a_run_never_reads_from_the_device(name):
    # tensors of the meta device have no values: to read one raises
    schedule = PublishedSchedule().double().to("meta")
    x = torch.empty(B, *SIZE, dtype=torch.float64, device="meta")
    cond = Conditioning(vector=torch.empty(B, dtype=torch.float64, device="meta"))
    denoiser = wrapped(name, schedule, device="meta")
    end = DDIM().sample(denoiser, x, schedule=schedule, steps=10, cond=cond)
    assert end.shape == x.shape
    assert end.device.type == "meta"


@pytest.mark.gpu
def test_no_evaluation_of_a_run_waits_for_the_gpu(name):
    schedule = PublishedSchedule().double().to("cuda")
    denoiser = wrapped(name, schedule, device="cuda")
    x, t = NOISE.to("cuda"), torch.full((B,), 500, device="cuda")
    denoiser(x, t, cond := COND.to("cuda"))  # kernels load, which waits
    with moment_of_run(500.0, Memory()):
        torch.cuda.set_sync_debug_mode("error")
        try:
            denoiser(x, t, cond)
        finally:
            torch.cuda.set_sync_debug_mode("default")
