"""A loss that jumps: found, and answered by going back to a checkpoint of before."""

import random
import shutil

import pytest
import pytorch_lightning as pl
import torch

from ldm.callbacks.divergence import Diverged
from ldm.callbacks.rewinding import _newest
from ldm.callbacks.spikes import FlatDetector, SpikeDetector
from ldm.cli import trainer as made
from ldm.cli.train import train
from ldm.io.atomic import digest_of
from ldm.io.manifest import Entry, record
from tests.cli.runs import unconditional, write

STEPS, BROKEN = 40, 26

DISTRIBUTIONS = {
    "narrow": lambda draw: draw.lognormvariate(0, 0.1),
    "wide": lambda draw: draw.lognormvariate(0, 0.5),
    "of one example": lambda draw: draw.lognormvariate(-3, 1.5),
    "around 0": lambda draw: draw.gauss(0, 1),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_ordinary_losses_are_no_spike(name):
    # in one run of 8 high losses, as it takes by default, there would be far fewer
    draw, detector = random.Random(0), SpikeDetector(patience=1)
    losses = (DISTRIBUTIONS[name](draw) for _ in range(20_000))
    assert not [1 for step, loss in enumerate(losses) if detector.update(step, loss)]


def test_a_falling_loss_is_no_spike():
    draw, detector = random.Random(0), SpikeDetector(patience=1)
    losses = ((0.02 + 0.999**step) * draw.lognormvariate(0, 0.4) for step in range(10_000))
    assert not [1 for step, loss in enumerate(losses) if detector.update(step, loss)]


@pytest.mark.parametrize("offset", [0.0, -2.0], ids=["positive", "with a sign"])
def test_a_loss_that_jumps_and_stays_is_found_once(offset):
    draw, detector = random.Random(0), SpikeDetector(patience=5)
    usual = [draw.lognormvariate(0, 0.2) + offset for _ in range(300)]
    found = [detector.update(n, loss) for n, loss in enumerate([*usual, *[20.0] * 30])]
    (spike,) = filter(None, found)
    assert (spike.first, spike.last) == (300, 304)
    assert spike.seen == 20.0
    assert spike.usual == pytest.approx(1.0 + offset, abs=0.1)
    assert spike.score > 8


def test_a_single_high_loss_is_forgotten():
    detector = SpikeDetector(window=20, patience=2)
    losses = [1.0] * 20 + [9.0, 1.0] * 10
    assert not any(detector.update(n, loss) for n, loss in enumerate(losses))


def test_a_detector_that_is_restored_judges_as_the_one_that_was_saved():
    draw = random.Random(0)
    losses = [draw.lognormvariate(0, 0.2) for _ in range(90)] + [50.0] * 5
    first, second = (SpikeDetector(window=50, patience=5) for _ in range(2))
    for step, loss in enumerate(losses[:92]):
        first.update(step, loss)
    second.load_state_dict(first.state_dict())
    for step, loss in enumerate(losses[92:], start=92):
        assert first.update(step, loss) == second.update(step, loss)
        assert first.state_dict() == second.state_dict()
    assert not first.state_dict()["losses"]  # the spike was found


@pytest.mark.parametrize(
    ("slope", "level", "is_flat"), [(0.0, 1.0, True), (0.0, 0.5, False), (0.1, 1.1, False)]
)
def test_a_loss_is_flat_that_neither_falls_nor_is_better_than_a_guess(slope, level, is_flat):
    draw, detector = random.Random(0), FlatDetector(400)
    losses = [level - slope * n / 1000 + draw.gauss(0, 0.02) for n in range(1000)]
    found = [seen for loss in losses if (seen := detector.update(loss, 1.0)) is not None]
    assert len(found) == int(is_flat)
    again = FlatDetector(400)
    again.load_state_dict(detector.state_dict())
    assert again.state_dict() == detector.state_dict()


# rewinds


class Broken(pl.Callback):
    """The weights are multiplied after some step, as often as it is reached, up to a limit."""

    def __init__(self, step=BROKEN, times=1):
        self.step, self.times = step, times

    def on_train_batch_start(self, trainer, model, *_):
        if trainer.global_step == self.step and self.times:
            self.times -= 1
            for parameter in model.model.parameters():
                parameter.data.mul_(3.0)


class Losses(pl.Callback):
    """What was lost in each step, the last time it was taken."""

    def __init__(self):
        self.seen, self.steps, self.rates = {}, [], {}

    def on_train_batch_start(self, trainer, *_):
        self.step = trainer.global_step
        self.steps.append(self.step)

    def on_train_batch_end(self, trainer, model, outputs, *_):
        self.seen[self.step] = float(outputs["loss"])
        self.rates[self.step] = trainer.optimizers[0].param_groups[0]["lr"]


def train_it(directory, *extra, words=(), steps=STEPS, **guard):
    """Train a small model with a guard that is quick to judge, and callbacks before it."""
    config = unconditional()
    unet = {
        "image_size": 16,
        "model_channels": 32,
        "channel_mult": [1],
        "attention_resolutions": [],
    }
    params = {
        "image_size": 16,
        "timesteps": 100,
        "unet_config": config["model"]["params"]["unet_config"],
    }
    params["unet_config"]["params"] |= unet | {"in_channels": 3, "out_channels": 3, "dropout": 0.1}
    config["model"] |= {"target": "ldm.models.diffusion.ddpm.DDPM", "params": params}
    del config["data"]["params"]["validation"]
    guard = {"window": 16, "patience": 3, "margin": 2, "threshold": 6.0, **guard}
    config["lightning"]["callbacks"] |= {"image_logger": None, "guard": {"params": guard}}
    config["lightning"]["modelcheckpoint"] = {"params": {"every_n_train_steps": 10}}
    path = write(directory / "config.yaml", config)
    with pytest.MonkeyPatch.context() as patch:
        build = made._callbacks
        patch.setattr(made, "_callbacks", lambda *a, **o: [*extra, *build(*a, **o)])
        logs = ["-l", str(directory / "logs")]
        return train([*(words or ["-b", path, *logs]), "-t", "--max_steps", str(steps)]).path


def kept(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def guard_state(run):
    return kept(run)["callbacks"]["Guard"]


def same_weights(first, second):
    first, second = kept(first)["state_dict"], kept(second)["state_dict"]
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture(scope="module")
def skipping(tmp_path_factory):
    """A run that was rewound once and has passed by the steps of the spike."""
    losses = Losses()
    return train_it(
        tmp_path_factory.mktemp("a"), Broken(), losses, on_spike="rewind_and_skip"
    ), losses


@pytest.mark.slow
def test_a_spike_is_rewound_its_steps_have_no_effect_and_training_finishes(skipping):
    run, losses = skipping
    (first, last), *more = guard_state(run)["skipped"]
    assert not more
    assert (first, last) == (BROKEN - 2, BROKEN + 2)
    assert losses.steps == [*range(last + 1), *range(20, STEPS)]
    assert guard_state(run)["num_rewinds"] == 1
    assert kept(run)["global_step"] == STEPS
    assert max(losses.seen.values()) < 3


@pytest.mark.slow
def test_a_run_that_was_rewound_is_resumed_exactly(skipping, tmp_path):
    run, _ = skipping
    place = tmp_path / "parts"
    shutil.copytree(run, place)
    points = {int(path.stem.split("-")[1]): path for path in place.glob("checkpoints/resume-*")}
    assert sorted(points) == [30, 40]
    train_it(tmp_path, words=["-r", str(points[30])])
    assert guard_state(place) == guard_state(run)
    assert same_weights(place, run)


@pytest.mark.slow
def test_the_rate_is_lowered_and_a_resumed_run_knows(tmp_path):
    losses = Losses()
    run = train_it(tmp_path, Broken(), losses, on_spike="rewind_and_lower", lower_by=0.25)
    assert guard_state(run)["skipped"] == []
    assert [losses.rates[step] for step in (19, 20, STEPS - 1)] == [1e-3, 2.5e-4, 2.5e-4]
    again = Losses()
    train_it(tmp_path, again, words=["-r", str(run)], steps=STEPS + 2)
    assert again.rates == {STEPS: 2.5e-4, STEPS + 1: 2.5e-4}


@pytest.mark.slow
def test_retries_come_to_an_end(tmp_path, caplog_ldm):
    broken = Broken(times=9)
    with pytest.raises(Diverged) as ended:
        train_it(tmp_path, broken, on_spike="rewind_and_lower", max_rewinds=2)
    assert ended.value.code == 1
    assert broken.times == 9 - 3
    said = [each.getMessage() for each in caplog_ldm.records if each.levelname == "ERROR"]
    assert len(said) == 1
    assert "after 2 rewinds" in said[0]
    assert "gradient_clip_val" in said[0]


@pytest.mark.slow
def test_by_default_a_spike_is_warned_of(tmp_path, caplog_ldm):
    run = train_it(tmp_path, Broken(), steps=BROKEN + 4)
    assert "robust standard deviations higher" in caplog_ldm.text
    assert guard_state(run)["num_rewinds"] == 0


def test_what_was_trained_anew_is_not_gone_back_to(tmp_path):
    # steps in the order of writing; 30 and 40 were taken back, 21 is of after that
    written = [(10, True), (20, True), (25, False), (30, True), (40, True), (21, True), (31, True)]
    found = []
    for time, (step, is_whole) in enumerate(written):
        path = tmp_path / f"resume-{step:09}.ckpt"
        path.write_bytes(b"%d" % step)
        size, sha256 = path.stat().st_size, digest_of(path)
        found.append(Entry(path.name, size, sha256, float(time), step, 0, is_whole))
    record(tmp_path, *found)
    newest = {step: _newest(tmp_path, step) for step in (5, 15, 20, 29, 30, 45)}
    steps = {step: path and int(path.stem.split("-")[1]) for step, path in newest.items()}
    assert steps == {5: None, 15: 10, 20: 20, 29: 21, 30: 21, 45: 31}
    (tmp_path / "resume-000000021.ckpt").write_bytes(b"12")
    assert _newest(tmp_path, 30) == tmp_path / "resume-000000020.ckpt"
