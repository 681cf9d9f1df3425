"""One process, two processes and accumulation train the same diffusion model."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data import DistributedSampler

from ldm.ranks import mean_over_ranks
from tests.models.diffusion_models import (
    ATTENDING,
    Pictures,
    by_class,
    kl,
    labels,
    latent,
    loader,
    trainer,
    unet,
)
from tests.models.processes import in_two_processes

pytestmark = pytest.mark.slow
STEPS, BATCH = 20, 4


def model_of_everything():
    """A model whose scale is measured, and whose conditioner is trained, dropped and noised.

    Every weight has a gradient: a bias vanishes in a norm of one channel per group and a key's bias
    in a softmax, where Adam would make full steps out of rounding errors. Its eps is above those
    errors for the single elements of a gradient that happen to be near zero.
    """
    network = unet(model_channels=64, **ATTENDING)
    model = latent(
        by_class(
            first_stage_config=kl(),
            scale_by_std=True,
            unet_config=network,
            cond_stage_config=labels(drop_rate=0.3),
            learn_logvar=True,
            num_timesteps_cond=5,
            optimizer_config={"target": "torch.optim.AdamW", "params": {"eps": 1e-6}},
        )
    )
    model.learning_rate = 5e-6 * BATCH
    return model


class Record(pl.Callback):
    """Loss of each optimizer step, over all its batches and ranks, and its gradients' norm."""

    def __init__(self):
        self.losses, self.norms, self.held = [], [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.held.append(outputs["loss"] * trainer.accumulate_grad_batches)
        if len(self.held) == trainer.accumulate_grad_batches:
            self.losses.append(float(mean_over_ranks(torch.stack(self.held).mean())))
            self.held = []


def fit(rank, world, accumulate, path):
    """Train on `world` processes so that every step sees the same BATCH pictures."""
    torch.set_num_threads(1)
    model, record, pictures = model_of_everything(), Record(), Pictures(12, side=8)
    fitted = trainer(
        STEPS,
        devices=world,
        strategy=DDPStrategy(process_group_backend="gloo") if world > 1 else "auto",
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        callbacks=[record],
    )
    sampler = DistributedSampler(pictures, world, rank, shuffle=False)
    size = BATCH // world // accumulate
    training = loader(12, size, side=8, sampler=sampler)
    fitted.fit(model, training)
    assert fitted.global_step == STEPS
    rest = DistributedSampler(pictures, world, rank, shuffle=False)
    (metrics,) = fitted.validate(model, loader(12, size, side=8, sampler=rest), verbose=False)
    if rank == 0:
        state = model.state_dict()
        recorded = {"losses": record.losses, "norms": record.norms, "metrics": metrics}
        torch.save({"weights": state, **recorded}, path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs")
    fit(0, 1, 1, directory / "one")
    fit(0, 1, 2, directory / "accumulated")
    in_two_processes(fit, 1, directory / "two")
    return {path.name: torch.load(path, weights_only=True) for path in directory.iterdir()}


@pytest.mark.parametrize("other", ["accumulated", "two"])
def test_losses_are_those_of_one_process_with_the_whole_batch(runs, other):
    assert len(runs["one"]["losses"]) == STEPS
    assert runs[other]["losses"] == pytest.approx(runs["one"]["losses"], rel=1e-5, abs=1e-5)
    assert runs[other]["norms"] == pytest.approx(runs["one"]["norms"], rel=1e-5)


@pytest.mark.parametrize("other", ["accumulated", "two"])
def test_weights_are_those_of_one_process_with_the_whole_batch(runs, other):
    for name, want in runs["one"]["weights"].items():
        got = runs[other]["weights"][name]
        torch.testing.assert_close(
            got, want, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_the_runs_learned_something(runs):
    started = model_of_everything().state_dict()
    ended = runs["one"]["weights"]
    assert ended["scale_factor"] != started["scale_factor"]
    for name in ("model.diffusion_model.out.2.weight", "cond_stage_model.embedding.weight"):
        assert (ended[name] - started[name]).abs().max() > 1e-4


@pytest.mark.parametrize("other", ["accumulated", "two"])
def test_validation_is_the_same_over_any_number_of_ranks(runs, other):
    assert runs["one"]["metrics"].keys() == runs[other]["metrics"].keys()
    assert runs[other]["metrics"] == pytest.approx(runs["one"]["metrics"], rel=1e-5)
