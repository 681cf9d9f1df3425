"""Times of training steps, taken in turns; peak memory, each contender in a process of its own."""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

from ldm.benchmark.configuration import Block
from ldm.benchmark.contenders import contender
from ldm.benchmark.peers import has_diffusers
from ldm.benchmark.setting import Elapsed, Setting
from ldm.config import ConfigError

__all__ = ["Times", "peak_memory", "release_memory", "take_turns"]


@dataclass
class Times:
    """Seconds of a contender's steps, in the order they were taken; see `Elapsed`."""

    busy: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def append(self, elapsed: Elapsed) -> None:
        """Add a step."""
        self.busy.append(elapsed.busy)
        self.wall.append(elapsed.wall)

    @property
    def typical_busy(self) -> float:
        """Median of the busy seconds: what a step costs, however many threads share it."""
        return median(self.busy)

    @property
    def typical_wall(self) -> float:
        """Median of the seconds that passed: what a step takes."""
        return median(self.wall)

    def ratio_to(self, other: Times) -> float:
        """How many times as long this one takes: the median over rounds of each round's ratio."""
        return median(a / b for a, b in zip(self.busy, other.busy, strict=True))


def take_turns(
    steps: Mapping[str, Callable[[], None]], setting: Setting, rounds: int
) -> dict[str, Times]:
    """Run every contender once per round; what else the machine does then meets all of them.

    Two rounds go before the first that counts: memory is taken, kernels are chosen or compiled.
    """
    times = {name: Times() for name in steps}
    for index in range(rounds + 2):
        for name, step in steps.items():
            elapsed = setting.timed(step)
            if index >= 2:
                times[name].append(elapsed)
    return times


def release_memory(setting: Setting) -> None:
    """Give a GPU back what contenders held that are gone: another process is to be measured."""
    gc.collect()  # Lightning's modules refer to themselves
    if setting.is_cuda:
        torch.cuda.empty_cache()


def peak_memory(name: str, block: Block, setting: Setting, steps: int = 3) -> int:
    """Bytes that a contender's weights, optimizer state, average and steps take at most.

    Raises ConfigError when the process that measures them fails.
    """
    request = json.dumps([name, block, setting.to_json(), steps])
    command = [sys.executable, "-m", "ldm.benchmark.measure"]
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"measuring the memory of {name} failed: {reason}")
    return int(done.stdout.split()[-1])


def _measure_memory(request: str) -> int:
    name, block, setting, steps = json.loads(request)
    setting = Setting.from_json(setting)
    setting.apply()
    _warm_up(block, setting)
    before = _resident()
    made = contender(name, block, setting)
    for _ in range(steps):
        made.step()
    if setting.is_cuda:
        return torch.cuda.max_memory_allocated(setting.device)
    return _peak_resident() - before


def _warm_up(block: Block, setting: Setting) -> None:
    """Import what any contender may import, and start the libraries behind a step."""
    if has_diffusers():
        import diffusers  # noqa: F401

    x = torch.randn(1, 32, 8, 8, device=setting.device, requires_grad=True)
    with setting.autocast():
        y = torch.nn.Conv2d(32, 32, 3, device=setting.device)(x)
    y.float().sum().backward()


def _resident() -> int:
    """Bytes in memory now."""
    return _status("VmRSS") or _peak_resident()


def _peak_resident() -> int:
    """Most bytes in memory so far, of this process alone."""
    # what the system counts for children may include the parent's memory, before it was replaced
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status("VmHWM") or kilobytes * (1 if sys.platform == "darwin" else 1024)


def _status(key: str) -> int:
    """A number of Linux' own book-keeping in bytes, 0 elsewhere."""
    path = Path("/proc/self/status")
    lines: Sequence[str] = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


if __name__ == "__main__":
    sys.stdout.write(f"{_measure_memory(sys.stdin.read())}\n")
