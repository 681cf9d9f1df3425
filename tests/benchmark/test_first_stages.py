"""Costs of a first stage, where they can be counted by hand."""

import pytest
import torch

from ldm.benchmark.first_stages import coding_times, denoising_cost
from ldm.benchmark.flops import flops_per_image
from ldm.benchmark.setting import Setting
from ldm.config import ConfigError
from tests.cli.runs import first_stage, second_stage, unconditional, write
from tests.models.first_stages import tiny_kl, tiny_vq


@pytest.mark.parametrize("config", [second_stage(), unconditional()])
def test_a_denoiser_costs_on_its_own_latents_what_a_third_of_its_training_step_does(
    tmp_path, config
):
    path = write(tmp_path / "unet.yaml", config)
    found = denoising_cost(path, (4, 8, 8))
    assert found.latent == (4, 8, 8)
    step = flops_per_image(config["model"], with_discriminator=False)
    assert found.gflop == pytest.approx(step / 3 / 1e9, rel=1e-12)


def test_other_channels_change_the_first_and_last_convolution_alone(tmp_path):
    path = write(tmp_path / "unet.yaml", unconditional())
    four, nine = (denoising_cost(path, (channels, 8, 8)).gflop for channels in (4, 9))
    width, cells, kernel = 32, 64, 9
    assert (nine - four) * 1e9 == pytest.approx(2 * 5 * 2 * width * cells * kernel, rel=1e-6)


def test_sides_that_cannot_be_halved_are_taken_up(tmp_path):
    path = write(tmp_path / "unet.yaml", unconditional())
    assert denoising_cost(path, (4, 7, 9)).latent == (4, 8, 10)


def test_a_first_stage_has_no_denoiser(tmp_path):
    with pytest.raises(ConfigError, match="expected the configuration of a diffusion model"):
        denoising_cost(write(tmp_path / "first.yaml", first_stage()), (4, 8, 8))


@pytest.mark.parametrize("make", [tiny_kl, tiny_vq])
def test_the_median_call_is_timed(make):
    calls = []
    model = make().eval()
    model.encoder.register_forward_hook(lambda *_: calls.append("encode"))
    model.decoder.register_forward_hook(lambda *_: calls.append("decode"))
    image = torch.zeros(1, 3, 16, 16)
    times = coding_times(model, image, Setting(precision="fp32"), warmup=1, repeats=3)
    assert calls == ["encode"] * 5 + ["decode"] * 4  # one more for the latent
    assert times.encode.wall > 0
    assert times.decode.wall > 0
