"""How the scripts that judge first stages read images: as training did, or as flags say."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, get_args

from ldm.cli.first_stages import LoadedFirstStage
from ldm.config import ConfigError, with_key
from ldm.data.arrays import Dtype
from ldm.data.pixels import NPY, PixelFormat
from ldm.losses.perceptual import LpipsChannels

__all__ = ["add_image_format", "format_facts", "lpips_channels", "pixel_formats", "shared_files"]


def add_image_format(parser: argparse.ArgumentParser) -> None:
    """The flags that say which numbers of a file are pixels."""
    add = parser.add_argument
    add("--dtype", choices=get_args(Dtype), help="float32 keeps all bits; default: as trained")
    add(
        "--value-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="numbers of .npy and floating-point files; default: as trained",
    )


def pixel_formats(
    stages: Sequence[LoadedFirstStage], args: argparse.Namespace
) -> list[PixelFormat]:
    """How images are read for each first stage, in one type and range for all.

    These are of the flags of `add_image_format`, otherwise of the data that they were trained on.
    Raises ConfigError where that differs and no flag decides, and for values out of range.
    """
    with with_key("--value-range"):
        PixelFormat.of(1, "uint8", args.value_range)
    dtype = args.dtype or _agreed(stages, "dtype", "uint8")
    value_range = args.value_range or _agreed(stages, "value_range", None)
    with with_key("data.params.train.params"):
        return [PixelFormat.of(each.channels, dtype, value_range) for each in stages]


def lpips_channels(stages: Sequence[LoadedFirstStage], args: argparse.Namespace) -> LpipsChannels:
    """Channels of the flag `--lpips-channels`, otherwise those that training compared.

    Raises ConfigError where first stages were trained with different ones, and for words that are
    no channels.
    """
    words = args.lpips_channels
    if words == ["each"]:
        return "each"
    if words is not None:
        if len(words) != 3 or not all(word.isdecimal() for word in words):
            raise ConfigError(
                f"--lpips-channels {' '.join(words)}: expected three channels, counted from 0, or "
                "each"
            )
        return [int(word) for word in words]
    named = [each for each in stages if each.trained_with.get("lpips_channels") is not None]
    found: LpipsChannels = _agreed(named, "lpips_channels", None)
    return found


def _agreed(stages: Sequence[LoadedFirstStage], key: str, default: Any) -> Any:
    """What all first stages were trained with; the default where their data does not say."""
    values = [each.trained_with.get(key, default) for each in stages]
    for stage, value in zip(stages, values, strict=True):
        if value != values[0]:
            raise ConfigError(
                f"{stages[0].name} was trained with {key}: {values[0]}, {stage.name} with "
                f"{value}; --{key.replace('_', '-')} says which it is to be for all"
            )
    return values[0] if values else default


def shared_files(formats: Sequence[PixelFormat]) -> frozenset[str]:
    """Extensions of the files that can be read in all formats.

    Raises ConfigError where there are none.
    """
    counts = sorted({each.channels for each in formats})
    found = frozenset.intersection(*(each.extensions for each in formats))
    if len(counts) > 1:  # an array has one number of channels
        found -= {NPY}
    if not found:
        raise ConfigError(
            f"first stages of {' and '.join(map(str, counts))} channels: no file is an image for "
            "all of them"
        )
    return found


def format_facts(pixels: PixelFormat) -> dict[str, Any]:
    """What a record says of how images were read and compared."""
    compared = {
        "uint8": "uint8, the reconstruction rounded",
        "float32": "float32 in [-1, 1], the reconstruction clipped",
    }
    return {
        "channels": pixels.channels,
        "dtype": pixels.dtype,
        "value_range": pixels.value_range,
        "compared": compared[pixels.dtype],
    }
