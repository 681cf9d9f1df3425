"""What drawing costs beside the configuration's own network.

Every call of the network that a draw makes is made a second time, bare: with the same inputs, right
before or right after, in turns. So whatever else the machine does meets both, and what the draw
spends outside of its network is the difference of two readings of one clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

from ldm.benchmark.configuration import Block, denoising, is_first_stage, without_weights
from ldm.benchmark.contenders import randomize
from ldm.benchmark.measure import Times, take_turns
from ldm.benchmark.setting import Elapsed, Setting
from ldm.config import ConfigError, build, instantiate_model
from ldm.models.autoencoder import IdentityFirstStage
from ldm.nets.precision import hold_products_in
from ldm.samplers.names import sampler_named
from ldm.types import Conditioning

__all__ = ["DRAWN_HEADER", "SOLVERS", "Draw", "Drawing"]

# the first takes as many steps as asked for, the others fewer
SOLVERS = ("ddim", "dpmpp-2m", "heun", "unipc", "plms", "dpmpp-3m-sde")
_FEW_STEPS = 8
_SCALE = 3.0

DRAWN_HEADER = [
    "solver",
    "steps",
    "calls",
    "rows",
    "bare call",
    "evaluation / bare call",
    "draw / bare calls",
    "the same, wall",
    "between calls",
    "between / bare call",
    "before and after",
]


class Twinned(nn.Module):
    """A network each of whose calls is made again, bare.

    net: (x, t, cond) -> output.  inside: of the caller's calls.  bare: of the others.
    laps: each of the caller's calls, with what the caller did since the one before.
    """

    def __init__(self, net: nn.Module, setting: Setting) -> None:
        super().__init__()
        self.net = net
        self.setting = setting
        self.begin()

    def begin(self) -> None:
        """Forget all calls; the first lap begins now."""
        self.inside: list[Elapsed] = []
        self.bare: list[Elapsed] = []
        self.laps: list[Elapsed] = []
        self.rows = 0
        self.left = self.setting.now()

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning | None = None) -> Tensor:
        """What the network returns; both calls are timed."""
        before = self.setting.now() - self.left
        self.rows = len(x)
        outputs: list[Tensor] = []
        call = partial(self._call, outputs, x, t, cond)
        bare_first = len(self.bare) % 2 == 1
        if bare_first:
            self.bare.append(self.setting.timed(call))
        self.inside.append(self.setting.timed(call))
        if not bare_first:
            self.bare.append(self.setting.timed(call))
        inside = self.inside[-1]
        self.laps.append(Elapsed(before.busy + inside.busy, before.wall + inside.wall))
        self.left = self.setting.now()
        return outputs[0]

    def _call(self, outputs: list[Tensor], x: Tensor, t: Tensor, cond: Conditioning | None) -> None:
        outputs.append(self.net(x, t, cond))


@dataclass(frozen=True)
class Draw:
    """One draw with a solver; seconds are busy ones, see `Elapsed`.

    rows: of a call of the network, twice the images where there is guidance.
    inside, bare: of each call, by the draw and bare.  laps: `inside` with what led to it.
    total: of the draw without the bare calls; what is drawn are latents.
    wall_ratio: of the draw to as many bare calls, by the seconds that passed.
    """

    solver: str
    steps: int
    rows: int
    inside: list[float]
    bare: list[float]
    laps: list[float]
    total: float
    wall_ratio: float

    @property
    def ratio(self) -> float:
        """The draw to as many bare calls."""
        return self.total / sum(self.bare)

    @property
    def between(self) -> list[float]:
        """Seconds between two calls: what a step costs outside of its network."""
        return [lap - inside for lap, inside in zip(self.laps, self.inside, strict=True)][1:]

    @property
    def around(self) -> float:
        """Seconds before the first call and after the last, once for the whole draw."""
        return self.total - sum(self.inside) - sum(self.between)

    def cells(self) -> list[str]:
        """A row of text under `DRAWN_HEADER`; spreads are quartiles over calls."""
        ratios = [lap / bare for lap, bare in zip(self.laps, self.bare, strict=True)]
        between, bare = median(self.between), median(self.bare)
        return [
            self.solver,
            str(self.steps),
            str(len(self.bare)),
            str(self.rows),
            f"{_spread(self.bare, '.3g')} s",
            _spread(ratios, ".3f"),
            f"{self.ratio:.3f}",
            f"{self.wall_ratio:.3f}",
            f"{1e6 * between:.0f} us",
            f"{100 * between / bare:.2f} %",
            f"{1e3 * self.around:.1f} ms",
        ]


class Drawing:
    """A diffusion model at its full size, with random weights, ready to draw.

    block: see `ldm.benchmark.configuration.measured_block`. With bf16 its weights are held as the
    sampling scripts hold them.
    Raises ConfigError for a first stage.
    """

    def __init__(self, block: Block, setting: Setting) -> None:
        if is_first_stage(without_weights(block)):
            raise ConfigError("--sampling: this is a first stage, expected a diffusion model")
        torch.manual_seed(0)
        self.setting = setting
        self.first_stage = block["params"].get("first_stage_config")
        given, shapes = denoising(block)
        given = {**given, "params": {**given["params"], "use_ema": False}}
        self.model: Any = instantiate_model(given).to(setting.device).eval().requires_grad_(False)
        randomize(self.model.model)
        self.z, self.batch = shapes.batch(setting.batch_size, setting.device)
        self.net = self.model.model
        self.plain = deepcopy(self.net) if setting.precision == "bf16" else None
        if setting.precision == "bf16":
            hold_products_in(self.net, torch.bfloat16)
        if setting.is_compiled:
            self.net.compile_network()
        self.twinned = self.model.model = Twinned(self.net, setting)

    @property
    def is_guided(self) -> bool:
        """Whether there is a condition, and so guidance."""
        return bool(self.batch)

    def draws(self, steps: int, solvers: Sequence[str] = SOLVERS) -> Iterator[Draw]:
        """Draw with each solver, the first in so many steps, after two calls that do not count."""
        self._draw(solvers[0], 2)
        for solver in solvers:
            yield self._draw(solver, steps if solver == solvers[0] else min(steps, _FEW_STEPS))

    def _draw(self, solver: str, steps: int) -> Draw:
        seeds, twinned = range(self.setting.batch_size), self.twinned
        options = {"steps": steps, "sampler": sampler_named(solver)}
        twinned.begin()
        with self.setting.autocast():
            self.model.sample(
                seeds,
                self.batch if self.is_guided else None,
                scale=_SCALE if self.is_guided else 1.0,
                **options,
            )
        tail = self.setting.now() - twinned.left
        laps = [lap.busy for lap in twinned.laps]
        wall = sum(lap.wall for lap in twinned.laps) + tail.wall
        return Draw(
            solver=solver,
            steps=steps,
            rows=twinned.rows,
            inside=[each.busy for each in twinned.inside],
            bare=[each.busy for each in twinned.bare],
            laps=laps,
            total=sum(laps) + tail.busy,
            wall_ratio=wall / sum(each.wall for each in twinned.bare),
        )

    def cast_each_call(self, rounds: int = 5) -> Mapping[str, Times] | None:
        """Calls with weights "held" in bf16, and "cast" from float32 each time; None in fp32."""
        if self.plain is None:
            return None
        z, batch = torch.cat([self.z, self.z]), self.model.conditioner(self.batch)
        cond = None if batch is None else Conditioning.cat([batch, batch])
        t = torch.full((len(z),), 500, device=z.device)

        def call(net: nn.Module) -> None:
            with torch.no_grad(), self.setting.autocast():
                net(z, t, cond)

        nets = {"held": self.net, "cast": self.plain}
        return take_turns({k: partial(call, net) for k, net in nets.items()}, self.setting, rounds)

    def decoding(self, rounds: int = 3) -> float | None:
        """Seconds to decode the batch, the median; None where images are what is diffused."""
        if self.first_stage is None:
            return None
        decoder: Any = build(self.first_stage, path="first_stage_config")
        if isinstance(decoder, IdentityFirstStage):
            return None
        decoder.to(self.setting.device).eval().requires_grad_(False)
        randomize(decoder)

        def decode() -> None:
            with torch.no_grad(), self.setting.autocast():
                decoder.decode(self.z)

        return take_turns({"decode": decode}, self.setting, rounds)["decode"].typical_busy


def _spread(values: Sequence[float], form: str) -> str:
    """Median and quartiles of some numbers as text."""
    if len(values) < 2:
        return f"{values[0]:{form}}"
    low, _, high = quantiles(values, n=4)
    return f"{median(values):{form}} ({low:{form}} to {high:{form}})"
