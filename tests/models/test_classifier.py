"""The classifier of noisy latents: what it is given, what it answers, how it is trained."""

import math

import pytest
import torch

from ldm.config import ConfigError, without_checkpoints
from ldm.models.classifier import ClassifierConfig, LatentClassifier
from ldm.models.diffusion.assemble import LatentDiffusionConfig
from tests.models.classifiers import CLASSES, classifier, encoder, kl, loader, parameters, trainer
from tests.models.diffusion_models import batch, latent
from tests.models.test_diffusion_training import moved, snapshot

SHARED = {
    *("timesteps", "beta_schedule", "linear_start", "linear_end", "cosine_s", "given_betas"),
    *("schedule_config", "scale_factor", "scale_by_std", "latent_stats", "first_stage_config"),
}


def example(dtype=torch.float32, size=3):
    """Noisy latents, times and labels."""
    generator = torch.Generator().manual_seed(0)
    z_t = torch.randn(size, 3, 4, 4, generator=generator, dtype=dtype)
    return z_t, torch.tensor([0, 7, 19])[:size], torch.tensor([3, 0, 1])[:size]


# what guidance calls


def test_the_gradient_of_the_log_probability_is_that_of_finite_differences():
    model = classifier().double()
    z_t, t, labels = example(torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: model.log_prob(z, t, labels), z_t.requires_grad_(), fast_mode=True
    )


def test_the_probabilities_of_all_classes_sum_to_one():
    model = classifier()
    z_t, t, _ = example()
    columns = [model.log_prob(z_t, t, torch.full((3,), y)) for y in range(CLASSES)]
    total = torch.stack(columns).exp().sum(dim=0)
    torch.testing.assert_close(total, torch.ones(3))
    assert (columns[0] - columns[1]).abs().min() > 1e-3, "the classes differ"


def test_the_log_probability_is_of_float32_under_autocast_and_of_half_precision_latents():
    model = classifier()
    z_t, t, labels = example()
    want = model.log_prob(z_t, t, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.log_prob(z_t, t, labels), want)
        half = z_t.bfloat16().requires_grad_()
        found = model.log_prob(half, t, labels)
    assert found.dtype == torch.float32
    assert torch.autograd.grad(found.sum(), half)[0].isfinite().all()


def test_the_averaged_weights_answer_where_there_are_some():
    model = classifier(use_ema=True)
    z_t, t, labels = example()
    before = model.log_prob(z_t, t, labels)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(0.1)
    assert torch.equal(model.log_prob(z_t, t, labels), before)


@pytest.mark.parametrize("wrong", [-1, CLASSES])
def test_a_label_that_is_no_class_is_named(wrong):
    z_t, t, _ = example()
    with pytest.raises(ValueError, match=f"class: {wrong}; expected 0 to {CLASSES - 1}"):
        classifier().log_prob(z_t, t, torch.tensor([0, wrong, 1]))


@pytest.mark.parametrize("labels", [torch.zeros(3), torch.zeros(3, 1, dtype=torch.int64)])
def test_labels_of_another_kind_are_named(labels):
    z_t, t, _ = example()
    with pytest.raises(ValueError, match=r"expected integers \(B,\)"):
        classifier().log_prob(z_t, t, labels)


def test_the_network_sees_a_variance_exploding_process_at_unit_scale():
    schedule = {"target": "ldm.diffusion.schedule.VarianceExploding"}
    changes = {key: parameters()[key] for key in parameters() if key not in SHARED}
    model = LatentClassifier(**changes, schedule_config=schedule)
    seen = []
    model.model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    z_t, sigma = 80 * example()[0], torch.full((3,), 80.0)
    model.log_prob(z_t, sigma, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(seen[0], z_t / (1 + 80.0**2) ** 0.5)


# what it is trained on


def test_a_head_that_starts_at_zero_starts_at_the_entropy_of_a_guess():
    model = LatentClassifier(**parameters())
    run = trainer(1)
    run.fit(model, loader(4))
    assert float(run.callback_metrics["train/loss"]) == pytest.approx(math.log(CLASSES), abs=1e-6)


def test_the_latents_are_those_of_the_diffusion_model():
    options = {"first_stage_config": kl(), "scale_factor": 0.5}
    ours, theirs = classifier(**options), latent(**options)
    ours.first_stage_model.load_state_dict(theirs.first_stage_model.state_dict())
    examples = batch(side=8)
    draws = ours.draws(examples, step=5)
    z = ours.encode(ours.get_input(examples), draws)
    assert torch.equal(z, theirs.encode(theirs.get_input(examples), theirs.draws(examples, step=5)))


def test_times_and_noise_are_those_of_the_example_in_any_batch():
    model, whole, half = classifier(), batch(4), batch(2, first=2)
    one, other = (model.draws(each, step=7) for each in (whole, half))
    assert torch.equal(one.uniform("t")[2:], other.uniform("t"))
    assert torch.equal(one.normal((3, 4, 4), "eps")[2:], other.normal((3, 4, 4), "eps"))


def test_only_the_network_and_its_average_move():
    model = classifier(first_stage_config=kl(), use_ema=True)
    before = snapshot(model)
    trainer(2).fit(model, loader(side=8))
    assert moved(model, before) == {"model", "model_ema"}
    assert model.model_ema.num_updates == 2
    assert not model.first_stage_model.training


def test_two_accumulated_batches_are_one_of_twice_the_size():
    sgd = {"target": "torch.optim.SGD"}  # Adam makes full steps out of rounding
    whole, accumulated = classifier(optimizer_config=sgd), classifier(optimizer_config=sgd)
    whole.learning_rate = accumulated.learning_rate = 0.1
    before = snapshot(whole)
    trainer(3).fit(whole, loader(12, 4))
    trainer(3, accumulate_grad_batches=2).fit(accumulated, loader(12, 2))
    after = accumulated.state_dict()
    for name, want in whole.state_dict().items():
        torch.testing.assert_close(after[name], want, rtol=1e-5, atol=1e-5)
    head = "model.out.3.weight"
    assert (after[head] - before[head]).abs().max() > 1e-2, "it learned something"


def test_a_batch_with_a_label_that_is_no_class_ends_training_with_its_number():
    model = classifier(num_classes=3, unet_config=encoder(out_channels=3))
    with pytest.raises(ConfigError, match="a batch's class: 3; expected 0 to 2"):
        trainer(1).fit(model, loader(4))


def test_bf16_autocast_trains_with_a_loss_of_float32():
    model = classifier()
    run = trainer(1, precision="bf16-mixed")
    run.fit(model, loader(4))
    assert run.callback_metrics["train/loss"].dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_a_classifier_of_images_needs_no_first_stage():
    model = classifier(first_stage_config=None)
    images = model.get_input(batch())
    assert model.encode(images) is images
    trainer(1).fit(model, loader())


# what it logs


def test_validation_gives_loss_and_accuracy_overall_and_per_quarter_of_the_times():
    model = classifier(use_ema=True)
    (found,) = trainer().validate(model, loader(6), verbose=False)
    parts = ["", *(f"_t{low:03d}-{low + 4:03d}" for low in (0, 5, 10, 15))]
    names = {f"val/{name}{part}" for name in ("loss", "accuracy") for part in parts}
    assert found.keys() == names | {f"{name}_ema" for name in names}
    for name in ("loss", "accuracy"):
        quarters = [found[f"val/{name}{part}"] for part in parts[1:]]
        assert found[f"val/{name}"] == pytest.approx(sum(quarters) / 4, rel=1e-6)
        assert found[f"val/{name}_ema"] == found[f"val/{name}"], "nothing was trained"


def test_validation_does_not_depend_on_the_batch_size():
    one, other = (
        trainer().validate(classifier(), loader(6, size), verbose=False)[0] for size in (6, 4)
    )
    assert one == pytest.approx(other, rel=1e-5)


def test_the_accuracy_is_the_share_of_right_answers():
    logits = torch.tensor([[2.0, 1, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]])
    terms = classifier()._terms(logits, torch.tensor([0, 1, 2]))
    assert terms.parts["accuracy"].tolist() == [1, 1, 0]
    want = logits.exp().sum(dim=1).log() - torch.tensor([2.0, 3.0, 0.0])
    torch.testing.assert_close(terms.total, want)


# where first stage and scale come from


@pytest.fixture
def diffusion(tmp_path):
    """A latent diffusion model whose scale was measured, and its checkpoint."""
    model = latent(first_stage_config=kl(), scale_by_std=True)
    model.scale_factor.fill_(0.7)
    path = tmp_path / "diffusion.ckpt"
    torch.save({"state_dict": model.state_dict()}, path)
    return model, str(path)


def test_a_diffusion_model_brings_first_stage_and_scale(diffusion):
    model, path = diffusion
    found = LatentClassifier(
        **parameters(first_stage_config=kl(), diffusion_ckpt_path=path, scale_by_std=True)
    )
    trainer(1).fit(found, loader(4, side=8))
    assert found.scale_factor == model.scale_factor, "and nothing is measured"
    found.require_same_space(model)


def test_a_checkpoint_of_the_classifier_has_the_scale_and_the_first_stage(diffusion, tmp_path):
    model, path = diffusion
    params = parameters(first_stage_config=kl(), diffusion_ckpt_path=path)
    trained = LatentClassifier(**params)
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "classifier.ckpt")
    again = without_checkpoints(params)
    assert "diffusion_ckpt_path" not in again
    found = LatentClassifier(**again, ckpt_path=str(tmp_path / "classifier.ckpt"))
    found.require_same_space(model)


def test_a_fixed_scale_is_in_the_state_dict():
    model = classifier(scale_factor=0.18215)
    assert float(model.state_dict()["scale_factor"]) == pytest.approx(0.18215)


def test_the_scale_is_measured_on_the_first_batch():
    model = classifier(first_stage_config=kl(), scale_by_std=True)
    trainer(1).fit(model, loader(4, side=8))
    examples = batch(4, side=8)
    z = model.encode(model.get_input(examples), model.draws(examples))
    torch.testing.assert_close(z.std(), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_factor": 0.5}, r"has scale_factor 0\.7, but 0\.5 is given"),
        ({"latent_stats": "stats.json"}, "as does latent_stats; give one"),
        ({"first_stage_config": None}, "first_stage_config has none"),
    ],
)
def test_what_contradicts_the_diffusion_model_is_refused(diffusion, changes, message):
    params = parameters(first_stage_config=kl(), diffusion_ckpt_path=diffusion[1])
    with pytest.raises(ConfigError, match=f"diffusion_ckpt_path: .*{message}"):
        LatentClassifier(**params | changes)


def test_a_first_stage_of_its_own_beside_the_diffusion_models_is_refused(diffusion, tmp_path):
    model, path = diffusion
    first_stage = kl()
    first_stage["params"]["ckpt_path"] = str(tmp_path / "first.ckpt")
    torch.save({"state_dict": model.first_stage_model.state_dict()}, tmp_path / "first.ckpt")
    params = parameters(first_stage_config=first_stage, diffusion_ckpt_path=path)
    with pytest.raises(
        ConfigError, match=r"as does first_stage_config\.params\.ckpt_path; give one"
    ):
        LatentClassifier(**params)


def test_a_diffusion_model_of_a_fixed_scale_leaves_nothing_to_measure(tmp_path):
    path = str(tmp_path / "diffusion.ckpt")
    torch.save({"state_dict": latent(first_stage_config=kl()).state_dict()}, path)
    params = parameters(first_stage_config=kl(), diffusion_ckpt_path=path)
    with pytest.raises(ConfigError, match="its model has a fixed one; give that as scale_factor"):
        LatentClassifier(**params, scale_by_std=True)
    assert float(LatentClassifier(**params, scale_factor=0.3).scale_factor) == pytest.approx(0.3)


# what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 5}, r"out_channels: 4, but num_classes is 5"),
        ({"unet_config": encoder(in_channels=4)}, r"in_channels: 4, but IdentityFirstStage has"),
        ({"first_stage_config": None, "scale_factor": 0.5}, "scale_factor: 0.5, but without"),
        ({"schedule_config": {"target": "ldm.diffusion.schedule.RectifiedFlow"}}, "give one"),
        ({"num_clases": 4}, "num_clases: no such parameter; did you mean 'num_classes'"),
    ],
)
def test_parts_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        LatentClassifier(**parameters(**changes))


def test_what_it_shares_with_a_diffusion_model_has_the_same_names_and_types():
    ours, theirs = ClassifierConfig.__annotations__, LatentDiffusionConfig.__annotations__
    assert ours.keys() >= SHARED
    for key in SHARED - {"first_stage_config"}:  # required of a latent diffusion model
        assert ours[key] == theirs[key], key
