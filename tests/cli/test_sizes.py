"""What scripts ask of a model: pixels of a cell, channels of its images, and how to make these."""

import pytest
import torch

from ldm.cli.sampling.sizes import (
    cells_of,
    decoder_of,
    image_channels_of,
    latent_size,
    pixels_per_cell,
)
from ldm.config import ConfigError, instantiate_model, load, to_plain, without_checkpoints
from tests.cli.runs import ROOT, unconditional


@pytest.fixture(scope="module")
def latent():
    """Diffuses 4 x 8 x 8 latents of 16 x 16 images with one channel, which are scaled by 2."""
    block = unconditional()["model"]
    first_stage = block["params"]["first_stage_config"]["params"]
    first_stage["ddconfig"] = {**first_stage["ddconfig"], "in_channels": 1, "out_ch": 1}
    model = instantiate_model(block).eval()
    model.scale_factor = torch.tensor(2.0)
    return model


@pytest.fixture(scope="module")
def of_pixels():
    config = to_plain(load([ROOT / "configs/tiny/ddpm.yaml"]))
    return instantiate_model(without_checkpoints(config["model"])).eval()


def test_a_cell_is_of_so_many_pixels_as_the_first_stage_makes_it(latent, of_pixels):
    assert (pixels_per_cell(latent), pixels_per_cell(of_pixels)) == (2, 1)
    assert cells_of(latent) == 2 * latent.model.diffusion_model.downsample_factor
    assert latent_size("size", (16, 24), latent) == (8, 12)
    assert latent_size("size", (16, 24), of_pixels) == (16, 24)
    assert latent_size("size", None, latent) is None
    with pytest.raises(ConfigError, match="--tile 15 16: expected multiples of 4 pixels"):
        latent_size("tile", (15, 16), latent)


def test_channels_are_those_of_images_and_not_of_latents(latent, of_pixels):
    assert (latent.channels, image_channels_of(latent)) == (4, 1)
    assert image_channels_of(of_pixels) == of_pixels.channels == 3


def test_a_decoder_is_that_of_the_model_with_gradients(latent, of_pixels):
    assert decoder_of(of_pixels) is None
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    images = decoder_of(latent)(z)
    assert torch.equal(images, latent.decode(z))
    images.sum().backward()
    assert z.grad.abs().max() > 0
