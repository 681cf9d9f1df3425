"""The benchmark on the smallest configurations: what it counts, and that both sides do one job."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from ldm.benchmark.configuration import model_block
from ldm.benchmark.contenders import OURS, PEERS, contender
from ldm.benchmark.flops import ceiling, flops_per_image
from ldm.benchmark.measure import Times, peak_memory, take_turns
from ldm.benchmark.report import rows, table
from ldm.benchmark.sampler import loop_overhead, peer_loop_overhead
from ldm.benchmark.setting import Setting
from ldm.config import ConfigError

ROOT = Path(__file__).parents[2]
SHAPES = sorted((ROOT / "configs" / "benchmark").glob("*.yaml"))
FP32 = Setting(precision="fp32")

UNET = {
    "target": "ldm.nets.unet.UNetModel",
    "params": {
        "image_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "model_channels": 32,
        "attention_resolutions": [1, 2],
        "num_res_blocks": 1,
        "channel_mult": [1, 2],
        "num_head_channels": 16,
    },
}
DENOISING = {
    "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
    "params": {
        "image_size": 8,
        "first_stage_config": {"target": "ldm.models.autoencoder.IdentityFirstStage"},
        "unet_config": UNET,
    },
}
TEXT = {
    **DENOISING,
    "params": {
        **DENOISING["params"],
        "conditioning_key": "crossattn",
        "cond_stage_config": {
            "target": "ldm.conditioning.text.BERTEmbedder",
            "params": {"n_embed": 24, "n_layer": 1, "max_seq_len": 5, "key": "caption"},
        },
        "unet_config": {
            **UNET,
            "params": {**UNET["params"], "use_spatial_transformer": True, "context_dim": 24},
        },
    },
}
GAME = {
    "target": "ldm.models.autoencoder.AutoencoderKL",
    "params": {
        "embed_dim": 4,
        "ddconfig": {
            "z_channels": 4,
            "resolution": 16,
            "in_channels": 3,
            "out_ch": 3,
            "ch": 32,
            "ch_mult": [1, 2],
            "num_res_blocks": 1,
            "attn_resolutions": [],
        },
        "lossconfig": {
            "target": "ldm.losses.autoencoder.LPIPSWithDiscriminator",
            "params": {"disc_start": 5, "disc_num_layers": 1, "perceptual_weight": 0},
        },
    },
}
BERT = TEXT["params"]["cond_stage_config"]
# a caption as tokens and as a vector, as in the quickstart
TWICE = {
    **TEXT,
    "params": {
        **DENOISING["params"],
        "cond_stage_config": [
            BERT,
            {
                "target": "ldm.conditioning.words.BagOfWords",
                "params": {"n_embed": 7, "key": "caption"},
            },
        ],
        "unet_config": {
            **UNET,
            "params": {**TEXT["params"]["unet_config"]["params"], "adm_in_channels": 7},
        },
    },
}
BLOCKS = {"denoising": DENOISING, "text": TEXT, "text twice": TWICE, "game": GAME}


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


@pytest.mark.parametrize("in_game", [False, True])
def test_the_discriminator_moves_only_once_it_has_joined(in_game):
    made = contender(OURS, GAME, FP32.at(in_game=in_game))
    before = weights(made)
    made.step()
    after = weights(made)
    names = [name for name in before if name.startswith("loss.discriminator.main.0")]
    assert [torch.equal(before[name], after[name]) for name in names] == [not in_game] * len(names)


def test_both_sides_have_as_many_weights():
    for block in (DENOISING, TEXT, TWICE):
        sizes = {
            sum(p.numel() for p in contender(name, block, FP32).model.model.parameters())
            for name in (OURS, PEERS[0])
        }
        assert len(sizes) == 1
    ours, peer = contender(OURS, GAME, FP32), contender(PEERS[0], GAME, FP32)
    own = sum(p.numel() for p in ours.model.networks().parameters())
    assert own == sum(p.numel() for p in peer.net.parameters())


def test_flops_of_a_convolution_are_counted_as_the_network_says():
    block = json.loads(json.dumps(GAME))
    block["params"]["ddconfig"]["ch_mult"] = [1]
    one_level = flops_per_image(block, in_game=False)
    block["params"]["ddconfig"]["resolution"] = 32
    # convolutions grow with the area, attention with its square
    assert 4 * one_level < flops_per_image(block, in_game=False) < 16 * one_level


@pytest.mark.parametrize(("name", "expected"), [("uncond", 39.7), ("class", 54.4), ("text", 32.4)])
def test_flops_of_the_benchmark_shapes_are_those_of_the_other_library(name, expected):
    block = model_block([ROOT / "configs" / "benchmark" / f"{name}.yaml"])
    # GFLOP of one forward pass, counted in diffusers' networks of the same shapes
    assert flops_per_image(block, in_game=True) / 3e9 == pytest.approx(expected, abs=0.06)


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


def test_a_first_stage_is_measured_before_and_after_the_discriminator_joins():
    found = rows(GAME, FP32, against=None, rounds=1, with_memory=False)
    assert [row.what for row in found] == ["before disc_start", "after disc_start"]
    assert found[0].flops < found[1].flops
    assert len(table(found).splitlines()) == 4


def test_checkpoints_in_a_configuration_are_left_out():
    block = model_block([ROOT / "configs" / "quickstart" / "ldm.yaml"])
    assert "ckpt_path" not in json.dumps(block)


@pytest.fixture(scope="module")
def script():
    """`scripts/benchmark.py`, imported."""
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "scripts" / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_prints_a_row_per_contender(script, tmp_path, capsys):
    config = tmp_path / "small.yaml"
    config.write_text(json.dumps({"model": TEXT}))
    flags = ["--against", "diffusers", "--rounds", "1", "--no-memory", "--precision", "fp32"]
    assert script.main([str(config), *flags]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"\| denoising \| ([^|]+) \|", printed) == [OURS, *PEERS]
    assert re.search(r"\d+ us a step; diffusers \d+ us", printed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml"], "none.yaml: no such file"),
        ([str(SHAPES[0]), "--device", "cuda"], "torch sees no CUDA device"),
    ],
)
def test_the_script_says_in_one_line_what_is_wrong(script, arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
