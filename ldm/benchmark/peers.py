"""Networks of diffusers with the shapes of ours, in that library's fastest form."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.config import ConfigError
from ldm.nets.attention import heads_of
from ldm.nets.autoencoder import Encoder
from ldm.nets.unet import UNetModel

__all__ = ["PeerUNet", "has_diffusers", "peer_autoencoder"]


def has_diffusers() -> bool:
    """Whether diffusers, an extra, is installed."""
    return importlib.util.find_spec("diffusers") is not None


class PeerUNet(nn.Module):
    """The U-Net of diffusers with the levels, heads and conditions of a `UNetModel`.

    arguments: of `UNetModel`; weights are random.
    Raises ConfigError for what diffusers has no counterpart to.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self.has_context = bool(arguments.get("use_spatial_transformer"))
        missing = ["resblock_updown", "n_embed"]
        missing += [] if self.has_context else ["num_classes", "adm_in_channels"]
        for key in missing:
            if arguments.get(key):
                raise ConfigError(f"unet_config.params.{key}: diffusers has no such network")
        ours = {**_defaults(UNetModel), **arguments}
        factors = [2**level for level in range(len(ours["channel_mult"]))]
        attends = [factor in ours["attention_resolutions"] for factor in factors]
        self.in_channels, self.out_channels = ours["in_channels"], ours["out_channels"]
        self.context_dim = ours["context_dim"]
        self.num_classes, self.adm_in_channels = ours["num_classes"], ours["adm_in_channels"]
        self.net = _unet(ours, attends, self.has_context)
        for module in self.net.modules():
            if type(module).__name__ == "Attention":
                attention: Any = module
                width = attention.to_q.out_features
                attention.heads = heads_of(width, ours["num_heads"], ours["num_head_channels"])

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        """As `UNetModel`.

        x: (B, C, H, W).  timesteps: (B,).  context: (B, M, D).  y: (B,) or (B, D').
        Returns (B, C_out, H, W).
        """
        given = {"encoder_hidden_states": context} if self.has_context else {}
        if y is not None:
            given["class_labels"] = y
        out: Tensor = self.net(x, timesteps, return_dict=False, **given)[0]
        return out


def _defaults(network: Callable[..., nn.Module]) -> dict[str, Any]:
    """What a network's arguments are when they are not given."""
    parameters = inspect.signature(network).parameters
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not parameter.empty
    }


def _unet(ours: Mapping[str, Any], attends: Sequence[bool], has_context: bool) -> nn.Module:
    import diffusers  # an extra, and slow to import

    kind = "CrossAttn{}Block2D" if has_context else "Attn{}Block2D"
    names = [kind if attend else "{}Block2D" for attend in attends]
    net: nn.Module
    shared = {
        "in_channels": ours["in_channels"],
        "out_channels": ours["out_channels"],
        "block_out_channels": tuple(ours["model_channels"] * m for m in ours["channel_mult"]),
        "layers_per_block": ours["num_res_blocks"],
        "down_block_types": tuple(name.format("Down") for name in names),
        "up_block_types": tuple(name.format("Up") for name in reversed(names)),
        "dropout": ours["dropout"],
        "resnet_time_scale_shift": "scale_shift" if ours["use_scale_shift_norm"] else "default",
    }
    if has_context:
        net = diffusers.UNet2DConditionModel(
            **shared,
            attention_head_dim=1,  # number of heads, in spite of its name; set by the caller
            cross_attention_dim=ours["context_dim"],
            transformer_layers_per_block=ours["transformer_depth"],
            num_class_embeds=ours["num_classes"],
            class_embed_type="projection" if ours["adm_in_channels"] else None,
            projection_class_embeddings_input_dim=ours["adm_in_channels"],
        )
    else:
        net = diffusers.UNet2DModel(
            **shared, attention_head_dim=ours["model_channels"], downsample_padding=1
        )
    _check_size(net, ours)
    return net


def _check_size(net: nn.Module, ours: Mapping[str, Any]) -> None:
    with torch.device("meta"):
        same = UNetModel(**ours)
    sizes = [sum(p.numel() for p in module.parameters()) for module in (net, same)]
    if sizes[0] != sizes[1]:
        raise ConfigError(f"diffusers' network has {sizes[0]} parameters, ours {sizes[1]}")


def peer_autoencoder(ddconfig: Mapping[str, Any], embed_dim: int) -> nn.Module:
    """The KL autoencoder of diffusers with the levels of ours; weights are random.

    Raises ConfigError for what diffusers has no counterpart to.
    """
    import diffusers

    ours = {**_defaults(Encoder), **ddconfig}
    if ours["attn_resolutions"] or embed_dim != ours["z_channels"]:
        raise ConfigError("ddconfig: diffusers has no KL autoencoder of this shape")
    widths = tuple(ours["ch"] * mult for mult in ours["ch_mult"])
    net: nn.Module = diffusers.AutoencoderKL(
        in_channels=ours["in_channels"],
        out_channels=ours["out_ch"],
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=ours["num_res_blocks"],
        latent_channels=embed_dim,
        mid_block_add_attention=ours["attn_type"] != "none",
        norm_num_groups=ours["num_groups"],
    )
    return net
