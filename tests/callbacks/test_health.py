"""A training that cannot lead anywhere as it was set up is told so at its start."""

import logging

import pytest
import torch

from ldm.callbacks.guess import loss_of_a_guess, loss_of_silence
from ldm.callbacks.health import HealthChecks, _Constancy, image_problems
from ldm.config import ConfigError
from ldm.models.diffusion.ddpm import LatentDiffusion
from tests.models.diffusion_models import (
    ATTENDING,
    Pictures,
    by_class,
    collate,
    kl,
    latent,
    loader,
    parameters,
    pixel,
    trainer,
    unet,
)
from tests.models.first_stages import tiny_kl


def noise(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


IMAGES = 2 * noise(4, 3, 8, 8) - 1
FAULTY = {
    "in [0, 1]": ((IMAGES + 1) / 2, "they seem to be in [0, 1]"),
    "too large": (3 * IMAGES, "expected [-1, 1]"),
    "of one colour": (torch.zeros(4, 3, 8, 8), "of one colour"),
    "all the same": (IMAGES[:1].repeat(4, 1, 1, 1), "the 4 images of the first batch are all"),
    "not finite": (IMAGES / 0, "not finite"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_images_are_in_range_and_differ(name):
    images, match = FAULTY[name]
    found = list(image_problems(images, "data.params.train"))
    assert match in found[0]
    assert found[0].startswith("data.params.train: ")


@pytest.mark.parametrize("images", [IMAGES, noise(4, 20, 8, 8).round()], ids=["images", "maps"])
def test_good_images_and_label_maps_are_passed(images):
    assert not list(image_problems(images, "data"))


def test_images_from_0_to_255_end_the_training():
    with pytest.raises(ConfigError, match=r"data: images .* in \[.*, 25.*divide by 127.5"):
        list(image_problems((IMAGES + 1) * 127.5, "data"))


@pytest.mark.parametrize(
    ("batches", "problem"),
    [
        ([torch.zeros(4)] * 16, "entry 'y' is the same in the first 64 examples (0)"),
        ([torch.zeros(4)] * 15, None),
        ([torch.zeros(4)] * 15 + [torch.arange(4)], None),
        ([["a cat"] * 32] * 2, "the same in the first 64 examples ('a cat')"),
        ([["a cat"] * 32, ["a dog"] * 32], None),
        ([[torch.ones(2), torch.ones(3)]] * 40, None),
    ],
)
def test_an_entry_that_is_always_the_same_is_told_once(batches, problem):
    constancy = _Constancy()
    found = [said for batch in batches if (said := constancy.update({"y": batch}))]
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]


def unfilled(**changes):
    """A model whose last layer still says 0."""
    torch.manual_seed(0)
    return LatentDiffusion(**parameters(**changes))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 1.0),
        ({"parameterization": "v"}, 1.0),
        ({"parameterization": "x0", "v_posterior": 0.0}, 1.0),
        ({"loss_type": "l1"}, (2 / torch.pi) ** 0.5),
    ],
    ids=["eps", "v", "x0", "l1"],
)
def test_the_loss_of_silence_is_what_the_equation_says(options, expected):
    mean, _ = loss_of_silence(latent(original_elbo_weight=0.0, **options))
    assert mean == pytest.approx(expected, rel=0.02)


def test_guesses_of_the_other_trainings():
    batch = collate([Pictures(4, 16)[index] for index in range(4)])
    guess = loss_of_a_guess(tiny_kl(), batch)
    assert guess == pytest.approx(0.5, abs=0.02)  # of uniform numbers in [-1, 1]
    small = loss_of_silence(pixel(parameterization="x0"), 0.5)[0]
    assert small == pytest.approx(0.25 * loss_of_silence(pixel(parameterization="x0"))[0])


# whole trainings of a few steps


class OneClass(Pictures):
    def __getitem__(self, index):
        return {**super().__getitem__(index), "class": 3}


class Bright(Pictures):
    def __getitem__(self, index):
        found = super().__getitem__(index)
        return {**found, "image": (found["image"] + 1) / 2}


def data(kind, side=4):
    return torch.utils.data.DataLoader(kind(64, side), 32, collate_fn=collate)


def said(model, batches, caplog, steps=2):
    caplog.clear()
    run = trainer(steps, callbacks=[HealthChecks()], limit_val_batches=0)
    run.fit(model, batches)
    records = [each for each in caplog.records if each.name == "ldm"]
    return [each.getMessage() for each in records if each.levelno >= logging.WARNING]


def constant_encoder():
    model = latent(by_class())
    model.cond_stage_model.embedding.weight.data.fill_(1.0)
    return model


def weighted():
    """The loss is ten times what its configuration says."""
    model = unfilled()
    step = model.training_step
    model.training_step = lambda *given: 10 * step(*given)
    return model


FAULTS = {
    "scale": (
        lambda: latent(by_class(first_stage_config=kl(), scale_factor=50.0)),
        lambda: data(Pictures, 8),
        "model.params.scale_factor: latents of the first batch have standard deviation",
    ),
    "one class": (
        lambda: latent(by_class()),
        lambda: data(OneClass),
        "data.params.train: the entry 'class' is the same in the first 64 examples (3)",
    ),
    "encoder": (
        constant_encoder,
        lambda: data(Pictures),
        "model.params.cond_stage_config: ClassEmbedder makes the same of all 32 entries 'class'",
    ),
    "first loss": (
        weighted,
        lambda: data(Pictures),
        "where a network that predicts eps and says 0",
    ),
    "range": (latent, lambda: data(Bright), "they seem to be in [0, 1]"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_with_its_path(name, caplog_ldm):
    model, batches, match = FAULTS[name]
    (found,) = said(model(), batches(), caplog_ldm)
    assert match in found


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        lambda: unfilled(),
        lambda: unfilled(parameterization="v"),
        lambda: unfilled(
            **by_class(
                first_stage_config=kl(),
                scale_by_std=True,
                unet_config=unet(**ATTENDING),
                parameterization="x0",
            )
        ),
    ],
    ids=["eps", "v", "x0"],
)
def test_nothing_is_said_of_a_good_start(model, caplog_ldm):
    assert said(model(), loader(64, 32, side=8), caplog_ldm) == []


@pytest.mark.slow
def test_looking_changes_nothing(caplog_ldm):
    weights = []
    for callbacks in ([], [HealthChecks()]):
        model = latent(by_class(first_stage_config=kl(), scale_by_std=True))
        trainer(2, callbacks=callbacks).fit(model, loader(8, 4, side=8))
        weights.append(model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
