"""The validation loss: the same numbers whenever it is computed, whole and by time."""

import pytest
import torch

from ldm.data.module import collate
from ldm.diffusion.schedule import PublishedSchedule, RectifiedFlow
from ldm.models.diffusion.ddpm import VALIDATION_SEED
from ldm.models.diffusion.validation import LossByTime
from ldm.types import LossTerms
from tests.models.diffusion_models import (
    Pictures,
    batch,
    by_class,
    kl,
    labels,
    latent,
    loader,
    trainer,
)


def terms(*values):
    simple = torch.tensor(values)
    return LossTerms(total=2 * simple, parts={"loss_simple": simple})


def validated(model, **options):
    """What a validation logs, by name."""
    loaded = loader(6, **{"batch_size": 4, **options})
    (metrics,) = trainer().validate(model, loaded, verbose=False)
    return metrics


# means by time


def test_means_are_over_examples_whatever_the_batches():
    t, values = torch.tensor([0, 5, 12, 19, 19]), (1.0, 2.0, 3.0, 4.0, 6.0)
    whole, cut = LossByTime(PublishedSchedule(20)), LossByTime(PublishedSchedule(20))
    whole.update(t, terms(*values))
    cut.update(t[:1], terms(*values[:1]))
    cut.update(t[1:], terms(*values[1:]))
    got = whole.compute()
    assert {key: float(value) for key, value in cut.compute().items()} == pytest.approx(
        {key: float(value) for key, value in got.items()}
    )
    assert got["loss_simple"] == pytest.approx(3.2)
    assert got["loss"] == pytest.approx(6.4)


def test_every_tenth_of_the_times_has_its_mean():
    losses = LossByTime(PublishedSchedule(20))
    losses.update(torch.tensor([0, 1, 2, 19]), terms(1.0, 2.0, 3.0, 7.0))
    got = losses.compute()
    buckets = {key: float(value) for key, value in got.items() if "_t0" in key}
    assert buckets == {
        "loss_simple_t000-001": 1.5, "loss_simple_t002-003": 3.0, "loss_simple_t018-019": 7.0,
    }  # fmt: skip


def test_a_thousand_times_are_ten_hundreds():
    losses = LossByTime(PublishedSchedule())
    losses.update(torch.arange(1000), terms(*[float(i // 100) for i in range(1000)]))
    got = losses.compute()
    for tenth in range(10):
        assert got[f"loss_simple_t{tenth}00-{tenth}99"] == tenth


def test_a_continuous_time_axis_is_cut_into_tenths():
    losses = LossByTime(RectifiedFlow())
    losses.update(torch.tensor([0.05, 0.95, 1.0]), terms(1.0, 2.0, 4.0))
    got = {key: float(value) for key, value in losses.compute().items()}
    assert got["loss_simple_t0-0.1"] == 1.0
    assert got["loss_simple_t0.9-1"] == 3.0


def test_the_average_has_means_of_its_own():
    losses = LossByTime(PublishedSchedule(20))
    losses.update(torch.tensor([3]), terms(1.0))
    losses.update(torch.tensor([3]), terms(5.0), "_ema")
    assert {key: float(value) for key, value in losses.compute().items()} == {
        "loss": 2.0, "loss_simple": 1.0, "loss_simple_t002-003": 1.0,
        "loss_ema": 10.0, "loss_simple_ema": 5.0, "loss_simple_t002-003_ema": 5.0,
    }  # fmt: skip


def test_computing_starts_anew():
    losses = LossByTime(PublishedSchedule(20))
    losses.update(torch.tensor([3]), terms(1.0))
    losses.compute()
    assert losses.compute() == {}
    losses.update(torch.tensor([3]), terms(9.0))
    assert losses.compute()["loss_simple"] == 9


# the model's validation


def test_every_validation_gives_the_same_numbers():
    model = latent(by_class(cond_stage_config=labels(drop_rate=0.5), first_stage_config=kl()))
    first = validated(model, side=8)
    torch.manual_seed(77)
    assert validated(model, side=8) == first
    one_by_one = validated(model, side=8, batch_size=1)
    assert one_by_one == pytest.approx(first, rel=1e-5)


def test_validation_is_the_objective_at_each_examples_own_time_and_noise():
    model = latent(by_class())
    examples = batch(6)
    draws = model.draws(examples, seed=VALIDATION_SEED)
    t = (draws.uniform("t") * 20).long()
    eps = draws.normal((3, 4, 4), "eps")
    with torch.no_grad():
        x0, cond = model.get_input(examples), model.conditioner(examples)
        want = model.objective.at(model.denoiser, x0, cond, t=t, eps=eps)
    got = validated(model)
    assert got["val/loss_simple"] == pytest.approx(float(want.parts["loss_simple"].mean()))
    assert got["val/loss"] == pytest.approx(float(want.total.mean()))
    assert got["val/loss_vlb"] == pytest.approx(float(want.parts["loss_vlb"].mean()))


def test_the_average_is_validated_beside_the_trained_weights():
    model = latent()
    same = validated(model)
    assert same["val/loss_simple_ema"] == same["val/loss_simple"]
    with torch.no_grad():
        model.model.diffusion_model.out[2].weight.mul_(2)
    changed = validated(model)
    assert changed["val/loss_simple_ema"] == same["val/loss_simple_ema"]
    assert changed["val/loss_simple"] != same["val/loss_simple"]
    assert not any("ema" in key for key in validated(latent(use_ema=False)))


def test_validation_noise_is_that_of_no_training_step():
    model, examples = latent(), batch()
    validation = model.draws(examples, seed=VALIDATION_SEED).normal((3, 4, 4), "eps")
    for step in range(3):
        assert not torch.equal(
            model.draws(examples, step=step).normal((3, 4, 4), "eps"), validation
        )


def test_the_published_monitors_are_among_what_is_logged():
    logged = validated(latent())
    assert latent().monitor == "val/loss_simple_ema"
    assert {"val/loss_simple_ema", "val/loss"} <= logged.keys()


def test_no_label_is_dropped_in_validation():
    model = latent(by_class(cond_stage_config=labels(drop_rate=0.9)))
    kept = latent(by_class())
    assert validated(model) == validated(kept)


def test_training_goes_on_as_if_validation_had_not_been():
    without, between = latent(), latent()
    trainer(4).fit(without, loader())
    trainer(4, val_check_interval=1).fit(between, loader(), loader(4))
    for name, value in without.state_dict().items():
        assert torch.equal(value, between.state_dict()[name]), name


def test_examples_without_an_identity_are_validated_too():
    model = latent()

    def nameless(items):
        return {k: v for k, v in collate(items).items() if k != "sample_id"}

    loaded = torch.utils.data.DataLoader(Pictures(6), 4, collate_fn=nameless)
    first, second = (trainer().validate(model, loaded, verbose=False) for _ in range(2))
    assert first == second
    # each batch has times of its own: two would leave eight of the ten tenths empty
    one_by_one = torch.utils.data.DataLoader(Pictures(12), 1, collate_fn=nameless)
    (metrics,) = trainer().validate(model, one_by_one, verbose=False)
    assert len([name for name in metrics if name.startswith("val/loss_simple_t")]) > 2 * 3


def test_a_test_is_a_validation_under_another_name():
    model = latent(by_class())
    (tested,) = trainer().test(model, loader(6), verbose=False)
    assert {f"val/{name.removeprefix('test/')}": value for name, value in tested.items()} == (
        validated(model)
    )
