"""Reconstructions of images as files, one of each, and a sheet that shows what was lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm.data.decoding import MODES
from ldm.data.pixels import PixelFormat
from ldm.evaluation.first_stage import Judged
from ldm.evaluation.sheets import AnyPixels, captioned_sheet, heat_map

__all__ = ["write_reconstructions"]

SHEET_ROWS = 16  # images on the sheet


def write_reconstructions(
    found: Iterable[Judged], out: Path, *, pixels: PixelFormat, on_image: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Write every reconstruction, and `sheet.png` of the first; what a record says of each.

    PNG in 8 bits where a PNG has such channels, otherwise `.npy` in float32 with the numbers of the
    image's file. The sheet has each image beside its reconstruction and a map of the error.
    out: a directory that is there.  pixels: how the images were read.
    on_image: told after each image how many are done.
    """
    rows: list[list[tuple[AnyPixels, str]]] = []
    entries: list[dict[str, Any]] = []
    for each in found:
        stem = out / f"{len(entries):05}_{Path(each.name).stem}"
        entries.append(_entry(each, _written(each, stem, pixels)))
        if len(rows) < SHEET_ROWS:
            rows.append(_row(each))
        on_image(len(entries))
    Image.fromarray(captioned_sheet(rows)).save(out / "sheet.png")
    return entries


def _written(found: Judged, stem: Path, pixels: PixelFormat) -> dict[str, Any]:
    """Write a reconstruction; the file's name, and the range of its numbers where it is `.npy`."""
    made = found.reconstruction.numpy()
    if made.dtype == np.uint8 and made.shape[2] in MODES:
        file = stem.with_name(f"{stem.name}.png")
        Image.fromarray(made[..., 0] if made.shape[2] == 1 else made).save(file)
        return {"file": file.name}
    low, high = pixels.limits(Path(found.name))
    fractions = made / 255 if made.dtype == np.uint8 else (made.astype(np.float64) + 1) / 2
    file = stem.with_name(f"{stem.name}.npy")
    np.save(file, (low + (high - low) * fractions).astype(np.float32))
    return {"file": file.name, "range": [low, high]}


def _entry(found: Judged, written: dict[str, Any]) -> dict[str, Any]:
    height, width = found.image.shape[:2]
    return {
        "image": found.name,
        **written,
        "size": [height, width],
        "latent": list(found.latent),
        "numbers": math.prod(found.latent),
        **found.measures,
    }


def _row(found: Judged) -> list[tuple[AnyPixels, str]]:
    """Image, reconstruction and where they differ, with what is to be said of each."""
    image, made = found.image.numpy(), found.reconstruction.numpy()
    heat, most = heat_map(image, made)
    channels, height, width = found.latent
    numbers = [f"PSNR {found.measures['psnr']:.2f} dB"]
    numbers += [f"{k.upper()} {v:.3f}" for k, v in found.measures.items() if k != "psnr"]
    return [
        (image, f"{Path(found.name).name}\n{image.shape[0]} x {image.shape[1]} pixels"),
        (made, f"latent {channels} x {height} x {width}\n" + "  ".join(numbers)),
        (heat, f"error: black 0, red, yellow,\nwhite {most:.3g} of 255 grey levels"),
    ]
