"""Steps whose loss or gradients are not finite leave no trace but a diagnosis."""

import copy
import json

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import DDPStrategy
from safetensors.torch import load_file
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from ldm.callbacks.divergence import Diverged
from ldm.callbacks.guard import Guard
from ldm.config import ConfigError
from ldm.data.module import collate
from ldm.safe_step import SafeStep, poison_unless_finite
from tests.models.diffusion_models import latent, loader, trainer
from tests.models.first_stages import Images, tiny_kl, tiny_vq
from tests.models.processes import in_two_processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*number of training batches.*is smaller than the logging"),
]

BAD, STEPS = 2, 4  # the step that is spoilt, and how many there are
NAN = float("nan")


class Spoilt(pl.Callback):
    """A NaN in one step: in the images, in the gradient of a parameter, or in the loss alone."""

    def __init__(self, where, steps=(BAD,), parameter=None, rank=None):
        self.where, self.steps, self.parameter, self.rank = where, steps, parameter, rank

    def _is_now(self, trainer):
        return self.step in self.steps and self.rank in (None, trainer.global_rank)

    def on_train_start(self, trainer, model):
        if self.where == "gradient":
            weight = model.get_parameter(self.parameter)
            weight.register_hook(lambda g: g * NAN if self._is_now(trainer) else g)
        if self.where == "loss":
            step = model.training_step
            model.training_step = lambda *given: (
                step(*given) + (NAN if self._is_now(trainer) else 0.0)
            )

    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        self.step = trainer.global_step  # which moves within a step of two players
        if self.where == "image" and self._is_now(trainer):
            batch["image"][0, 0, 0, 0] = NAN


class Watched(pl.Callback):
    """All that a step moves, before and after each; to be named after the guard."""

    def __init__(self):
        self.before, self.after = {}, {}

    def on_train_batch_start(self, trainer, model, *_):
        self.before.setdefault(trainer.global_step, everything(model, trainer))
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer, model, *_):
        self.after[self.step] = everything(model, trainer)


def everything(model, trainer):
    moments = [optimizer.state_dict() for optimizer in trainer.optimizers]
    return copy.deepcopy([model.state_dict(), [each["state"] for each in moments]])


def same(first, second):
    first, second = pytree.tree_flatten(first), pytree.tree_flatten(second)
    assert first[1] == second[1]
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(first[0], second[0], strict=True)
    )


def fit(model, data, directory, *callbacks, guard=(), **options):
    watched, guard = Watched(), Guard(directory / "diagnosis", **dict(guard))
    run = trainer(STEPS, callbacks=[*callbacks, guard, watched], **options)
    run.fit(model, data)
    return watched, guard, run


def pictures(**options):
    return loader(16, 2, **options)


def faces(batch_size=2):
    return DataLoader(Images(16), batch_size, collate_fn=collate)


class Idle:
    """A model that computes the gradients of step BAD and does nothing with them."""

    def optimizer_step(self, epoch, batch_idx, optimizer, closure):
        if self.trainer.global_step == BAD:
            closure()
        else:
            super().optimizer_step(epoch, batch_idx, optimizer, closure)


def idle(model):
    model.__class__ = type("IdleModel", (Idle, type(model)), {})
    return model


SPOILT = {
    "image": Spoilt("image"),
    "gradient": Spoilt("gradient", parameter="model.diffusion_model.out.2.weight"),
    "loss": Spoilt("loss"),
}


@pytest.mark.parametrize(
    ("where", "waits"), [("image", None), ("gradient", None), ("loss", None), ("loss", False)]
)
def test_a_spoilt_step_changes_nothing_and_the_run_is_one_without_it(where, waits, tmp_path):
    options = {"gradient_clip_val": 1.0}
    watched, guard, run = fit(
        latent(), pictures(), tmp_path, SPOILT[where], guard={"waits": waits}, **options
    )
    assert same(watched.before[BAD], watched.after[BAD])
    assert not same(watched.before[BAD + 1], watched.after[BAD + 1])
    assert run.global_step == STEPS
    assert (guard.total_held, guard.in_a_row) == (1, 0)
    expected, _, _ = fit(idle(latent()), pictures(), tmp_path, guard={"waits": waits}, **options)
    assert same(watched.after[STEPS - 1], expected.after[STEPS - 1])


@pytest.mark.parametrize("optimizer", ["torch.optim.SGD", "torch.optim.RMSprop"])
def test_optimizers_that_cannot_be_told_are_given_no_gradients(optimizer, tmp_path):
    config = {"target": optimizer, "params": {"momentum": 0.9, "weight_decay": 0.1}}
    model = latent(optimizer_config=config)
    watched, _, _ = fit(model, pictures(), tmp_path, SPOILT["image"])
    assert same(watched.before[BAD], watched.after[BAD])


def test_every_batch_of_an_accumulated_step_is_in_its_diagnosis(tmp_path, caplog_ldm):
    options = {"accumulate_grad_batches": 2}
    watched, _, _ = fit(latent(), pictures(), tmp_path, SPOILT["image"], **options)
    assert same(watched.before[BAD], watched.after[BAD])
    told = json.loads((tmp_path / "diagnosis" / f"step-{BAD}.json").read_text())
    assert [each["entries"]["sample_id"] for each in told["batches"]] == [[8, 9], [10, 11]]
    assert [each["batch_idx"] for each in told["batches"]] == [4, 5]
    assert (told["step"], told["epoch"], told["seed"], told["rank"]) == (BAD, 0, 23, 0)
    assert [each["loss"] for each in told["batches"]] == ["nan", "nan"]
    assert told["gradient_norm"] == "nan"
    kept = load_file(tmp_path / "diagnosis" / told["tensors"])
    assert kept["0.image"].isnan().sum() == 1
    said = [each.getMessage() for each in caplog_ldm.records if each.levelname == "WARNING"]
    assert len(said) == 1
    assert f"step {BAD} has no effect: its loss is not finite" in said[0]
    assert str(tmp_path / "diagnosis" / f"step-{BAD}.json") in said[0]


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision(precision, tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0) if precision == "16-mixed" else None
    plugin = MixedPrecision(precision, "cpu", scaler)
    watched, guard, _ = fit(latent(), pictures(), tmp_path, SPOILT["loss"], plugins=[plugin])
    assert same(watched.before[BAD], watched.after[BAD])
    assert not same(watched.before[BAD + 1], watched.after[BAD + 1])
    assert guard.total_held == 1
    if scaler is not None:
        assert scaler.get_scale() == 2.0  # it has taken note, too


@pytest.mark.parametrize(
    ("make", "waits", "accumulate"), [(tiny_kl, None, 2), (tiny_kl, False, 1), (tiny_vq, False, 2)]
)
def test_both_players_are_held_back_by_a_spoilt_image(make, waits, accumulate, tmp_path):
    model = make({"lecam_weight": 0.1}, use_ema=True)
    model.accumulate_grad_batches = accumulate
    watched, _, run = fit(model, faces(), tmp_path, SPOILT["image"], guard={"waits": waits})
    assert same(watched.before[BAD], watched.after[BAD])
    assert not same(watched.before[BAD + 1], watched.after[BAD + 1])
    assert run.global_step == STEPS


@pytest.mark.parametrize("gan_forward", ["shared", "published"])
def test_a_player_is_held_back_alone_where_the_other_is_well(gan_forward, tmp_path):
    name = "loss.discriminator.main.0.weight"
    model = tiny_kl({"lecam_weight": 0.1}, use_ema=True, gan_forward=gan_forward)
    watched, guard, _ = fit(model, faces(), tmp_path, Spoilt("gradient", parameter=name))
    (before, moments), (after, moved) = watched.before[BAD], watched.after[BAD]
    players = {True: [], False: []}
    for key, value in after.items():
        if key in dict(model.named_parameters()) and model.get_parameter(key).requires_grad:
            players["discriminator" in key].append(torch.equal(before[key], value))
    assert all(players[True])
    assert not all(players[False])
    assert same(moments[1], moved[1])
    assert not same(moments[0], moved[0])
    assert same(before["loss.lecam.real"], after["loss.lecam.real"])
    assert guard.total_held == 1


def test_training_ends_when_every_step_is_spoilt(tmp_path, caplog_ldm):
    spoilt = Spoilt("image", steps=range(1, 9))
    with pytest.raises(Diverged) as ended:
        fit(latent(), pictures(), tmp_path, spoilt, guard={"max_skips": 3, "max_dumps": 2})
    assert ended.value.code == 1
    (said,) = (each.getMessage() for each in caplog_ldm.records if each.levelname == "ERROR")
    assert "the last 3 steps to step 4 had losses or gradients that are not finite" in said
    assert "model.learning_rate" in said
    written = sorted(path.name for path in (tmp_path / "diagnosis").iterdir())
    assert written == [f"step-{n}.{kind}" for n in (1, 2) for kind in ("json", "safetensors")]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended")
def test_what_was_held_back_is_known_to_a_resumed_run(tmp_path):
    _, guard, run = fit(latent(), pictures(), tmp_path, SPOILT["image"])
    path = tmp_path / "last.ckpt"
    run.save_checkpoint(path)
    again = Guard(tmp_path)
    run = trainer(STEPS + 1, callbacks=[again])
    run.fit(latent(), pictures(), ckpt_path=path, weights_only=True)
    assert again.total_held == guard.total_held == 1
    assert again.num_dumps == 1
    assert list(again.spikes._losses)[:3] == list(guard.spikes._losses)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_skips": 0}, "max_skips: 0; expected 1"),
        ({"on_spike": "rewind"}, "on_spike: 'rewind'; expected one of warn, rewind_and_skip"),
        ({"lower_by": 2.0}, "lower_by: 2.0"),
    ],
)
def test_options_out_of_range_are_refused(options, match, tmp_path):
    with pytest.raises(ConfigError, match=match):
        Guard(tmp_path, **options)


def test_a_norm_that_overflows_is_not_finite():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.full((3,), 3e38)
    safe = SafeStep()
    assert safe.judge(optimizer).isinf()
    assert weight.grad is None
    assert safe.any_held is True


@pytest.mark.parametrize("loss", [1.0, NAN, float("inf")])
def test_a_loss_that_is_not_finite_poisons_a_gradient_and_a_finite_one_none(loss):
    weights = [torch.nn.Parameter(torch.ones(n)) for n in (3, 2)]
    for weight in weights:
        weight.grad = torch.full_like(weight, 0.1)
    poison_unless_finite(weights, torch.tensor(loss))
    assert torch.equal(weights[0].grad, torch.full((3,), 0.1))
    assert weights[1].grad.isnan().all() == (loss != 1.0)
    assert loss != 1.0 or torch.equal(weights[1].grad, torch.full((2,), 0.1))


def both_skip(rank, world, directory, kind):
    """The second process alone has the NaN."""
    torch.set_num_threads(1)
    model, data = (latent(), pictures()) if kind == "latent" else (tiny_kl(use_ema=True), faces())
    where = "loss" if kind == "latent" else "image"
    strategy = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    options = {"strategy": strategy, "devices": world, "use_distributed_sampler": True}
    watched, guard, _ = fit(model, data, directory, Spoilt(where, rank=1), **options)
    assert same(watched.before[BAD], watched.after[BAD])
    assert not same(watched.before[BAD + 1], watched.after[BAD + 1])
    assert guard.total_held == 1
    torch.save(model.state_dict(), directory / f"{rank}.pt")


@pytest.mark.parametrize("kind", ["latent", "first"])
def test_both_processes_are_held_back_by_the_nan_of_one(kind, tmp_path):
    in_two_processes(both_skip, tmp_path, kind)
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    assert same(first, second)
    dumped = sorted(path.name for path in (tmp_path / "diagnosis").glob("*.json"))
    assert dumped == [f"step-{BAD}-rank-1.json", f"step-{BAD}.json"]
    told = [json.loads((tmp_path / "diagnosis" / name).read_text()) for name in dumped]
    losses = [each["batches"][0]["loss"] for each in told]
    assert losses[0] == "nan"
    assert kind == "first" or isinstance(losses[1], float)
