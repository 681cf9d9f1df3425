"""Samples and pictures of a diffusion model."""

import pytest
import torch

from ldm.data.layouts import layout_picture
from ldm.data.maps import coloured
from ldm.diffusion.objective import Objective
from ldm.diffusion.schedule import RectifiedFlow
from ldm.models.diffusion.previews import text_image
from ldm.tensor import to_uint8
from tests.models.diffusion_models import (
    ATTENDING,
    batch,
    by_class,
    kl,
    labels,
    latent,
    parameters,
    pixel,
    unet,
)

LABELS = {"class": torch.tensor([0, 1, 2])}


def in_range(images):
    return bool(images.isfinite().all()) and images.abs().max() <= 1


# samples


def test_a_sample_depends_on_its_seed_alone():
    model = latent(by_class()).eval()
    together = model.sample([5, 6, 7], LABELS, steps=3, scale=2.0)
    for index, seed in enumerate((5, 6, 7)):
        one = {"class": LABELS["class"][index : index + 1]}
        alone = model.sample([seed], one, steps=3, scale=2.0)
        torch.testing.assert_close(alone[0], together[index], rtol=1e-5, atol=1e-5)
    assert not torch.equal(
        together[0], model.sample([9], {"class": LABELS["class"][:1]}, steps=3)[0]
    )


def test_samples_use_the_average_unless_asked_otherwise():
    model = latent()
    averaged = model.sample([1], steps=2)
    with torch.no_grad():
        model.model.diffusion_model.out[2].weight.mul_(2)
    assert torch.equal(model.sample([1], steps=2), averaged)
    assert not torch.equal(model.sample([1], steps=2, weights="raw"), averaged)


def test_guidance_of_scale_one_is_the_condition_alone():
    model = latent(by_class())
    plain = model.sample([1, 2, 3], LABELS, steps=2)
    assert torch.equal(model.sample([1, 2, 3], LABELS, steps=2, scale=1.0), plain)
    assert not torch.equal(model.sample([1, 2, 3], LABELS, steps=2, scale=3.0), plain)


def test_guidance_leads_away_from_a_negative_condition_when_there_is_one():
    model = latent(by_class())
    null = {"class": torch.full((3,), 3)}
    by_default = model.sample([1, 2, 3], LABELS, steps=2, scale=3.0)
    assert torch.equal(
        model.sample([1, 2, 3], LABELS, steps=2, scale=3.0, negative=null), by_default
    )
    other = {"class": torch.full((3,), 1)}
    assert not torch.equal(
        model.sample([1, 2, 3], LABELS, steps=2, scale=3.0, negative=other), by_default
    )


@pytest.mark.parametrize("size", [None, (4, 6)])
def test_samples_have_the_size_asked_for_in_pixels_of_the_first_stage(size):
    model = latent(first_stage_config=kl(), image_size=[4, 2])
    height, width = size or (4, 2)
    assert model.sample([0], steps=1, size=size).shape == (1, 3, 2 * height, 2 * width)


def test_pixels_are_clipped_and_latents_are_not():
    assert pixel().clip_denoised
    assert not latent().clip_denoised
    assert in_range(pixel().sample(range(4), steps=2))


# pictures


def test_an_unconditional_model_shows_data_and_samples():
    model, examples = latent(first_stage_config=kl(), scale_factor=0.5), batch(3, side=8)
    shown = model.log_images(examples, steps=2)
    assert shown.keys() == {"inputs", "reconstructions", "samples"}
    assert torch.equal(shown["inputs"], model.get_input(examples))
    mode = model.first_stage_model.encode(shown["inputs"]).mode()
    torch.testing.assert_close(shown["reconstructions"], model.first_stage_model.decode(mode))
    assert all(images.shape == (3, 3, 8, 8) for images in shown.values())


def test_samples_of_two_calls_are_the_same():
    model, examples = latent(), batch(2)
    first, second = (model.log_images(examples, steps=2)["samples"] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, model.sample([0, 1], steps=2))


def test_a_class_is_shown_as_a_picture_of_text():
    shown = latent(by_class()).log_images(batch(2), steps=2)
    assert shown.keys() == {"inputs", "reconstructions", "samples", "conditioning_class"}
    assert shown["conditioning_class"].shape == (2, 3, 128, 128)
    assert torch.equal(shown["conditioning_class"], text_image(["0", "1"], 128))


@pytest.mark.parametrize(
    ("rate", "options", "guided"),
    [(0.0, {}, False), (0.1, {}, True), (0.0, {"scale": 2.0}, True)],
)
def test_guided_samples_are_shown_where_the_model_was_trained_for_it(rate, options, guided):
    model = latent(by_class(cond_stage_config=labels(drop_rate=rate)))
    assert ("samples_guided" in model.log_images(batch(2), steps=2, **options)) is guided


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_pictures_do_not_depend_on_how_many_are_made_at_once(micro_batch):
    model = latent(by_class(first_stage_config=kl(), cond_stage_config=labels(drop_rate=0.1)))
    options = {"steps": 3, "denoise_row": True, "diffusion_row": True}
    rows, forward = [], model.model_ema.module.diffusion_model.forward

    def watched(x, *rest, **told):
        rows.append(len(x))
        return forward(x, *rest, **told)

    shown = batch(4, side=8)
    with torch.no_grad():
        together = model.log_images(shown, **options)
        model.model_ema.module.diffusion_model.forward = watched
        apart = model.log_images(shown, micro_batch=micro_batch, **options)
    assert max(rows) == max(micro_batch, 2)  # a guided image takes two rows
    assert apart.keys() == together.keys()
    for name, images in together.items():
        torch.testing.assert_close(apart[name], images, rtol=1e-5, atol=1e-5)


def test_first_stages_are_asked_for_one_image_at_a_time():
    model = latent(first_stage_config=kl())
    decoded, decode = [], model.first_stage_model.decode
    model.first_stage_model.decode = lambda z: decoded.append(len(z)) or decode(z)
    model.log_images(batch(3, side=8), steps=2)
    assert decoded == [1] * 6


def test_a_map_is_shown_as_it_is_and_one_channel_of_a_wide_one():
    rescaler = {
        "target": "ldm.conditioning.spatial.SpatialRescaler",
        "params": {"n_stages": 0, "in_channels": 5, "out_channels": 2, "key": "map"},
    }
    model = latent(
        by_class(
            cond_stage_config=[rescaler, labels()],
            unet_config=unet(in_channels=5, **ATTENDING),
            conditioning_key="hybrid",
        )
    )
    wide = torch.rand(2, 4, 4, 5) * 2 - 1
    shown = model.log_images(batch(2) | {"map": wide}, steps=2)
    assert torch.equal(shown["conditioning_map"], wide[..., :1].permute(0, 3, 1, 2))
    assert "conditioning_class" in shown


def test_a_layout_is_shown_as_a_picture_of_its_boxes():
    tau = {
        "target": "ldm.conditioning.layout.LayoutEmbedder",
        "params": {"n_embed": 8, "n_layer": 1, "num_classes": 3, "max_objects": 2},
    }
    model = latent(by_class(cond_stage_config=tau, cond_stage_key="layout"))
    layouts = [torch.tensor([[2.0, 0, 0, 0.5, 0.5]]), torch.empty(0, 5)]
    shown = model.log_images(batch(2) | {"layout": layouts}, steps=2)["conditioning_layout"]
    assert shown.shape == (2, 3, 128, 128)
    assert (to_uint8(shown)[0].numpy() == layout_picture(layouts[0], 128, 128)).all()
    assert (shown[1] == 1).all()


def test_a_low_resolution_image_is_shown_as_large_as_the_others():
    identity = {"target": "torch.nn.Identity"}
    model = latent(
        first_stage_config=kl(),
        cond_stage_config=identity,
        cond_stage_key="LR_image",
        unet_config=unet(in_channels=6),
        conditioning_key="concat",
    )
    small = torch.randint(256, (2, 4, 4, 3), dtype=torch.uint8)
    shown = model.log_images(batch(2, side=8) | {"LR_image": small}, steps=2)
    found = shown["conditioning_LR_image"]
    assert found.shape == shown["inputs"].shape == (2, 3, 8, 8)
    repeated = small.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    assert torch.equal(to_uint8(found), repeated)


def test_a_map_of_labels_is_shown_in_the_colours_of_its_labels():
    rescaler = {
        "target": "ldm.conditioning.spatial.SpatialRescaler",
        "params": {"n_stages": 0, "in_channels": 5, "out_channels": 2},
    }
    changes = {"cond_stage_config": rescaler, "cond_stage_key": "map"}
    model = latent(**changes, unet_config=unet(in_channels=5))
    labels = torch.arange(32).view(2, 4, 4) % 5
    shown = model.log_images(batch(2) | {"map": labels}, steps=2)["conditioning_map"]
    assert shown.shape == (2, 3, 4, 4)
    expected = torch.from_numpy(coloured(labels.numpy())).permute(0, 3, 1, 2)
    torch.testing.assert_close((shown + 1) * 127.5, expected.float())


def test_a_grey_image_without_channels_is_shown_as_an_image():
    rescaler = {
        "target": "ldm.conditioning.spatial.SpatialRescaler",
        "params": {"n_stages": 0, "in_channels": 1, "out_channels": 2},
    }
    changes = {"cond_stage_config": rescaler, "cond_stage_key": "grey"}
    model = latent(**changes, unet_config=unet(in_channels=5))
    grey = torch.arange(32, dtype=torch.uint8).view(2, 4, 4) * 7
    for given in (grey, grey.float() / 127.5 - 1):
        shown = model.log_images(batch(2) | {"grey": given}, steps=2)["conditioning_grey"]
        assert torch.equal(to_uint8(shown)[..., 0], grey)


def continuous():
    """A model of continuous times."""
    params = parameters(schedule_config=RectifiedFlow(), objective_config=Objective("flow"))
    for key in ("timesteps", "linear_start", "linear_end"):
        del params[key]
    return latent(params)


@pytest.mark.parametrize("make", [latent, continuous])
def test_rows_show_the_way_there_and_back(make):
    model = make()
    shown = model.log_images(batch(2), steps=16, denoise_row=True, diffusion_row=True)
    assert shown["denoise_row"].shape == (8, 3, 4, 4)
    row = shown["diffusion_row"]
    assert row.shape == (8, 3, 4, 4)
    likeness = [torch.corrcoef(torch.stack([row[0].flatten(), x.flatten()]))[0, 1] for x in row]
    assert likeness == sorted(likeness, reverse=True)
    assert likeness[4] > likeness[7]


def test_a_long_text_is_broken_into_lines():
    short, long = text_image(["a"], 64), text_image(["a" * 40], 64)
    assert short.shape == long.shape == (1, 3, 64, 64)
    assert in_range(short)
    black = [(image < 0).any(dim=3).sum() for image in (short, long)]
    assert black[1] > black[0]
