"""The benchmark on the smallest configurations: what it counts, and that both sides do one job."""

import json
import re
from pathlib import Path

import pytest
import torch

from ldm.benchmark import flops, report
from ldm.benchmark.configuration import denoising, measured_block
from ldm.benchmark.contenders import OURS, PEERS, contender
from ldm.benchmark.flops import ceiling, flops_per_image
from ldm.benchmark.measure import Times, peak_memory, take_turns
from ldm.benchmark.report import HEADER, Row, rows, table
from ldm.benchmark.sampler import loop_overhead, peer_loop_overhead
from ldm.benchmark.setting import Elapsed, Setting
from ldm.cli.exits import exit_code
from ldm.config import ConfigError
from tests.benchmark.blocks import (
    BERT,
    BLOCKS,
    DENOISING,
    FIRST_STAGE,
    TEXT,
    TWICE,
    UNET,
    bag,
    with_loss,
    with_params,
)
from tests.cli.runs import script

pytestmark = pytest.mark.slow  # what is measured is training

ROOT = Path(__file__).parents[2]
SHAPES = sorted((ROOT / "configs" / "benchmark").glob("*.yaml"))
FP32 = Setting(precision="fp32")


def weights(made):
    net = made.net if hasattr(made, "net") else made.model
    return {name: value.detach().clone() for name, value in net.named_parameters()}


@pytest.mark.parametrize("name", [OURS, *PEERS])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_step_of_every_contender_moves_its_weights(block, precision, name):
    made = contender(name, BLOCKS[block], Setting(precision=precision, batch_size=2))
    before = weights(made)
    made.step()
    moved = [key for key, value in weights(made).items() if not torch.equal(value, before[key])]
    # all but the loss's log-variance, which no optimizer has, and LPIPS
    assert {key for key in before if not key.startswith("loss.")} - set(moved) <= {
        key for key in before if key.startswith(("model_ema.", "loss."))
    }
    assert all(torch.isfinite(value).all() for value in weights(made).values())


@pytest.mark.parametrize("with_discriminator", [False, True])
def test_the_discriminator_moves_only_once_it_has_joined(with_discriminator):
    made = contender(OURS, FIRST_STAGE, FP32.replaced(with_discriminator=with_discriminator))
    before = weights(made)
    made.step()
    after = weights(made)
    names = [name for name in before if name.startswith("loss.discriminator.main.0")]
    assert [torch.equal(before[name], after[name]) for name in names] == [
        not with_discriminator
    ] * len(names)


def test_both_sides_have_as_many_weights():
    for block in (DENOISING, TEXT, TWICE):
        sizes = {
            sum(p.numel() for p in contender(name, block, FP32).model.model.parameters())
            for name in (OURS, PEERS[0])
        }
        assert len(sizes) == 1
    ours, peer = contender(OURS, FIRST_STAGE, FP32), contender(PEERS[0], FIRST_STAGE, FP32)
    own = sum(p.numel() for p in ours.model.networks().parameters())
    assert own == sum(p.numel() for p in peer.net.parameters())


def test_flops_of_a_convolution_are_counted_as_the_network_says():
    block = json.loads(json.dumps(FIRST_STAGE))
    block["params"]["ddconfig"]["ch_mult"] = [1]
    one_level = flops_per_image(block, with_discriminator=False)
    block["params"]["ddconfig"]["resolution"] = 32
    # convolutions grow with the area, attention with its square
    assert 4 * one_level < flops_per_image(block, with_discriminator=False) < 16 * one_level


@pytest.mark.parametrize(("name", "expected"), [("uncond", 39.7), ("class", 54.4), ("text", 32.4)])
def test_flops_of_the_benchmark_shapes_are_those_of_the_other_library(name, expected):
    block = measured_block(ROOT / "configs" / "benchmark" / f"{name}.yaml")
    # GFLOP of one forward pass, counted in diffusers' networks of the same shapes
    assert flops_per_image(block, with_discriminator=True) / 3e9 == pytest.approx(
        expected, abs=0.06
    )


def test_contenders_take_turns():
    order = []
    steps = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    times = take_turns(steps, Setting(), rounds=3)
    assert order == ["a", "b"] * 5
    assert [len(each.busy) for each in times.values()] == [3, 3]


def test_a_ratio_is_the_median_over_rounds():
    ours, peer = Times(busy=[1.0, 2.0, 4.0]), Times(busy=[2.0, 2.0, 100.0])
    assert peer.ratio_to(ours) == 2.0


def test_the_ceiling_is_a_speed_that_a_product_reaches():
    assert 1e8 < ceiling(FP32, rounds=1) < 1e16


@pytest.mark.parametrize(("num_threads", "calls"), [(1, 1), (2, 10)])
def test_the_ceiling_of_several_threads_is_timed_over_several_calls(
    num_threads, calls, monkeypatch
):
    products = []

    class Counted(Setting):
        """A clock that moves by a second with each product."""

        def timed(self, function):
            products.append(0)
            function()
            return Elapsed(products[-1], 1.0)

    def product(*_):
        products[-1] += 1

    monkeypatch.setattr(flops, "_CONVOLUTIONS", ())
    monkeypatch.setattr(torch, "mm", product)
    assert ceiling(Counted(num_threads=num_threads), rounds=1) == 2 * 1024**3
    assert products == [calls, calls]


def test_peak_memory_holds_weights_optimizer_average_and_gradients():
    made = contender(OURS, DENOISING, FP32)
    parameters = sum(p.numel() for p in made.model.model.parameters())
    peak = peak_memory(OURS, DENOISING, FP32)
    assert peak > 4 * 5 * parameters


def test_a_network_that_the_other_library_lacks_is_refused():
    params = {**UNET["params"], "resblock_updown": True}
    block = {
        **DENOISING,
        "params": {**DENOISING["params"], "unet_config": {**UNET, "params": params}},
    }
    with pytest.raises(ConfigError, match="resblock_updown: diffusers has no such network"):
        contender(PEERS[0], block, FP32)


def test_the_sampling_loops_take_some_time():
    for overhead in (loop_overhead, peer_loop_overhead):
        assert 1e-6 < overhead((1, 3, 8, 8), Setting(), rounds=1) < 0.1


def test_a_ratio_and_a_utilisation_are_of_processor_time_and_images_per_second_of_wall_time():
    times = Times(busy=[3.0, 4.0, 5.0], wall=[1.0, 2.0, 9.0])
    row = Row("denoising", OURS, times, 1.0, batch_size=8, flops=1e9, limit=4e9, memory=0)
    cells = dict(zip(HEADER, row.cells(), strict=True))
    assert cells["seconds"] == "4"
    assert cells["images/s"] == "4"  # 8 images in 2 s
    assert cells["utilisation"] == "50 %"  # 8e9 FLOP in 4 s, of 4e9 per second


def test_an_unknown_contender_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"name: 'difusers'; expected one of ldm, .*'diffusers'"):
        contender("difusers", DENOISING, FP32)


def test_peak_memory_needs_no_other_library(tmp_path, monkeypatch):
    # what a process finds where it is not installed
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['diffusers'] = None")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert peak_memory(OURS, DENOISING, FP32, steps=1) > 0
    with pytest.raises(ConfigError, match=r"memory of diffusers failed: .*diffusers"):
        peak_memory(PEERS[0], DENOISING, FP32, steps=1)


@pytest.mark.parametrize("disc_start", [0, 5])
def test_a_first_stage_without_a_discriminator_is_measured_once(disc_start):
    block = with_loss(disc_start=disc_start, disc_factor=0)
    found = rows(block, FP32, against="diffusers", rounds=1, with_memory=False)
    assert [(row.what, row.name) for row in found] == [
        ("without discriminator", name) for name in (OURS, *PEERS)
    ]


def test_a_discriminator_from_the_start_is_measured_once():
    found = rows(with_loss(disc_start=0), FP32, against=None, rounds=1, with_memory=False)
    assert [row.what for row in found] == ["after disc_start"]


def test_a_first_stage_that_cannot_be_trained_is_refused():
    block = with_params(FIRST_STAGE, lossconfig={"target": "torch.nn.Identity"})
    with pytest.raises(ConfigError, match="lossconfig: Identity is no training objective"):
        rows(block, FP32, against=None, rounds=1, with_memory=False)


def test_what_a_network_leaves_to_its_defaults_is_the_same_in_the_other_library():
    unet = {k: v for k, v in UNET["params"].items() if k != "channel_mult"}
    block = with_params(DENOISING, unet_config={**UNET, "params": unet})
    made = contender(PEERS[0], block, FP32)
    assert made.model.model.diffusion_model.net.config.block_out_channels == (32, 64, 128, 256)
    ddconfig = {k: v for k, v in FIRST_STAGE["params"]["ddconfig"].items() if k != "ch_mult"}
    made = contender(PEERS[0], with_params(FIRST_STAGE, ddconfig=ddconfig), FP32)
    assert made.net.config.block_out_channels == (32, 64, 128, 256)


def test_the_norms_of_both_autoencoders_have_as_many_groups():
    ddconfig = {**FIRST_STAGE["params"]["ddconfig"], "num_groups": 8}
    made = contender(PEERS[0], with_params(FIRST_STAGE, ddconfig=ddconfig), FP32)
    norms = [m for m in made.net.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {8}


def test_encoders_of_one_entry_and_one_slot_all_count():
    short = with_params(BERT, max_seq_len=3)
    unet = with_params(TWICE["params"]["unet_config"], adm_in_channels=11)
    parts = [BERT, short, bag(7), bag(4)]
    block = with_params(TWICE, cond_stage_config=parts, unet_config=unet)
    _, shapes = denoising(block)
    assert list(shapes.conditions.values()) == [(5, 24), (3, 24), (7,), (4,)]
    contender(OURS, block, FP32).step()


def test_encoders_of_one_slot_must_say_how_wide_they_are():
    rescalers = [
        {"target": "ldm.conditioning.spatial.SpatialRescaler", "params": {"key": key}}
        for key in ("map", "depth")
    ]
    params = {"conditioning_key": "concat", "cond_stage_config": rescalers}
    block = with_params(DENOISING, **params, unet_config=with_params(UNET, in_channels=9))
    with pytest.raises(ConfigError, match="SpatialRescaler for 'map' has no embed_dim"):
        denoising(block)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "--device gpu: expected cpu, cuda or cuda:N"),
        ("meta", "--device meta: expected cpu, cuda or cuda:N"),
        ("cuda:2", "--device cuda:2: torch sees 2 CUDA devices"),
    ],
)
def test_a_device_that_cannot_be_measured_is_refused(device, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=message):
        Setting(device=device).apply()


@pytest.mark.parametrize(("device", "expected"), [("cuda:1", ["cuda:1"]), ("cuda", [])])
def test_a_device_with_an_index_becomes_that_of_the_process(device, expected, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    Setting(device=device).apply()
    assert chosen == expected


@pytest.mark.gpu
def test_the_gpu_is_empty_when_memory_is_measured(monkeypatch):
    held = []
    monkeypatch.setattr(
        report, "peak_memory", lambda *_: held.append(torch.cuda.memory_reserved()) or 1
    )
    rows(DENOISING, FP32.replaced(device="cuda"), against=None, rounds=1, with_memory=True)
    assert max(held) < 2**27  # workspaces of the libraries stay, operands of the ceiling do not


def test_a_first_stage_is_measured_before_and_after_the_discriminator_joins():
    found = rows(FIRST_STAGE, FP32, against=None, rounds=1, with_memory=False)
    assert [row.what for row in found] == ["before disc_start", "after disc_start"]
    assert found[0].flops < found[1].flops
    assert len(table(found).splitlines()) == 4


def test_checkpoints_in_a_configuration_are_left_out():
    block = measured_block(ROOT / "configs" / "quickstart" / "ldm.yaml")
    assert "ckpt_path" not in json.dumps(block)


def test_data_and_checkpoints_that_a_configuration_leaves_open_are_not_asked_for():
    block = measured_block(ROOT / "configs" / "ldm-kl-f8.yaml")
    assert flops_per_image(block, with_discriminator=False) > 1e11


def test_the_script_prints_a_row_per_contender(tmp_path, capsys):
    config = tmp_path / "small.yaml"
    config.write_text(json.dumps({"model": TEXT}))
    flags = ["--against", "diffusers", "--rounds", "1", "--no-memory", "--precision", "fp32"]
    assert exit_code(script("benchmark"), [str(config), *flags]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"\| denoising \| ([^|]+) \|", printed) == [OURS, *PEERS]
    assert re.search(r"\d+ us a step; diffusers \d+ us", printed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml"], "none.yaml: no such file"),
        ([str(SHAPES[0]), "model.params.embed_dims=3"], "did you mean 'embed_dim'"),
        ([str(SHAPES[0]), "model.params.image_size=${size}"], "'size' not found"),
        ([str(SHAPES[0]), "--device", "cuda"], "torch sees 0 CUDA devices"),
    ],
)
def test_the_script_says_in_one_line_what_is_wrong(arguments, message, caplog_ldm, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert exit_code(script("benchmark"), arguments) == 2
    (record,) = caplog_ldm.records
    assert message in record.getMessage()
    assert len(record.getMessage().splitlines()) == 1
