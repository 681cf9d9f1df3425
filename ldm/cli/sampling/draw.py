"""What all sampling scripts do: read flags, load the model, draw the job, write."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ldm.cli.out_of_memory import advised_drawing
from ldm.cli.running import output_directory
from ldm.cli.sampling.flags import check_flags, sampling_parser
from ldm.cli.sampling.job import Job
from ldm.cli.sampling.loading import checkpoint_and_block, load_model
from ldm.cli.sampling.networks import prepare_networks
from ldm.cli.sampling.record import read_record, save_png
from ldm.cli.sampling.task import Task
from ldm.cli.sampling.weak import load_weak
from ldm.cli.sampling.workers import Workers
from ldm.config import ConfigError
from ldm.io.digest import sha256_of
from ldm.log import log

__all__ = ["draw_task"]

# flags that say where something lies, whose SHA-256 a record has: it may lie elsewhere by now
_PLACES = ("weak", "clip", "classifier", "lpips_weights", "index")


def draw_task(task: Task, argv: Sequence[str]) -> Path:
    """Draw what the command line of a sampling script asks for; the directory it is in.

    Raises ConfigError for what the user got wrong, before anything is written.
    """
    args = _parsed(task, argv)
    args.out = args.out or _new_directory(task.name)
    if args.from_png is not None:
        return _draw_again(task, args)
    workers = Workers.of(args, task, argv)
    with workers.threads():
        model, checkpoint, block = _loaded(task, args)
        items = [
            {"seed": args.seed + index, **item}
            for index, item in enumerate(task.items(model, args))
        ]
        job = Job.of(task, model, args, items, checkpoint=checkpoint, block=block)
        output_directory(args.out)
        if workers.index == 0:
            job.begin()
        with advised_drawing(job):
            _draw(job, workers)
    return job.out


def _parsed(task: Task, argv: Sequence[str]) -> argparse.Namespace:
    parser = sampling_parser(task.description)
    task.add_flags(parser)
    args = parser.parse_intermixed_args(list(argv))
    check_flags(args)
    return args


def _new_directory(name: str) -> str:
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%dT%H-%M-%S")
    return str(Path("outputs") / f"{now}_{name}")


def _loaded(task: Task, args: argparse.Namespace) -> tuple[Any, str, dict[str, Any]]:
    """The model, the SHA-256 of its checkpoint and its configuration, and what is to go with it."""
    checkpoint, block = checkpoint_and_block(args)
    model = load_model(args, checkpoint, block)
    if args.weak is not None:
        args.weak_model = load_weak(args, model)
        args.weak_sha256 = args.weak_model.sha256
    task.prepare(model, args)
    prepare_networks(model, args)
    return model, sha256_of(checkpoint), block


def _draw(job: Job, workers: Workers) -> None:
    """Draw what is missing, together with other processes, and finish the job."""
    count = len(job.items)
    with (
        workers.started(job.out),
        tqdm(total=count, unit="image", disable=count == 1 or workers.index > 0) as bar,
    ):
        bar.update(job.count())
        bar.initial = bar.n  # for the rate, and the time left
        for batch in workers.share(job.batches()):
            if job.missing(batch):
                workers.require_parent()
                job.write(batch)
                bar.update(job.count() - bar.n if workers.count > 1 else len(batch))
        while workers.others_draw():
            bar.update(job.count() - bar.n)
    if workers.index == 0:
        job.finish()
        log.info("%d image%s in %s", count, "" if count == 1 else "s", job.out)


def _draw_again(task: Task, args: argparse.Namespace) -> Path:
    """Draw the image of a PNG again, in the batch it was drawn in, and compare."""
    path = Path(args.from_png)
    record = read_record(path)
    if (Path(args.out) / path.name).resolve() == path.resolve():
        raise ConfigError(f"--out {args.out}: holds {path.name} itself; give another directory")
    if record.script != task.name:
        raise ConfigError(f"--from-png {path}: scripts/{record.script}.py drew it: use that")
    moved = {name for name in _PLACES if getattr(args, name, None) is not None}
    # a picture may be older than a flag
    known = {name for name in task.all_pixel_flags if name in record.flags} - moved
    vars(args).update({name: record.flags[name] for name in known})
    args.compile = (args.compile or "default") if args.compiled else None
    args.run = args.run or record.run
    if not Path(args.run).exists():
        raise ConfigError(
            f"--from-png {path}: {args.run}, which drew it, is not there; give its RUN as well"
        )
    model, checkpoint, block = _loaded(task, args)
    if checkpoint != record.sha256:
        raise ConfigError(
            f"--from-png {path}: was drawn with the checkpoint of SHA-256 {record.sha256[:12]}..., "
            f"{args.run} has {checkpoint[:12]}...: name the one it was drawn with"
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(record.threads)
    try:
        job = Job.of(task, model, args, record.items, checkpoint=checkpoint, block=block)
        for name, value in record.flags.items():
            if (found := job.record.flags.get(name)) != value and name not in moved:
                raise ConfigError(f"--from-png {path}: {name} was {value}, and now is {found}")
        image = job.draw(range(len(record.items)))[record.index]
    finally:
        torch.set_num_threads(threads)
    out = output_directory(args.out)
    told = replace(job.record, items=record.items, index=record.index)
    save_png(image, out / path.name, told.text)
    with Image.open(path) as before, Image.open(out / path.name) as now:
        apart = np.abs(np.asarray(before).astype(int) - np.asarray(now)).max()
    same = "the same to the last bit" if apart == 0 else f"up to {apart} of 255 levels apart"
    log.info("%s: %s", out / path.name, same)
    return out
