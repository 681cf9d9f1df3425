"""Blocks `model` of the smallest networks that the benchmark can measure."""

from tests.models.first_stages import NETWORK

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
FIRST_STAGE = {
    "target": "ldm.models.autoencoder.AutoencoderKL",
    "params": {
        "embed_dim": 4,
        "ddconfig": {**NETWORK, "z_channels": 4},
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
BLOCKS = {"denoising": DENOISING, "text": TEXT, "text twice": TWICE, "first stage": FIRST_STAGE}


def with_params(block, **params):
    return {**block, "params": {**block["params"], **params}}


def with_loss(**params):
    loss = FIRST_STAGE["params"]["lossconfig"]
    return with_params(FIRST_STAGE, lossconfig=with_params(loss, **params))


def bag(size):
    target = "ldm.conditioning.words.BagOfWords"
    return {"target": target, "params": {"n_embed": size, "key": "caption"}}
