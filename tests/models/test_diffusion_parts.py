"""Parts of a diffusion model that do not fit each other are refused before anything runs."""

import pytest

from ldm.models.diffusion.assemble import DDPMConfig, assemble
from tests.models.diffusion_models import (
    ATTENDING,
    ON_META,
    by_class,
    kl,
    labels,
    parameters,
    parts,
    refused,
    rescaler,
    unet,
)


def test_latents_and_network_must_have_the_same_channels():
    refused(
        "unet_config.params.out_channels: 4, but AutoencoderKL has latents of 3 channels",
        parameters(first_stage_config=kl(), unet_config=unet(in_channels=4, out_channels=4)),
    )
    refused(
        "unet_config.params.in_channels: 4, but AutoencoderKL has latents of 3 channels",
        parameters(first_stage_config=kl(), unet_config=unet(in_channels=4)),
    )
    refused("channels: 5, but AutoencoderKL .* 3", parameters(first_stage_config=kl(), channels=5))


def ddpm_unet(**changes):
    params = {
        "ch": 32,
        "out_ch": 3,
        "in_channels": 3,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "resolution": 4,
    }
    return {"target": "ldm.nets.ddpm_unet.Model", "params": params | changes}


@pytest.mark.parametrize(
    ("network", "out_channels"), [(unet, "out_channels"), (ddpm_unet, "out_ch")]
)
@pytest.mark.parametrize("is_input", [True, False])
def test_pixels_and_network_must_have_the_same_channels(network, out_channels, is_input):
    name = "in_channels" if is_input else out_channels
    wrong = {"unet_config": network(**{name: 4})}
    message = f"unet_config.params.{name}: 4, but channels is 3"
    refused(f"^{message} unless it is given$", wrong, DDPMConfig)
    refused(f"^{message}$", wrong | {"channels": 3}, DDPMConfig)


def test_a_network_of_ddpm_fits_pixels():
    with ON_META:
        net = assemble({"unet_config": ddpm_unet(), "timesteps": 20}, DDPMConfig).net
    assert net.out_channels == 3


def test_a_joined_condition_counts_among_the_channels():
    joined = parts(cond_stage_config=rescaler(2), unet_config=unet(in_channels=5))
    assert joined.conditioning_key == "concat"
    refused(
        r"in_channels: 3, but IdentityFirstStage has latents of 3 channels \+ 2 \(condition\)",
        parameters(cond_stage_config=rescaler(2)),
    )


def test_tokens_must_have_the_width_that_the_network_attends_to():
    refused(
        "unet_config.params.context_dim: 8, but ClassEmbedder gives tokens of width 6",
        by_class(cond_stage_config=labels(embed_dim=6)),
    )
    refused(
        "unet_config.params.context_dim: not given, so the network attends to nothing",
        by_class(unet_config=unet()),
    )


def words(**changes):
    params = {"n_embed": 6, "vocab_size": 9, "key": "caption"} | changes
    return {"target": "ldm.conditioning.words.BagOfWords", "params": params}


def test_a_vector_must_have_the_width_that_the_network_projects():
    fitting = unet(**ATTENDING, adm_in_channels=6)
    both = parts(cond_stage_config=[labels(), words()], unet_config=fitting)
    assert both.conditioning_key == "crossattn-adm"
    refused(
        "unet_config.params.adm_in_channels: 6, but the condition gives vectors of width 5",
        parameters(cond_stage_config=[labels(), words(n_embed=5)], unet_config=fitting),
    )
    refused(
        "unet_config.params.adm_in_channels: None, but the condition gives vectors of width 6",
        parameters(cond_stage_config=words(), unet_config=unet()),
    )


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (ATTENDING, "context_dim: 8, but no encoder gives tokens to attend to"),
        ({"num_classes": 4}, "num_classes: 4, but no encoder gives labels or vectors y"),
        ({"adm_in_channels": 6}, "adm_in_channels: 6, but no encoder gives labels or vectors y"),
    ],
)
def test_a_network_that_wants_what_no_encoder_gives_is_refused(wanted, message):
    message = rf"^unet_config\.params\.{message}"
    refused(message, parameters(unet_config=unet(**wanted)))
    joined = {"cond_stage_config": rescaler(2), "unet_config": unet(in_channels=5, **wanted)}
    refused(message, parameters(**joined))
