"""Training of the second stage: what moves, how often, and what it is given."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, IterableDataset

from ldm.config import ConfigError
from ldm.data.module import collate
from ldm.diffusion.times import LossAware, Uniform
from ldm.models.diffusion.ddpm import LatentDiffusion
from tests.models.diffusion_models import (
    Pictures,
    batch,
    by_class,
    kl,
    labels,
    latent,
    loader,
    parameters,
    pixel,
    trainer,
)


def moved(model, before):
    """Top-level parts of a model whose parameters are not as before."""
    return {
        name.split(".")[0]
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, before[name])
    }


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def trained(model, steps=2, **options):
    trainer(steps, **options).fit(model, loader())
    return model


# what moves


@pytest.mark.filterwarnings("ignore:.*barebones=True")
def test_a_trainer_that_logs_nothing_trains():
    run = pl.Trainer(accelerator="cpu", max_steps=2, barebones=True)
    run.fit(latent(), loader())
    assert run.global_step == 2


def test_only_the_network_and_its_average_move():
    model = latent(by_class(first_stage_config=kl(), image_size=4, cond_stage_trainable=False))
    before = snapshot(model)
    trainer(2).fit(model, loader(side=8))
    assert moved(model, before) == {"model", "model_ema"}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_beside_a_fused_optimizer(precision):
    config = {"target": "torch.optim.SGD", "params": {"fused": True}}
    model = pixel(use_ema=False, optimizer_config=config)
    model.learning_rate = 1.0
    before = snapshot(model)
    trained(model, 1, gradient_clip_val=1e-2, precision=precision)
    after = snapshot(model)
    moves = torch.stack([(after[name] - before[name]).norm() for name in before])
    assert moves.norm().item() == pytest.approx(1e-2, rel=1e-3)


def test_a_trained_conditioner_moves_with_the_network():
    model = latent(by_class())
    before = snapshot(model)
    assert moved(trained(model), before) == {"model", "model_ema", "cond_stage_model"}


def test_a_learned_log_variance_moves_with_the_network():
    model = latent(learn_logvar=True)
    before = snapshot(model)
    assert moved(trained(model), before) == {"model", "model_ema", "logvar"}


def test_a_model_of_pixels_trains_without_any_first_stage():
    model = pixel()
    before = snapshot(model)
    assert moved(trained(model), before) == {"model", "model_ema"}


@pytest.mark.parametrize("is_trained", [True, False])
def test_a_conditioner_has_gradients_and_an_optimizer_only_when_it_is_trained(is_trained):
    model = latent(by_class(cond_stage_trainable=is_trained, cond_stage_config=labels()))
    examples = batch()
    terms = model.objective(
        model.denoiser, model.encode(model.get_input(examples)), model.conditioner(examples),
        draws=model.draws(examples),
    )  # fmt: skip
    terms.total.mean().backward()
    table = model.cond_stage_model.embedding.weight
    optimizer = model.configure_optimizers()
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert (table.grad is not None) is is_trained
    assert (id(table) in optimized) is is_trained
    assert table.requires_grad is is_trained
    assert {id(p) for p in model.model.parameters()} <= optimized
    assert len(optimized) == len(list(model.model.parameters())) + is_trained


def test_frozen_parts_stay_in_evaluation_mode():
    model = latent(by_class(first_stage_config=kl(), cond_stage_trainable=False)).train()
    assert model.model.training
    assert not model.first_stage_model.training
    assert not model.cond_stage_model.training
    assert latent(by_class()).train().cond_stage_model.training


@pytest.mark.slow
def test_the_loss_of_one_repeated_batch_falls():
    model = latent(by_class())
    model.learning_rate = 1e-3
    with torch.no_grad():
        before = loss_of(model)
    trainer(40).fit(model, loader(4))
    with torch.no_grad():
        assert loss_of(model) < 0.7 * before


def loss_of(model):
    """Mean loss of one batch at the same times and noise."""
    examples = batch()
    z, cond = model.encode(model.get_input(examples)), model.conditioner(examples)
    return model.objective(model.denoiser, z, cond, draws=model.draws(examples)).total.mean()


# how often


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_updated_once_per_optimizer_step(accumulate):
    model = latent()
    trainer(3, accumulate_grad_batches=accumulate).fit(model, loader(24))
    assert model.model_ema.num_updates == 3


def test_without_an_average_the_trained_weights_stand_for_it():
    model = trained(latent(use_ema=False))
    assert model.model_ema is None
    assert model.ema_denoiser.net is model.model
    assert not any(key.startswith("model_ema") for key in model.state_dict())


class Rates(pl.Callback):
    """Learning rate of each step, and the gradient norms that were logged."""

    def __init__(self):
        self.rates, self.norms = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.norms.append("train/grad_norm" in trainer.logged_metrics)


def test_the_learning_rate_follows_its_schedule_per_optimizer_step():
    schedule = {
        "target": "ldm.lr_scheduler.LambdaLinearScheduler",
        "params": {
            "warm_up_steps": [4], "cycle_lengths": [100],
            "f_start": [0.0], "f_max": [1.0], "f_min": [1.0],
        },
    }  # fmt: skip
    model = latent(scheduler_config=schedule)
    model.learning_rate, rates = 0.4, Rates()
    trainer(4, accumulate_grad_batches=2, callbacks=[rates]).fit(model, loader(32))
    assert rates.rates[1::2] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_adamw_is_the_optimizer_unless_another_is_named():
    optimizer = latent().configure_optimizers()
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["weight_decay"] == 0.01
    assert optimizer.defaults["fused"]
    named = {"target": "torch.optim.SGD", "params": {"momentum": 0.5}}
    assert latent(optimizer_config=named).configure_optimizers().defaults["momentum"] == 0.5


def test_gradients_that_are_scaled_are_not_left_to_a_fused_optimizer():
    model = latent()
    model.trainer = SimpleNamespace(precision="16-mixed")  # which needs a GPU to run
    assert not model.configure_optimizers().defaults["fused"]


def test_the_gradient_norm_is_logged_in_the_steps_that_are_written():
    seen = []

    class Written(pl.Callback):
        def on_before_zero_grad(self, trainer, module, optimizer):
            seen.append(trainer.callback_metrics.get("train/grad_norm"))

    trainer(6, callbacks=[Written()], log_every_n_steps=3).fit(latent(), loader(48))
    values = [None if value is None else float(value) for value in seen]
    assert values[:3] == [None, None, None]
    assert values[3] == values[4] == values[5] is not None


# what it is given


def test_an_example_is_given_the_same_times_and_noise_in_any_batch():
    model = latent()
    whole, half = batch(4), batch(2, first=2)
    for draw in ("t", "eps"):
        a, b = (
            d.uniform(draw) if draw == "t" else d.normal((3, 4, 4), draw)
            for d in (model.draws(whole, step=7), model.draws(half, step=7))
        )
        assert torch.equal(a[2:], b)
    later = model.draws(whole, step=8)
    assert not torch.equal(later.uniform("t"), model.draws(whole, step=7).uniform("t"))


def test_examples_without_an_identity_are_numbered_by_rank_and_batch():
    examples = batch()
    del examples["sample_id"]
    assert latent().draws(examples, 2).keys == ["0/2/0", "0/2/1", "0/2/2", "0/2/3"]


def test_uint8_images_are_scaled_to_minus_one_to_one():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 2, 2, 3)
    got = latent().get_input({"image": images})
    torch.testing.assert_close(got[0, :, 0, 0], torch.tensor([-1, -0.6, 1]))


def test_a_kl_first_stage_is_sampled_in_training_and_taken_at_its_mode_without_draws():
    model = latent(first_stage_config=kl(), scale_factor=0.5)
    examples = batch(side=8)
    images, draws = model.get_input(examples), model.draws(examples)
    posterior = model.first_stage_model.encode(images)
    noise = draws.normal((3, 4, 4), "posterior")
    assert torch.equal(model.encode(images), 0.5 * posterior.mode())
    assert torch.equal(model.encode(images, draws), 0.5 * posterior.sample(noise))


# the scale of the latents


def test_the_scale_gives_the_first_batch_unit_deviation():
    model = latent(first_stage_config=kl(), scale_by_std=True)
    examples = batch(4, side=8)
    trainer(1).fit(model, loader(4, side=8))
    z = model.encode(model.get_input(examples), model.draws(examples))
    torch.testing.assert_close(z.std(), torch.tensor(1.0))
    assert model.scale_factor != 1


def test_the_scale_is_measured_over_all_batches_of_an_optimizer_step():
    whole, accumulated = (latent(first_stage_config=kl(), scale_by_std=True) for _ in range(2))
    trainer(1).fit(whole, loader(4, side=8))
    trainer(1, accumulate_grad_batches=2).fit(accumulated, loader(4, 2, side=8))
    torch.testing.assert_close(whole.scale_factor, accumulated.scale_factor, rtol=1e-6, atol=0)


def test_the_scale_of_a_data_set_that_only_iterates_is_measured_too():
    class Stream(IterableDataset):
        def __iter__(self):
            pictures = Pictures(4, side=8)
            return (pictures[index] for index in range(4))

    streamed, indexed = (latent(first_stage_config=kl(), scale_by_std=True) for _ in range(2))
    trainer(1).fit(indexed, loader(4, side=8))
    trainer(1).fit(streamed, DataLoader(Stream(), 4, collate_fn=collate))
    assert torch.equal(streamed.scale_factor, indexed.scale_factor)


def test_a_measured_scale_is_said_once(caplog_ldm):
    model = latent(first_stage_config=kl(), scale_by_std=True)
    model.measure_scale([batch(side=8)])
    assert caplog_ldm.text.count("latents have standard deviation") == 1


# no waiting for the device


class NoReads(TorchDispatchMode):
    """Raises where a tensor's value becomes a Python number: a GPU would be waited for."""

    FORBIDDEN = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.FORBIDDEN:
            raise AssertionError(f"{func} reads a tensor")
        return func(*args, **(kwargs or {}))


class Guarded(pl.Callback):
    """Holds every step from its batch to its average under `NoReads`."""

    def __init__(self):
        self.steps = 0

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.guard = NoReads()
        self.guard.__enter__()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.guard.__exit__(None, None, None)
        self.steps += 1

    def on_exception(self, trainer, module, exception):
        self.guard.__exit__(None, None, None)


class Reading(Uniform):
    """A sampler of times that looks at the losses."""

    def update(self, t, losses):
        assert float(losses.detach().mean()) > 0


def with_times(times):
    params = parameters()
    model = latent(params)
    model.objective = type(model.objective)(times=times)
    if isinstance(times, torch.nn.Module):
        model.times = times
    return model


MODELS = {
    "uncond": latent,
    "class with dropout": lambda: latent(by_class(cond_stage_config=labels(drop_rate=0.5))),
    "kl and learned variance": lambda: latent(
        first_stage_config=kl(), learn_logvar=True, original_elbo_weight=0.1
    ),
    "noised condition": lambda: latent(by_class(num_timesteps_cond=5)),
    "loss-aware times": lambda: with_times(LossAware(20)),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_training_step_reads_nothing_back(kind, clip):
    model, guarded = MODELS[kind](), Guarded()
    side = 8 if "kl" in kind else 4
    steps = trainer(3, callbacks=[guarded], gradient_clip_val=clip, log_every_n_steps=1)
    steps.fit(model, loader(12, side=side))
    assert guarded.steps == 3


def test_the_guard_finds_a_step_that_reads():
    with pytest.raises(AssertionError, match=r"_local_scalar_dense.* reads a tensor"):
        trainer(1, callbacks=[Guarded()]).fit(with_times(Reading()), loader())


@pytest.fixture
def clip(tmp_path):
    """A frozen text encoder of width 8, without tokenizer and weights."""
    from transformers import CLIPTextConfig

    CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        vocab_size=9, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    ).save_pretrained(tmp_path)  # fmt: skip
    params = {"version": str(tmp_path), "key": "caption"}
    return {"target": "ldm.conditioning.text.FrozenCLIPEmbedder", "params": params}


def test_a_frozen_encoder_stays_frozen_beside_one_that_is_trained(clip):
    model = LatentDiffusion(**by_class(cond_stage_config=[clip, labels()]))
    frozen, trained = model.cond_stage_model
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in trained.parameters())


def test_a_frozen_text_encoder_cannot_be_trained(clip):
    params = by_class(cond_stage_config=clip)
    with pytest.raises(ConfigError, match="FrozenCLIPEmbedder cannot be trained"):
        LatentDiffusion(**params)
