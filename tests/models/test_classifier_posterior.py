"""Two Gaussian classes, whose posterior p(y | z_t) is known: the classifier gives and finds it.

Class y has images of one number, x_0 ~ N(m_y, s^2) with m_0 = -m and m_1 = m. With noise,
x_t ~ N(alpha m_y, v) with v = alpha^2 s^2 + sigma^2, and so, of equally many examples of each,

    log p(1 | x_t) - log p(0 | x_t) = 2 alpha m x_t / v.
"""

import math

import pytest
import torch
from torch import nn

from ldm.models.classifier import LatentClassifier
from tests.models.classifiers import PROCESS, loader_of, trainer

MEAN, STD = 0.8, 0.5
TIMES = 4
SCHEDULE = PROCESS | {"timesteps": TIMES}


class LinearByTime(nn.Module):
    """Logits of one number: a line of its own for every time."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(TIMES, 2))
        self.offset = nn.Parameter(torch.zeros(TIMES, 2))

    def forward(self, x, timesteps):
        return self.slope[timesteps] * x.flatten(1) + self.offset[timesteps]


def gaussian_classifier(**options):
    return LatentClassifier(unet_config=LinearByTime(), num_classes=2, **SCHEDULE, **options)


def log_odds_per_unit(schedule):
    """2 alpha m / v at each time, (T,)."""
    alpha, sigma = schedule.coefficients(torch.arange(TIMES))
    return 2 * alpha * MEAN / (alpha**2 * STD**2 + sigma**2)


def exact_classifier():
    """The classifier whose network is the posterior."""
    model = gaussian_classifier()
    with torch.no_grad():
        model.model.slope[:, 1] = log_odds_per_unit(model.schedule)
    return model


def examples(count, seed=0):
    """Images of one pixel and their classes, as many of each."""
    labels = torch.arange(count) % 2
    noise = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    x = (2 * labels - 1) * MEAN + STD * noise
    return [
        {"image": x[i].reshape(1, 1, 1), "class_label": int(labels[i]), "sample_id": i}
        for i in range(count)
    ]


def test_the_log_probability_of_an_exact_network_is_the_posterior_by_densities():
    model, x = exact_classifier(), torch.linspace(-3, 3, 13).double()
    for time in range(TIMES):
        t = torch.full((13,), time)
        alpha, sigma = (float(level[0]) for level in model.schedule.coefficients(t))
        std = math.sqrt(alpha**2 * STD**2 + sigma**2)
        joint = torch.stack(
            [torch.distributions.Normal(alpha * m, std).log_prob(x) for m in (-MEAN, MEAN)]
        )
        want = joint - joint.logsumexp(dim=0)
        for label in (0, 1):
            found = model.log_prob(x.float().reshape(-1, 1, 1, 1), t, torch.full((13,), label))
            torch.testing.assert_close(found.double(), want[label], rtol=1e-5, atol=1e-6)


def test_the_gradient_of_an_exact_network_is_the_difference_of_the_scores():
    """Of log p(x | y) and log p(x), here p(0 | x) 2 alpha m / v for y = 1."""
    model, t = exact_classifier(), torch.arange(TIMES)
    x = torch.linspace(-2, 2, TIMES).reshape(-1, 1, 1, 1).requires_grad_()
    (found,) = torch.autograd.grad(model.log_prob(x, t, torch.ones(TIMES).long()).sum(), x)
    slope = log_odds_per_unit(model.schedule)
    want = slope * torch.sigmoid(-slope * x.detach().flatten())
    torch.testing.assert_close(found.flatten(), want, rtol=1e-5, atol=1e-6)


def test_validation_of_an_exact_network_has_the_accuracy_of_bayes():
    """Phi(alpha m / sqrt(v)) at each time, and so in each quarter of the times."""
    model, count = exact_classifier(), 2000
    (found,) = trainer().validate(model, loader_of(examples(count), 500), verbose=False)
    alpha, sigma = model.schedule.coefficients(torch.arange(TIMES))
    z = alpha * MEAN / (alpha**2 * STD**2 + sigma**2).sqrt()
    right = torch.distributions.Normal(0, 1).cdf(z).reshape(4, -1).mean(dim=1)
    for quarter, want in enumerate(right.tolist()):
        low = quarter * TIMES // 4
        share = found[f"val/accuracy_t{low:03d}-{low + TIMES // 4 - 1:03d}"]
        assert share == pytest.approx(want, abs=4 * math.sqrt(want * (1 - want) / count))
    assert right[0] - right[3] > 0.1, "noise makes it harder"


@pytest.mark.slow
def test_training_finds_the_posterior():
    steps = 200
    rates = {"warm_up_steps": 0, "max_decay_steps": steps, "lr_start": 1.0, "lr_max": 1.0}
    decay = {
        "target": "ldm.lr_scheduler.LambdaWarmUpCosineScheduler",
        "params": rates | {"lr_min": 0.0},
    }
    model = gaussian_classifier(scheduler_config=decay)
    model.learning_rate = 0.1
    trainer(steps).fit(model, loader_of(examples(4000), 200))
    x, t = torch.linspace(-2, 2, 9).repeat(TIMES), torch.arange(TIMES).repeat_interleave(9)
    labels = torch.ones(len(x), dtype=torch.int64)
    shaped = x.reshape(-1, 1, 1, 1)
    found = model.log_prob(shaped, t, labels).exp()
    want = exact_classifier().log_prob(shaped, t, labels).exp()
    assert (want - 0.5).abs().max() > 0.49, "a guess would be far off"
    torch.testing.assert_close(found, want, rtol=0, atol=0.05)
