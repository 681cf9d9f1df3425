"""Several first stages on the same images: what was found about each, a table and a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm.evaluation.first_stage import Judge, judged
from ldm.evaluation.pictures import Pictures
from ldm.evaluation.sheets import AnyPixels, Pixels, captioned_sheet
from ldm.evaluation.tables import markdown_table

__all__ = ["Contender", "Costs", "comparison_sheet", "comparison_table", "contender"]

SHEET_ROWS = 8  # images on the sheet

# what a first stage costs for one image (1, H, W, C) whose latent is (c, h, w)
Costs = Callable[[Any, Tensor, tuple[int, int, int]], dict[str, Any]]


class Contender(NamedTuple):
    """A first stage with what was found about it; `cells` are for the sheet."""

    facts: dict[str, Any]
    cells: list[tuple[AnyPixels, str]]
    originals: list[tuple[AnyPixels, str]]


def contender(
    first_stage: Any,
    pictures: Pictures,
    judge: Judge,
    *,
    name: str,
    costs: Costs,
    device: torch.device,
    on_image: Callable[[], object],
) -> Contender:
    """Reconstruct and compare all images, and take what the first that can be read costs.

    name: under its reconstructions.  on_image: told of each image that could be read.
    """
    cells: list[tuple[AnyPixels, str]] = []
    originals: list[tuple[AnyPixels, str]] = []
    found_costs: dict[str, Any] = {}
    for found in judged(first_stage, pictures, judge, device=device):
        on_image()
        if not found_costs:
            found_costs = costs(first_stage, found.image[None].to(device), found.latent)
        if len(cells) < SHEET_ROWS:
            size = f"{found.image.shape[0]} x {found.image.shape[1]} pixels"
            originals.append((found.image.numpy(), f"{Path(found.name).name}\n{size}"))
            text = f"{name}\nPSNR {found.measures['psnr']:.2f} dB"
            cells.append((found.reconstruction.numpy(), text))
    facts = {**found_costs, "summary": judge.summary(), "bad": pictures.bad}
    return Contender(facts, cells, originals)


def comparison_sheet(contenders: Sequence[Contender]) -> Pixels:
    """The first images in rows, each with its reconstructions in columns: (H, W, 3) uint8."""
    rows = zip(contenders[0].originals, *(each.cells for each in contenders), strict=True)
    return captioned_sheet(list(rows))


def comparison_table(rows: Sequence[dict[str, Any]]) -> str:
    """What is known of each first stage as a Markdown table, without columns that nobody has."""
    columns: dict[str, list[str]] = {
        "first stage": [row["name"] for row in rows],
        "f": [str(row["downsample_factor"]) for row in rows],
        "image": [_shape(row["image"][:2]) for row in rows],
        "latent": [_shape(row["latent"]) for row in rows],
        "numbers": [str(row["numbers"]) for row in rows],
    }
    measures = {"PSNR dB": ("psnr", "mean", 2), "SSIM": ("ssim", "mean", 3)}
    measures |= {"sharpness": ("sharpness", "value", 2)}
    measures |= {"LPIPS": ("lpips", "mean", 3), "rFID": ("rfid", "value", 2)}
    measures |= {"R-IS": ("r_is", "value", 2)}
    measures |= {"Frechet distance": ("frechet_distance", "value", 4)}
    measures |= {"classifier score": ("classifier_score", "value", 2)}
    for title, (name, key, digits) in measures.items():
        found = [row["summary"].get(name, {}).get(key) for row in rows]
        if any(value is not None for value in found):
            columns[title] = ["-" if v is None else f"{v:.{digits}f}" for v in found]
    for name in ("encode", "decode"):
        pairs = [row[f"{name}_ms"] for row in rows]
        columns[f"{name} ms (processor)"] = [
            f"{each['wall']:.1f} ({each['processor']:.1f})" for each in pairs
        ]
    if "unet" in rows[0]:
        columns["UNet GFLOP/step"] = [f"{row['unet']['gflop_per_step']:.2f}" for row in rows]
    return markdown_table(list(columns), zip(*columns.values(), strict=True)) + "\n"


def _shape(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))
