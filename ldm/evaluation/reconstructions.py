"""Reconstructions of images as files: one PNG of each, and a sheet that shows what was lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.evaluation.first_stage import Judged
from ldm.evaluation.sheets import Pixels, captioned_sheet, heat_map

__all__ = ["write_reconstructions"]

SHEET_ROWS = 16  # images on the sheet


def write_reconstructions(
    found: Iterable[Judged], out: Path, *, on_image: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Write every reconstruction as PNG, and `sheet.png` of the first; what a record says of each.

    The sheet has each image beside its reconstruction and a map of the error.
    out: a directory that is there.  on_image: told after each image how many are done.
    """
    rows: list[list[tuple[Pixels, str]]] = []
    entries: list[dict[str, Any]] = []
    for each in found:
        file = f"{len(entries):05}_{Path(each.name).stem}.png"
        _save(each.reconstruction.numpy(), out / file)
        entries.append(_entry(each, file))
        if len(rows) < SHEET_ROWS:
            rows.append(_row(each))
        on_image(len(entries))
    _save(captioned_sheet(rows), out / "sheet.png")
    return entries


def _save(pixels: Pixels, path: Path) -> None:
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)


def _entry(found: Judged, file: str) -> dict[str, Any]:
    height, width = found.image.shape[:2]
    return {
        "image": found.name,
        "file": file,
        "size": [height, width],
        "latent": list(found.latent),
        "numbers": math.prod(found.latent),
        **found.measures,
    }


def _row(found: Judged) -> list[tuple[Pixels, str]]:
    """Image, reconstruction and where they differ, with what is to be said of each."""
    image, made = found.image.numpy(), found.reconstruction.numpy()
    heat, most = heat_map(image, made)
    channels, height, width = found.latent
    numbers = [f"PSNR {found.measures['psnr']:.2f} dB"]
    numbers += [f"{k.upper()} {v:.3f}" for k, v in found.measures.items() if k != "psnr"]
    return [
        (image, f"{Path(found.name).name}\n{image.shape[0]} x {image.shape[1]} pixels"),
        (made, f"latent {channels} x {height} x {width}\n" + "  ".join(numbers)),
        (heat, f"error: black 0, red, yellow,\nwhite {most} of 255 grey levels"),
    ]
