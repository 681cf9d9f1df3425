"""Guidance by gradients, where the posterior is known in closed form."""

import math

import pytest
import torch

from ldm.diffusion.denoiser import NetDenoiser
from ldm.diffusion.schedule import PublishedSchedule, RectifiedFlow
from ldm.guidance.classifier_free import ClassifierFree
from ldm.guidance.gradient import ClassifierGuided, ImageGuided, LowResolution
from ldm.guidance.interval import Interval
from ldm.samplers.ancestral import Ancestral
from ldm.samplers.heun import Heun
from ldm.tensor import expand_to
from ldm.types import Conditioning, Prediction
from tests.gaussian import GaussianDenoiser
from tests.guidance.wrappers import SCHEDULES, net

MEAN, STD, NOISE, Y = 0.7, 0.5, 0.4, -0.2  # prior N(MEAN, STD^2), y = x0 + NOISE z observed as Y
X = torch.randn(4, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
SCHEDULE = PublishedSchedule().double()


def variance_given_x_t(schedule, t, like, std=STD):
    alpha, sigma = (expand_to(level, like) for level in schedule.coefficients(t))
    return (std * sigma) ** 2 / ((alpha * std) ** 2 + sigma**2)


def times_of(schedule):
    """Four times, the noisiest of them short of pure noise."""
    levels = torch.tensor([0.01, 0.3, 0.7, 0.97], dtype=torch.float64)
    return schedule.t_clean + levels * (schedule.t_max - schedule.t_clean)


def classifier(schedule):
    """log p(y | x_t) of each image: N(y; E[x0 | x_t], Var[x0 | x_t] + NOISE^2) per pixel."""

    def log_prob(x_t, t, cond):
        mean = GaussianDenoiser(schedule, MEAN, STD)(x_t, t, cond).x0
        variance = variance_given_x_t(schedule, t, x_t) + NOISE**2
        log_density = -((Y - mean) ** 2) / (2 * variance) - (2 * math.pi * variance).log() / 2
        return log_density.sum(dim=(1, 2, 3))

    return log_prob


def posterior(schedule, scale=1.0):
    """The ideal denoiser of N(x0 | y), with a likelihood to the power `scale`."""
    precision = 1 / STD**2 + scale / NOISE**2
    mean = (MEAN / STD**2 + scale * Y / NOISE**2) / precision
    return GaussianDenoiser(schedule, mean, precision**-0.5)


def guided(schedule, scale=1.0):
    return ClassifierGuided(
        GaussianDenoiser(schedule, MEAN, STD), schedule, classifier(schedule), scale
    )


# "sqrt" has an alpha of e^-45, where alpha^2 is lost beside 1
PROPER = {name: schedule for name, schedule in SCHEDULES.items() if name != "sqrt"}


@pytest.mark.parametrize("schedule", PROPER.values(), ids=PROPER)
def test_a_gaussian_classifier_gives_the_posterior_exactly(schedule):
    t = times_of(schedule)
    got, expected = guided(schedule)(X, t, None), posterior(schedule)(X, t, None)
    torch.testing.assert_close(got.x0, expected.x0, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(got.eps, expected.eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("sampler", "schedule", "steps"),
    [
        (Heun(), PublishedSchedule(), 40),
        pytest.param(Ancestral(), PublishedSchedule(), 1000, marks=pytest.mark.slow),
        (Ancestral(), RectifiedFlow(), 250),
        (Heun(), SCHEDULES["variance_exploding"], 40),
    ],
)
def test_samples_have_the_mean_and_variance_of_the_posterior(sampler, schedule, steps):
    count = 10000
    generator = torch.Generator().manual_seed(0)
    x = schedule.prior_std * torch.randn(count, 1, 1, 1, generator=generator)

    class Draws:
        def normal(self, shape, stream):
            return torch.randn(count, *shape, generator=generator)

    draws = sampler.sample(guided(schedule), x, schedule=schedule, steps=steps, draws=Draws())
    wanted = posterior(schedule)
    mean, variance = draws.mean().item(), draws.var().item()
    # 4 standard errors
    assert abs(mean - wanted.mean) < 4 * wanted.std / count**0.5
    assert abs(variance - wanted.std**2) < 4 * wanted.std**2 * (2 / count) ** 0.5


def test_scale_0_is_the_model_alone():
    t = times_of(SCHEDULE)
    assert torch.equal(guided(SCHEDULE, 0)(X, t, None).x0, guided(SCHEDULE).denoiser(X, t, None).x0)


def test_the_change_is_linear_in_the_scale_of_each_example():
    t = times_of(SCHEDULE)
    plain = GaussianDenoiser(SCHEDULE, MEAN, STD)(X, t, None)
    one = guided(SCHEDULE)(X, t, None)
    scale = torch.tensor([0.0, 1.0, 2.5, 7.0])
    got = guided(SCHEDULE, scale)(X, t, None)
    torch.testing.assert_close(got.x0 - plain.x0, expand_to(scale, X) * (one.x0 - plain.x0))
    torch.testing.assert_close(got.eps - plain.eps, expand_to(scale, X) * (one.eps - plain.eps))


@pytest.mark.parametrize("schedule", [RectifiedFlow(), SCHEDULES["zero_terminal_snr"]], ids=repr)
def test_in_pure_noise_nothing_moves_whatever_a_network_says(schedule):
    t = torch.full((4,), schedule.t_max, dtype=torch.float64)
    inner = GaussianDenoiser(schedule, MEAN, STD)
    plain = inner(X, t, None)

    def of_the_noise(x_t, t, cond):  # a loss of this x0 has a gradient even there
        return Prediction(x0=plain.x0 + (x_t - x_t.detach()), eps=plain.eps)

    for denoiser in (
        ClassifierGuided(inner, schedule, lambda x, t, cond: x.sum(dim=(1, 2, 3))),
        ImageGuided(of_the_noise, schedule, half_square),
    ):
        got = denoiser(X, t, None)
        assert torch.equal(got.x0, plain.x0)
        assert torch.equal(got.eps, plain.eps)


def test_the_classifier_is_given_the_condition_and_gradients():
    seen = []

    def log_prob(x_t, t, cond):
        seen.append((x_t.requires_grad, torch.is_grad_enabled(), t, cond))
        return x_t.sum(dim=(1, 2, 3))

    t, cond = times_of(SCHEDULE), Conditioning(vector=torch.arange(4))
    with torch.no_grad():
        ClassifierGuided(GaussianDenoiser(SCHEDULE), SCHEDULE, log_prob)(X, t, cond)
    ((has_grad, is_enabled, time, given),) = seen
    assert has_grad
    assert is_enabled
    assert torch.equal(time, t)
    assert torch.equal(given.vector, cond.vector)


def half_square(image):
    return ((image - Y) ** 2).sum(dim=(1, 2, 3)) / (2 * NOISE**2)


@pytest.mark.parametrize("schedule", PROPER.values(), ids=PROPER)
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_a_quadratic_loss_moves_x0_by_its_variance_times_the_gradient(schedule, scale):
    t = times_of(schedule)
    inner = GaussianDenoiser(schedule, MEAN, STD)
    got, plain = ImageGuided(inner, schedule, half_square, scale)(X, t, None), inner(X, t, None)
    # sigma^2 / alpha dx0/dx_t is Var[x0 | x_t] (Tweedie's second formula)
    variance = variance_given_x_t(schedule, t, X)
    torch.testing.assert_close(got.x0, plain.x0 - scale * variance * (plain.x0 - Y) / NOISE**2)


@pytest.mark.parametrize("schedule", PROPER.values(), ids=PROPER)
def test_for_data_of_unit_variance_both_gradients_are_the_same(schedule):
    t = times_of(schedule)
    inner = GaussianDenoiser(schedule, MEAN, 1.0)
    true, cheap = (
        ImageGuided(inner, schedule, half_square, through=through)(X, t, None)
        for through in ("denoiser", "x0")
    )
    torch.testing.assert_close(cheap.x0, true.x0)
    torch.testing.assert_close(cheap.eps, true.eps)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_gradient_of_x0_has_a_value_at_every_time(schedule):
    t = torch.full((4,), schedule.t_max, dtype=torch.float64)
    inner = GaussianDenoiser(schedule, MEAN, 1.0)
    got, plain = (
        ImageGuided(inner, schedule, half_square, scale, through="x0")(X, t, None)
        for scale in (0.5, 0)
    )
    variance = variance_given_x_t(schedule, t, X, std=1.0)
    torch.testing.assert_close(got.x0, plain.x0 - 0.5 * variance * (plain.x0 - Y) / NOISE**2)


def test_the_gradient_of_x0_is_taken_without_the_network():
    recorded = []

    def denoiser(x_t, t, cond):
        recorded.append(x_t.requires_grad)
        return Prediction(x0=x_t, eps=x_t)

    with torch.no_grad():
        for through in ("x0", "denoiser"):
            ImageGuided(denoiser, SCHEDULE, half_square, through=through)(
                X, times_of(SCHEDULE), None
            )
    assert recorded == [False, True]


def test_the_gradient_is_that_of_the_decoded_image():
    def decode(z):
        return (2 * z).repeat_interleave(2, dim=2)  # each pixel counts twice

    t = times_of(SCHEDULE)
    inner = GaussianDenoiser(SCHEDULE, MEAN, STD)
    got, plain = (
        ImageGuided(inner, SCHEDULE, half_square, scale, decode)(X, t, None) for scale in (1, 0)
    )
    gradient = 2 * 2 * (2 * plain.x0 - Y) / NOISE**2
    shift = -variance_given_x_t(SCHEDULE, t, X) * gradient
    torch.testing.assert_close(got.x0 - plain.x0, shift)


@pytest.mark.parametrize("through", ["denoiser", "x0"])
def test_a_network_of_any_kind_is_differentiated(through):
    schedule, denoiser = SCHEDULE, net(SCHEDULE)
    x = X.repeat(1, 2, 1, 1)
    t, cond = times_of(schedule), Conditioning(vector=torch.ones(4, dtype=torch.float64))
    got = ImageGuided(denoiser, schedule, half_square, through=through)(x, t, cond)
    assert isinstance(denoiser, NetDenoiser)
    assert all(p.grad is None for p in denoiser.net.parameters())

    leaf = x.clone().requires_grad_()
    x0 = denoiser(leaf, t, cond).x0
    (gradient,) = torch.autograd.grad(half_square(x0).sum(), leaf if through == "denoiser" else x0)
    alpha, sigma = (expand_to(level, x) for level in schedule.coefficients(t))
    gain = sigma**2 / alpha if through == "denoiser" else sigma**2
    torch.testing.assert_close(got.x0, (x0 - gain * gradient).detach())


def test_guiding_a_large_image_by_its_small_version_brings_them_together():
    target = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = LowResolution(target)

    def distance(scale):
        denoiser = ImageGuided(GaussianDenoiser(SCHEDULE, 0.0, 0.5), SCHEDULE, loss, scale)
        return loss(Heun().sample(denoiser, x, schedule=SCHEDULE, steps=10))

    far, nearer, near = (distance(scale) for scale in (0.0, 2.0, 20.0))
    assert (nearer < 0.9 * far).all()
    assert (near < 0.2 * far).all()


def test_the_small_version_of_an_image_has_no_loss():
    image = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    small = torch.nn.functional.interpolate(image, (4, 4), mode="bicubic", antialias=True)
    torch.testing.assert_close(LowResolution(small)(image), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(
        LowResolution(small + 0.1)(image), torch.full((3,), 0.01 * 32 / 2, dtype=torch.float64)
    )


def test_guidance_in_an_interval_costs_gradients_only_there():
    calls = []

    def log_prob(x_t, t, cond):
        calls.append(t[0].item())
        return x_t.sum(dim=(1, 2, 3))

    inner = GaussianDenoiser(SCHEDULE)
    denoiser = Interval(ClassifierGuided(inner, SCHEDULE, log_prob), inner, SCHEDULE, 0.2, 0.6)
    Ancestral(temperature=0.0).sample(denoiser, X, schedule=SCHEDULE, steps=10)
    assert calls == [599, 499, 399, 299]


def test_gradients_go_around_guidance_by_the_condition():
    null = Conditioning(vector=torch.tensor([-1.0], dtype=torch.float64))
    cond = Conditioning(vector=torch.ones(4, dtype=torch.float64))
    x, t = X.repeat(1, 2, 1, 1), times_of(SCHEDULE)
    free = ClassifierFree(net(SCHEDULE), 3.0, null)
    got = ClassifierGuided(free, SCHEDULE, lambda x_t, t, cond: x_t.sum(dim=(1, 2, 3)))(x, t, cond)
    sigma = expand_to(SCHEDULE.sigma(t), x)
    torch.testing.assert_close(got.eps, free(x, t, cond).eps - sigma)


@pytest.mark.parametrize("result", [lambda x: x.sum(), lambda x: x.sum(dim=(2, 3))])
def test_other_than_one_number_per_example_is_refused(result):
    t = times_of(SCHEDULE)
    inner = GaussianDenoiser(SCHEDULE)
    with pytest.raises(ValueError, match=r"log_prob has shape .*, expected one .* \(4,\)"):
        ClassifierGuided(inner, SCHEDULE, lambda x, t, cond: result(x))(X, t, None)
    with pytest.raises(ValueError, match=r"loss of the decoded image has shape"):
        ImageGuided(inner, SCHEDULE, result)(X, t, None)


def test_a_decoder_without_gradients_is_refused():
    decode = torch.no_grad()(lambda z: 2 * z)
    for through in ("denoiser", "x0"):
        denoiser = ImageGuided(
            GaussianDenoiser(SCHEDULE), SCHEDULE, half_square, 1.0, decode, through
        )
        with pytest.raises(ValueError, match=r"gives no gradient.*torch.no_grad"):
            denoiser(X, times_of(SCHEDULE), None)


def test_an_unknown_way_for_the_gradient_is_refused():
    with pytest.raises(ValueError, match="through is 'net', expected one of"):
        ImageGuided(GaussianDenoiser(SCHEDULE), SCHEDULE, half_square, through="net")
