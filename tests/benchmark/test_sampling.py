"""The benchmark of drawing: what is a twin of what, and what its numbers are."""

import json
import math

import pytest
import torch

from ldm.benchmark.measure import Times
from ldm.benchmark.sampling import DRAWN_HEADER, SOLVERS, Draw, Drawing, Twinned
from ldm.benchmark.setting import Elapsed, Setting
from ldm.cli.exits import exit_code
from ldm.config import ConfigError
from ldm.samplers.names import sampler_named
from tests.benchmark.blocks import DENOISING, FIRST_STAGE, TEXT, UNET, with_params
from tests.cli.runs import script

FP32 = Setting(precision="fp32")


class Clock(Setting):
    """A clock that a test sets: both of its readings are `seconds`."""

    seconds = 0.0

    def now(self):
        return Elapsed(Clock.seconds, Clock.seconds)


class Slow(torch.nn.Module):
    """A network that takes as long as it is told."""

    def __init__(self, *seconds):
        super().__init__()
        self.seconds = list(seconds)

    def forward(self, x, t, cond=None):
        Clock.seconds += self.seconds.pop(0)
        return x


def test_a_lap_is_a_call_and_what_led_to_it_without_the_bare_call():
    x, t = torch.zeros(2, 1, 1, 1), torch.zeros(2)
    twinned = Twinned(Slow(10, 11, 12, 13), Clock())
    for _ in range(2):  # the bare call is the second, then the first
        Clock.seconds += 1
        assert twinned(x, t) is x
    assert [each.busy for each in twinned.inside] == [10, 13]
    assert [each.busy for each in twinned.bare] == [11, 12]
    assert [each.busy for each in twinned.laps] == [11, 14]
    assert twinned.rows == 2


def test_what_is_outside_of_the_network_is_what_remains():
    seconds = {"inside": [2, 2, 2], "bare": [2, 2, 4], "laps": [5, 2.5, 2.5], "total": 12}
    draw = Draw("ddim", 3, 2, **seconds, wall_ratio=1.25)
    assert draw.ratio == 12 / 8
    assert draw.between == [0.5, 0.5]
    assert draw.around == 5  # 3 before the first call, 2 after the last
    cells = dict(zip(DRAWN_HEADER, draw.cells(), strict=True))
    assert cells["between / bare call"] == "25.00 %"
    assert cells["before and after"] == "5000.0 ms"
    assert cells["the same, wall"] == "1.250"


@pytest.mark.slow  # draws with every solver
@pytest.mark.parametrize(("block", "rows"), [(TEXT, 4), (DENOISING, 2)])
def test_a_call_has_twice_the_batch_where_there_is_guidance(block, rows):
    drawing = Drawing(block, FP32.replaced(batch_size=2))
    draws = list(drawing.draws(5))
    assert drawing.is_guided is (rows == 4)
    assert [draw.solver for draw in draws] == list(SOLVERS)
    for draw in draws:
        assert draw.rows == rows
        calls = sampler_named(draw.solver).evaluations(5)
        assert len(draw.inside) == len(draw.bare) == len(draw.laps) == calls
        assert 0 < sum(draw.inside) < draw.total
        assert 0.1 < draw.wall_ratio < 10
        assert math.isclose(sum(draw.inside) + sum(draw.between) + draw.around, draw.total)


def test_a_bare_call_is_the_call_of_the_draw():
    drawing, seen = Drawing(TEXT, FP32), []
    drawing.net.register_forward_hook(lambda net, given, out: seen.append((given, out)))
    list(drawing.draws(3, ["ddim"]))
    for one, twin in zip(seen[::2], seen[1::2], strict=True):
        assert one[0] == twin[0]  # the same objects
        assert torch.equal(one[1], twin[1])


def test_weights_are_held_in_bf16_as_the_scripts_hold_them():
    drawing = Drawing(TEXT, Setting(precision="bf16"))
    assert torch.bfloat16 in {p.dtype for p in drawing.net.parameters()}
    assert {p.dtype for p in drawing.plain.parameters()} == {torch.float32}
    times = drawing.cast_each_call(rounds=1)
    assert set(times) == {"held", "cast"}
    assert all(isinstance(each, Times) and each.busy[0] > 0 for each in times.values())
    assert Drawing(TEXT, FP32).cast_each_call() is None


def test_decoding_is_timed_where_there_is_a_decoder():
    assert Drawing(DENOISING, FP32).decoding() is None
    params = {**FIRST_STAGE["params"], "lossconfig": {"target": "torch.nn.Identity"}}
    first_stage = {"target": FIRST_STAGE["target"], "params": params}
    unet = with_params(UNET, in_channels=4, out_channels=4)
    block = with_params(DENOISING, first_stage_config=first_stage, unet_config=unet)
    drawing = Drawing(block, FP32)
    drawing.z = torch.zeros(1, 4, 4, 4)
    assert drawing.decoding(rounds=1) > 0


def test_a_first_stage_draws_nothing():
    with pytest.raises(ConfigError, match="--sampling: this is a first stage"):
        Drawing(FIRST_STAGE, FP32)


@pytest.mark.slow  # draws with every solver
def test_the_script_prints_a_row_per_solver(tmp_path, capsys):
    config = tmp_path / "small.yaml"
    config.write_text(json.dumps({"model": TEXT}))
    assert exit_code(script("benchmark"), [str(config), "--sampling", "--steps", "4"]) == 0
    printed = capsys.readouterr().out
    rows = [line.split(" | ")[0].strip("| ") for line in printed.splitlines() if "us |" in line]
    assert rows == list(SOLVERS)
    assert "guidance: classifier-free" in printed
    assert "cast from float32 at each call" in printed
    assert "decoding" not in printed  # the identity


def test_drawing_is_compared_with_the_network_alone(caplog_ldm):
    words = ["none.yaml", "--sampling", "--against", "diffusers"]
    assert exit_code(script("benchmark"), words) == 2
    assert "--sampling: compared with the network alone" in caplog_ldm.text
