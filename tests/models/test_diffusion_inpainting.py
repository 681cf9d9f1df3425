"""Models that were trained to fill holes: the published recipe."""

import pytest
import torch

from ldm.conditioning.spatial import SpatialRescaler
from ldm.config import instantiate_from_config
from tests.models.diffusion_models import (
    ON_META,
    batch,
    kl,
    latent,
    parts,
    trainer,
    unet,
)
from tests.reference_configs import published_config

MARKER = {"cond_stage_config": "__is_first_stage__", "cond_stage_key": "masked_image"}


def filler(**changes):
    """A model of 8 x 8 images with 4 x 4 latents of 3 channels, and its batch."""
    model = latent(
        first_stage_config=kl(), unet_config=unet(in_channels=7), **MARKER, **changes
    ).eval()
    examples = batch(2, side=8)
    mask = torch.zeros(2, 8, 8, 1, dtype=torch.uint8)
    mask[0, 2:4, 4:8], mask[1, 1, 1] = 255, 255
    image = model.get_input(examples).permute(0, 2, 3, 1)
    masked = torch.where(mask == 0, image, -1)
    return model, {**examples, "mask": mask, "masked_image": masked}


def test_the_condition_is_the_latent_of_the_masked_image_and_then_the_mask():
    model, examples = filler()
    concat = model.conditioner(examples).concat
    assert concat.shape == (2, 4, 4, 4)
    encoded = model.first_stage_model.encode(examples["masked_image"].permute(0, 3, 1, 2))
    assert torch.equal(concat[:, :3], encoded.mode())
    # nearest: the first of the pixels of each cell
    assert torch.equal(concat[:, 3], examples["mask"][:, ::2, ::2, 0].float() / 127.5 - 1)
    assert concat[0, 3].tolist() == [[-1] * 4, [-1, -1, 1, 1], [-1] * 4, [-1] * 4]


def test_the_published_condition_is_not_scaled_as_the_latents_are():
    plain, examples = filler()
    scaled, _ = filler(scale_factor=0.5)
    assert torch.equal(plain.conditioner(examples).concat, scaled.conditioner(examples).concat)


def test_the_mask_adds_no_name_to_the_state_dict():
    model, _ = filler()
    without = latent(first_stage_config=kl(), unet_config=unet(in_channels=6), **MARKER)
    assert model.state_dict().keys() == without.state_dict().keys()


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"in_channels": 7}, ["masked_image", "mask"]),
        ({"in_channels": 6}, ["masked_image"]),
        ({"in_channels": 7, "cond_stage_key": "LR_image"}, ["LR_image"]),
    ],
)
def test_the_mask_is_read_where_the_network_has_a_channel_for_it(changes, keys):
    changes = dict(changes)
    network = unet(in_channels=changes.pop("in_channels"))
    made = parts(unet_config=network, **MARKER | changes)
    assert [part.key for part in made.conditioner.parts] == keys


def test_an_encoder_that_is_named_gets_no_mask_beside_it():
    rescaler = SpatialRescaler(n_stages=0, in_channels=3, out_channels=4)
    named = {"cond_stage_config": rescaler, "cond_stage_key": "masked_image"}
    made = parts(unet_config=unet(in_channels=7), **named)
    assert [part.key for part in made.conditioner.parts] == ["masked_image"]


def test_the_published_model_reads_a_mask():
    config = published_config("ldm_inpainting_big")["model"]
    params = config["params"]
    for holder in (params, params["first_stage_config"]["params"]):
        holder.pop("ckpt_path", None)
    with ON_META:
        model = instantiate_from_config(config, path="model").to("meta")
        image = torch.empty(1, 64, 64, 3)
        told = {"masked_image": image, "mask": torch.empty(1, 64, 64, 1)}
        cond = model.conditioner(told)
        assert cond.concat.shape == (1, 4, 16, 16)
        z = model.encode(image.permute(0, 3, 1, 2))
        t = torch.zeros(1, dtype=torch.long)
        assert model.apply_model(z, t, cond).shape == (1, 3, 16, 16)


@pytest.mark.slow
def test_a_step_of_training_reaches_what_reads_the_mask():
    model, examples = filler()
    before = model.model.diffusion_model.input_blocks[0][0].weight.detach().clone()
    model.learning_rate = 1e-2
    loader = torch.utils.data.DataLoader([examples], batch_size=None)
    trainer(1).fit(model, loader)
    moved = model.model.diffusion_model.input_blocks[0][0].weight.detach() - before
    assert moved.abs().amax(dim=(0, 2, 3)).min() > 0


def test_a_picture_of_a_hole_is_shown():
    model, examples = filler()
    shown = model.log_images(examples, steps=2)
    assert {"conditioning_mask", "conditioning_masked_image"} <= shown.keys()
    assert shown["conditioning_mask"].shape == (2, 1, 8, 8)
