"""The published pair of a concatenated and an attended condition."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ldm.config import build

__all__ = ["HybridConditioner"]


class HybridConditioner(nn.Module):
    """Two encoders, one for each of two slots.

    c_concat_config, c_crossattn_config: the encoders, as configurations or objects.
    """

    def __init__(self, c_concat_config: Any, c_crossattn_config: Any) -> None:
        super().__init__()
        self.concat_conditioner = build(c_concat_config)
        self.crossattn_conditioner = build(c_crossattn_config)

    def forward(self, c_concat: Tensor, c_crossattn: Any) -> dict[str, list[Tensor]]:
        """Both raw conditions to the published dictionary of one-element lists.

        c_concat: (B, C, H, W).  c_crossattn: what its encoder takes.
        Returns c_concat [(B, C', h, w)] and c_crossattn [(B, N, D)].
        """
        return {
            "c_concat": [self.concat_conditioner(c_concat)],
            "c_crossattn": [self.crossattn_conditioner(c_crossattn)],
        }
