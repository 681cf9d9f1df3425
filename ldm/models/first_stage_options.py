"""What every first stage can be told, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from ldm.config import ConfigError, did_you_mean

__all__ = ["FirstStageOptions", "checked_options"]


class FirstStageOptions(TypedDict, total=False):
    """What every first stage takes beside its networks, each with its default."""

    image_key: str  # where a batch has its images; "image"
    monitor: str | None  # metric of the best checkpoint; none
    ckpt_path: str | None  # weights to start from; none
    ignore_keys: Sequence[str]  # prefixes of names in that file that are not read; none
    colorize_nlabels: int | None  # label channels, which `log_images` shows in random colours; none
    batch_resize_range: Sequence[int] | None  # low, high side in pixels, see `_resized`; none
    use_ema: bool  # average the generator's weights and validate the average too; false
    lr_g_factor: float  # multiplies the generator's learning rate; 1
    scheduler_config: Mapping[str, Any] | None  # factor on the rate by a player's own steps; none
    optimizer_config: Mapping[str, Any] | None  # of both players; Adam with betas 0.5 and 0.9
    gan_forward: Literal["shared", "published"]  # see `first_stage_step`; "shared"


DEFAULTS: FirstStageOptions = {
    "image_key": "image",
    "monitor": None,
    "ckpt_path": None,
    "ignore_keys": (),
    "colorize_nlabels": None,
    "batch_resize_range": None,
    "use_ema": False,
    "lr_g_factor": 1.0,
    "scheduler_config": None,
    "optimizer_config": {"target": "torch.optim.Adam", "params": {"betas": [0.5, 0.9]}},
    "gan_forward": "shared",
}


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """All options, those that are not given by default.

    Raises ConfigError for one that there is none of, and for a value that means nothing.
    """
    if unknown := options.keys() - DEFAULTS.keys():
        name = min(unknown)
        raise ConfigError(f"{name}: unknown option{did_you_mean(name, DEFAULTS)}")
    checked: dict[str, Any] = {**DEFAULTS, **options}
    if (forward := checked["gan_forward"]) not in ("shared", "published"):
        raise ConfigError(f"gan_forward={forward!r}: expected 'shared' or 'published'")
    return checked
