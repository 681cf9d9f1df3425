"""The tables that the benchmark prints."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from ldm.benchmark.configuration import Block, is_first_stage, without_weights
from ldm.benchmark.contenders import OURS, PEERS, contender
from ldm.benchmark.flops import ceiling, flops_per_image
from ldm.benchmark.measure import Times, peak_memory, release_memory, take_turns
from ldm.benchmark.peers import has_diffusers
from ldm.benchmark.sampler import loop_overhead, peer_loop_overhead
from ldm.benchmark.setting import Setting
from ldm.config import ConfigError
from ldm.evaluation.tables import markdown_table

__all__ = ["HEADER", "Row", "machine", "rows", "sampler_line", "table"]


@dataclass(frozen=True)
class Row:
    """What was measured of one contender in one setting.

    ratio: of its busy seconds to ours.  flops: of the model, per image.  limit: FLOP per busy
    second of this machine, see `ceiling`.  memory: bytes, 0 when it was not measured.
    """

    what: str
    name: str
    times: Times
    ratio: float
    batch_size: int
    flops: float
    limit: float
    memory: int

    def cells(self) -> list[str]:
        """The row as text, column by column.

        Images per second are of wall time, the utilisation is of busy seconds, as its limit is.
        """
        seconds = self.times.typical_busy
        utilisation = self.batch_size * self.flops / seconds / self.limit
        return [
            self.what,
            self.name,
            f"{seconds:.3g}",
            f"{min(self.times.wall):.3g}",
            f"{self.ratio:.2f}",
            f"{self.batch_size / self.times.typical_wall:.3g}",
            f"{self.memory / 2**20:.0f}" if self.memory else "-",
            f"{self.flops / 1e9:.4g}",
            f"{100 * utilisation:.0f} %",
        ]


HEADER = [
    "step",
    "contender",
    "seconds",
    "wall, best",
    "ratio to ldm",
    "images/s",
    "peak MiB",
    "GFLOP/image",
    "utilisation",
]


def rows(
    block: Block, setting: Setting, *, against: str | None, rounds: int, with_memory: bool
) -> list[Row]:
    """Measure a configuration: one row per contender and kind of step.

    against: "diffusers" or nothing.  rounds: steps of each contender that count.
    Raises ConfigError when diffusers is asked for and not installed or has no such network, when
    the model is none that is trained, and when the process that measures memory fails.
    """
    if against not in (None, "diffusers"):
        raise ConfigError(f"against {against!r}: expected 'diffusers'")
    if against and not has_diffusers():
        raise ConfigError("diffusers is not installed: pip install -e '.[dev]'")
    names = (OURS, *PEERS) if against else (OURS,)
    limit = ceiling(setting)
    found = []
    for what, kind in _kinds(block, setting):
        made = {name: contender(name, block, kind) for name in names}
        times = take_turns({name: each.step for name, each in made.items()}, kind, rounds)
        del made
        release_memory(kind)
        flops = flops_per_image(block, with_discriminator=kind.with_discriminator)
        for name in names:
            memory = peak_memory(name, block, kind) if with_memory else 0
            ratio = times[name].ratio_to(times[OURS])
            found.append(Row(what, name, times[name], ratio, kind.batch_size, flops, limit, memory))
    return found


def _kinds(block: Block, setting: Setting) -> list[tuple[str, Setting]]:
    """The kinds of step that a configuration makes in the course of its training."""
    model = without_weights(block)
    if not is_first_stage(model):
        return [("denoising", setting)]
    without = setting.replaced(with_discriminator=False)
    if not model.loss.disc_factor:
        return [("without discriminator", without)]
    before = [("before disc_start", without)] if model.loss.disc_start > 0 else []
    return [*before, ("after disc_start", setting)]


def table(found: Sequence[Row]) -> str:
    """Rows as a table in Markdown."""
    return markdown_table(HEADER, [row.cells() for row in found])


def sampler_line(setting: Setting, *, against: str | None) -> str:
    """One sentence on the sampling loop."""
    shape = (1, 3, 64, 64)  # small, so that the loop is what costs
    text = f"DDIM with an empty network, {shape}: {1e6 * loop_overhead(shape, setting):.0f} us"
    if against:
        text += f" a step; diffusers {1e6 * peer_loop_overhead(shape, setting):.0f} us"
    return text + " a step"


def machine(setting: Setting) -> str:
    """What the numbers were taken on."""
    if setting.is_cuda:
        device = torch.cuda.get_device_name(setting.device)
    else:
        device = f"{_cpu()}, {torch.get_num_threads()} thread(s)"
    libraries = [f"torch {version('torch')}"]
    if has_diffusers():
        libraries.append(f"diffusers {version('diffusers')}")
    return f"{device}; Python {platform.python_version()}, {', '.join(libraries)}"


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    known: Mapping[str, str] = {}
    if path.exists():
        lines = (line.partition(":") for line in path.read_text(encoding="utf-8").splitlines())
        known = {key.strip(): value.strip() for key, _, value in lines}
    name = known.get("model name", platform.processor() or platform.machine())
    extra = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in known.get("flags", "").split()]
    return f"{name} ({', '.join(extra)})" if extra else name
