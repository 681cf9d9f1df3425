"""Trainings that are killed under one division into processes and batches, and go on in another."""

from __future__ import annotations

import csv
import json
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cli.runs import first_stage, second_stage, write
from tests.forked import Child, ForkServer, Order
from tests.lives import gone

STEPS = 4  # optimizer steps, 2 to an epoch
LIMIT = 400  # s that a start may take, many times what it does
_LEFT_OVER = 5  # samples of an epoch that fill no step
# half a step of Adam is made of the rounding of a gradient that vanishes, unless eps is above it
_ADAM = {"target": "torch.optim.Adam", "params": {"betas": [0.5, 0.9], "eps": 1e-6}}


@dataclass(frozen=True)
class Layout:
    """A division of a step's samples: processes, samples of one in a batch, loaders of each."""

    processes: int
    micro: int
    workers: int = 0

    def words(self, samples: int) -> list[str]:
        """The command line of a step of so many samples."""
        batches, rest = divmod(samples, self.processes * self.micro)
        assert not rest, f"{self} does not divide {samples}"
        return [
            *("--accelerator", "cpu", "--devices", str(self.processes)),
            *("--accumulate_grad_batches", str(batches)),
            f"data.params.batch_size={self.micro}",
            f"data.params.num_workers={self.workers}",
        ]

    def __str__(self) -> str:
        return f"{self.processes} x {self.micro}, {self.workers} loaders"


def configuration(stage: str, samples: int) -> dict[str, Any]:
    """A tiny training without dropout, which is a process's own, and of an even gradient.

    Every weight has a gradient: a bias vanishes in a norm of one channel per group.
    """
    config = {"first": first_stage, "second": second_stage}[stage]()
    model, data = config["model"], config["data"]["params"]
    params = model["params"]
    # a first stage's game makes more of a rounding; this is the published rate for 4 images
    model["learning_rate"] = {"first": 2e-5, "second": 2e-4}[stage]
    params["optimizer_config"] = _ADAM
    params["use_ema"] = True
    if stage == "first":
        params["ddconfig"] |= {"dropout": 0.0, "ch": 64, "ch_mult": [1, 1]}
        params["lossconfig"]["params"] |= {"disc_start": 1, "lecam_weight": 0.1, "r1_weight": 1.0}
    else:
        unet = {
            "dropout": 0.0,
            "model_channels": 64,
            "channel_mult": [1],
            "attention_resolutions": [1],
        }
        params["unet_config"]["params"] |= unet
        params["first_stage_config"]["params"]["ddconfig"] |= {"dropout": 0.0}
        params["cond_stage_config"]["params"]["drop_rate"] = 0.3
    data["train"]["params"]["length"] = 2 * samples + _LEFT_OVER
    data["validation"]["params"]["length"] = 5  # not the same number for every process
    lightning = config["lightning"]
    lightning["trainer"] |= {"max_steps": STEPS, "gradient_clip_val": 1.0}
    lightning["modelcheckpoint"] = {"params": {"every_n_train_steps": 1}}
    # health looks at the first batch of each start, and draws for that, too
    lightning["callbacks"] = {"image_logger": None, "health": None}
    return config


@dataclass
class Record:
    """What a training saw and came to.

    ids: of the samples of each step, sorted.
    draws: every random number by (step, sample, what it is for): a hash of noise, or the value.
    losses: by step and name, the mean over all of the step's samples.
    """

    ids: dict[int, list[int]] = field(default_factory=dict)
    draws: dict[tuple[int, int, str], str] = field(default_factory=dict)
    losses: dict[tuple[int, str], float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Training:
    """A training in a directory whose starts may have other layouts.

    samples: of an optimizer step, whatever the layout.
    """

    def __init__(self, server: ForkServer, stage: str, directory: Path, samples: int) -> None:
        self.server, self.directory, self.samples = server, directory, samples
        directory.mkdir(parents=True)
        config = configuration(stage, samples)
        self.config = write(directory / "config.yaml", config)
        self.starts = self.kills = 0

    @property
    def run(self) -> Path | None:
        """The run directory, once there is a checkpoint in it."""
        return next((path.parents[1] for path in self.directory.glob(f"logs/*/{_LAST}")), None)

    def start(self, layout: Layout, *, killed_after: int | None = None, delay: float = 0) -> bool:
        """Train under a layout to the end, or until a kill; returns whether that came in time.

        killed_after: steps, the checkpoint of which is waited for, and then `delay` seconds.
        """
        run = self.run
        begin = ["-t", "-r", str(run)] if run else ["-t", "-b", self.config]
        children = self._children([*begin, *layout.words(self.samples)], layout.processes)
        self.starts += 1
        if killed_after is not None:
            while not self._is_saved(killed_after) and children[0].wait(0) is None:
                time.sleep(0.02)
            time.sleep(delay)
            for child in children:
                child.wait(0)
                child.kill()
        codes = [child.wait(LIMIT) for child in children]
        assert all(gone(child.pid) for child in children), "loaders are left"
        if killed_after is not None and -9 in codes:
            self.kills += 1
            return True
        assert codes == [0] * len(codes), f"exit codes {codes}, see {self.directory}/said"
        return False

    def _children(self, argv: list[str], processes: int) -> list[Child]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(processes):
            group = {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "WORLD_SIZE": str(processes),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(processes),
                "GROUP_RANK": "0",
                "TORCHELASTIC_RUN_ID": "test",  # tells Lightning that the processes are there
            }
            path = self.directory / f"record-{self.starts:03}-{rank}.jsonl"
            order = Order(
                argv,
                str(self.directory),
                str(self.directory / f"said-{rank}.txt"),
                before=[("tests.recording.record", (str(path),))],
                environment=group if processes > 1 else {},
            )
            children.append(self.server.start(order))
        return children

    def _is_saved(self, step: int) -> bool:
        found = self.directory.glob("logs/*/checkpoints/resume-*.ckpt")
        return any(int(path.stem.split("-")[1]) >= step for path in found)

    def record(self) -> Record:
        """What all starts saw; of a step that several took, the last one counts for its samples."""
        found = Record()
        seen: dict[int, list[tuple[str, list[int]]]] = {}
        losses: dict[tuple[int, str], dict[int, float]] = {}
        for path in sorted(self.directory.glob("record-*.jsonl")):
            start = path.stem.split("-")[1]
            for row in _rows(path):
                step, ids = row["step"], row["ids"]
                if row["what"] == "batch":
                    seen.setdefault(step, []).append((start, ids))
                elif row["what"] == "loss":
                    each = losses.setdefault((step, "loss"), {})
                    each.update(zip(ids, row["values"], strict=True))
                else:
                    _add(found, row)
        for step, batches in seen.items():
            last = max(start for start, _ in batches)
            found.ids[step] = sorted(
                each for start, ids in batches if start == last for each in ids
            )
        means = {key: sum(each.values()) / len(each) for key, each in losses.items()}
        found.losses = means | self._logged()
        return found

    def _logged(self) -> dict[tuple[int, str], float]:
        """What is a mean over all samples of a step, or of the validation set."""
        assert self.run is not None
        found = {}
        paths = self.run.glob("metrics/*/metrics.csv")
        for path in sorted(paths, key=lambda path: path.stat().st_ctime):
            with open(path, newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    for name, value in row.items():
                        if value and _is_mean(name):
                            found[int(row["step"]), name] = float(value)
        return found


_LAST = "checkpoints/last.ckpt"
_OF_TRAINING = {f"train/{name}_loss" for name in ("total", "rec", "kl", "disc")}


def _is_mean(name: str) -> bool:
    """A first stage averages over processes and batches; what the others log is of one batch.

    Losses only: what the game adds to them in validation is near 0, and measures of pictures or of
    the latents of a batch are none.
    """
    group, _, loss = name.rpartition("/")
    is_loss = loss.endswith("_loss") or loss.startswith("loss")
    return name in _OF_TRAINING or (group.startswith("val") and is_loss and loss != "g_loss")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):  # else the process died while it wrote
            yield json.loads(line)


def _add(record: Record, row: dict[str, Any]) -> None:
    for sample, value in zip(row["ids"], row["values"], strict=True):
        key = (row["step"], sample, row["what"])
        if record.draws.setdefault(key, value) != value:
            record.problems.append(f"drawn anew: {key}")


def compared(one: Record, other: Record) -> tuple[list[str], float, str]:
    """How two trainings differ.

    Returns what is not the same of samples and random numbers, the largest relative difference of
    a loss, and where that is.
    """
    found = [*one.problems, *other.problems]
    if one.ids != other.ids:
        steps = [
            step for step in {**one.ids, **other.ids} if one.ids.get(step) != other.ids.get(step)
        ]
        found.append(f"samples of steps {steps}")
    if keys := one.draws.keys() ^ other.draws.keys():
        found.append(f"drawn in one only: {sorted(keys)[:3]} and {len(keys)} in all")
    unlike = [
        key for key in one.draws.keys() & other.draws.keys() if one.draws[key] != other.draws[key]
    ]
    found += [f"drawn differently: {key}" for key in sorted(unlike)[:3]]
    if keys := one.losses.keys() ^ other.losses.keys():
        found.append(f"logged in one only: {sorted(keys)[:3]} and {len(keys)} in all")
    worst, where = 0.0, ""
    for key in one.losses.keys() & other.losses.keys():
        a, b = one.losses[key], other.losses[key]
        # a metric near 0 is compared by what it is a difference of
        difference = abs(a - b) / max(abs(a), abs(b), 1e-3)
        if difference > worst:
            worst, where = difference, f"{key[1]} at step {key[0]}"
    return found, worst, where


def moved(
    training: Training, layouts: Sequence[Layout], killed_after: Sequence[int], delay: float = 0
) -> Record:
    """The record of a training that is killed under each layout but the last."""
    for layout, step in zip(layouts[:-1], killed_after, strict=True):
        training.start(layout, killed_after=step, delay=delay)
    training.start(layouts[-1])
    return training.record()
