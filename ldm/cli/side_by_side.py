"""Several first stages on image files: a table, a picture and a record."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from ldm.cli.first_stages import LoadedFirstStage, judge_of, load_first_stage, versions
from ldm.cli.image_format import format_facts, lpips_channels, pixel_formats, shared_files
from ldm.cli.running import autocast, check_least, device_of, output_directory
from ldm.evaluation.first_stage import Judge
from ldm.evaluation.pictures import Pictures, image_files
from ldm.evaluation.side_by_side import (
    Contender,
    Costs,
    comparison_sheet,
    comparison_table,
    contender,
)
from ldm.log import log

__all__ = ["compare_and_write"]


def compare_and_write(args: argparse.Namespace, costs: Costs) -> str:
    """Compare and write what the flags of `scripts/compare_first_stages.py` say; the table.

    costs: of a first stage and one image, as the table needs them.
    Raises ConfigError for what the user got wrong.
    """
    check_least(args, size=1, repeats=1)
    device = device_of(args.device)
    stages = [_load(word, args, device) for word in args.runs]
    formats = pixel_formats(stages, args)
    paths = image_files([args.images], shared_files(formats))
    judge = judge_of(args, device, lpips_channels(stages, args))
    out = output_directory(args.out)
    with tqdm(total=len(paths) * len(stages), unit="image") as bar:
        contenders = [
            _measured(first, judge.anew(), Pictures(paths, pixels, args.size), args, costs, bar)
            for first, pixels in zip(stages, formats, strict=True)
        ]
    facts = [each.facts for each in contenders]
    table = comparison_table(facts)
    Image.fromarray(comparison_sheet(contenders)).save(out / "sheet.png")
    (out / "table.md").write_text(table, encoding="utf-8")
    record = {
        "device": str(device),
        "precision": args.precision,
        "threads": torch.get_num_threads(),
        "first_stages": facts,
        "versions": versions(),
    }
    (out / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    log.info("%s: table.md, sheet.png, record.json", out)
    return table


def _load(word: str, args: argparse.Namespace, device: torch.device) -> LoadedFirstStage:
    path, _, config = (word, "", "") if Path(word).exists() else word.rpartition("=")
    if not path:  # neither there nor with a configuration: said as of any other path
        path, config = word, ""
    return load_first_stage(
        path, config or None, device=device, weights=args.weights, trusted=args.trust
    )


def _measured(
    first: LoadedFirstStage,
    judge: Judge,
    pictures: Pictures,
    args: argparse.Namespace,
    costs: Costs,
    bar: Any,
) -> Contender:
    device = device_of(args.device)
    with autocast(device, args.precision):
        found = contender(
            first.module,
            pictures,
            judge,
            name=first.name,
            costs=costs,
            device=device,
            on_image=bar.update,
        )
    bar.update(len(pictures.bad))
    facts = {**first.facts, "pixels": format_facts(pictures.pixels), **found.facts}
    return found._replace(facts=facts)
