"""One process, two processes and accumulation train the same first stage."""

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from ldm.data.module import collate
from ldm.models.optim import average_gradients
from tests.models.first_stages import FAMILY, Images
from tests.models.processes import in_two_processes

pytestmark = pytest.mark.slow
STEPS, START, BATCH = 20, 8, 4
OWN = ("r1", "lecam", "equivariance")
# every weight of this network has a gradient: a bias does not vanish in a norm of one channel per
# group or in a softmax, where Adam would make full steps out of rounding errors
NETWORK = {"ch": 64, "attn_type": "none"}
# Adam's first step is lr * g / (|g| + eps), so an eps of 1e-8 makes half a step out of the rounding
# of a g that happens to vanish: seen was 4.3e-9 in one run and -3.9e-9 in the other, where the mean
# of |g| was 6.4e-3
ADAM = {"target": "torch.optim.Adam", "params": {"betas": [0.5, 0.9], "eps": 1e-6}}


# what has state or draws: every second step with R1, two of four with transformed images
RULES = {
    "r1_weight": 1.0,
    "r1_every": 2,
    "lecam_weight": 0.1,
    "disc_augment": ["color", "translation", "cutout"],
}
EQUIVARIANCE = {"p": 0.5, "scales": [0.4, 0.9]}
RULED_STEPS = 8


class Record(pl.Callback):
    """Collects what each step logged, and the gradients that DDP reduced by itself."""

    def __init__(self):
        self.rows, self.reductions = [], []

    def on_train_start(self, trainer, module):
        if isinstance(trainer.model, DistributedDataParallel):
            trainer.model.register_comm_hook(self.reductions, counting_hook)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if not module._held:
            names = ("total_loss", "rec_loss", "d_weight", "g_loss", "disc_loss", *OWN)
            logged = trainer.callback_metrics
            self.rows.append({n: float(logged.get(f"train/{n}", 0.0)) for n in names})


def counting_hook(reductions: list, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    reductions.append(bucket.index())
    future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def fit(rank, world, kind, accumulate, path):
    """Train on `world` processes so that every step sees the same BATCH images."""
    model = FAMILY[kind]({"disc_start": START}, NETWORK, optimizer_config=ADAM)
    train(model, STEPS, rank, world, accumulate, path)


def fit_ruled(rank, world, kind, accumulate, path):
    """The same with every rule that has state or draws, in the game from the first step."""
    model = FAMILY[kind](RULES, NETWORK, optimizer_config=ADAM, equivariance=EQUIVARIANCE)
    train(model, RULED_STEPS, rank, world, accumulate, path)


def train(model, steps, rank, world, accumulate, path):
    torch.set_num_threads(1)
    model.learning_rate = 4.5e-6 * BATCH  # as published
    model.accumulate_grad_batches = accumulate
    model.gradient_clip_val = 10.0
    images, record = Images(12), Record()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy=DDPStrategy(process_group_backend="gloo") if world > 1 else "auto",
        max_steps=steps,
        max_epochs=steps,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[record],
    )
    sampler = DistributedSampler(images, world, rank, shuffle=False)
    size = BATCH // world // accumulate
    trainer.fit(model, DataLoader(images, batch_size=size, sampler=sampler, collate_fn=collate))
    assert trainer.global_step == steps
    assert record.reductions == []  # gradients are averaged once, by the module
    if rank == 0:
        torch.save({"weights": model.state_dict(), "losses": record.rows}, path)


def all_ways(training, kind, directory):
    """What each way of one training leaves: in one process, accumulated, in two processes."""
    training(0, 1, kind, 1, directory / "one")
    training(0, 1, kind, 2, directory / "accumulated")
    in_two_processes(training, kind, 1, directory / "two")
    return {p.name: torch.load(p, weights_only=True) for p in directory.iterdir()}


@pytest.fixture(scope="module", params=list(FAMILY))
def runs(request, tmp_path_factory):
    return all_ways(fit, request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("other", ["accumulated", "two"])
def test_losses_are_those_of_one_process_with_the_whole_batch(runs, other):
    assert len(runs[other]["losses"]) == STEPS
    for step, (want, got) in enumerate(
        zip(runs["one"]["losses"], runs[other]["losses"], strict=True)
    ):
        assert got == pytest.approx(want, rel=1e-5, abs=1e-5), f"step {step}"
        assert (want["d_weight"] > 0) == (step >= START)


@pytest.mark.parametrize("other", ["accumulated", "two"])
def test_weights_are_those_of_one_process_with_the_whole_batch(runs, other):
    for name, want in runs["one"]["weights"].items():
        got = runs[other]["weights"][name]
        torch.testing.assert_close(
            got, want, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.fixture(scope="module", params=list(FAMILY))
def ruled_runs(request, tmp_path_factory):
    return all_ways(fit_ruled, request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("other", ["accumulated", "two"])
def test_rules_with_state_and_draws_are_those_of_one_process_with_the_whole_batch(
    ruled_runs, other
):
    one = ruled_runs["one"]["losses"]
    assert {row["equivariance"] for row in one} == {0.0, 1.0}
    assert all(row["r1"] > 0 and row["lecam"] > 0 for row in one)
    for step, (want, got) in enumerate(zip(one, ruled_runs[other]["losses"], strict=True)):
        assert got == pytest.approx(want, rel=1e-5, abs=1e-5), f"step {step}"
    for name, want in ruled_runs["one"]["weights"].items():
        got = ruled_runs[other]["weights"][name]
        torch.testing.assert_close(
            got, want, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


def average_and_check(rank, world):
    dist.init_process_group("gloo")
    layers = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).double(), nn.Linear(2, 1))
    for number, parameter in enumerate(layers.parameters()):
        parameter.grad = torch.full_like(parameter, rank + number)
    layers[2].bias.grad = None
    average_gradients(layers.parameters())
    for number, parameter in enumerate(layers[:2].parameters()):
        assert torch.equal(parameter.grad, torch.full_like(parameter, number + 0.5))
    assert layers[2].bias.grad is None
    dist.destroy_process_group()


def test_average_of_gradients_is_their_mean_over_ranks():
    in_two_processes(average_and_check)
