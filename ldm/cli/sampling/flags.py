"""The flags of the sampling scripts: the same everywhere, with the published names beside ours."""

from __future__ import annotations

import argparse

from ldm.cli.running import check_finite, check_least
from ldm.cli.sampling.guiding import add_guidance
from ldm.cli.sampling.options import add_sampler
from ldm.cli.sampling.parsing import Parser
from ldm.cli.sampling.published import add_published, bring_to_ours, precision_named
from ldm.config import ConfigError

__all__ = ["check_flags", "sampling_parser"]


class _Defaults(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the description, and shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_something = isinstance(action.default, float | str) or type(action.default) is int
        return super()._get_help_string(action) if says_something else action.help


def sampling_parser(description: str | None) -> argparse.ArgumentParser:
    """The flags that all sampling scripts have; what it refuses is a ConfigError."""
    parser = Parser(description=description, formatter_class=_Defaults)
    _add_model(parser)
    add_sampler(parser)
    add_guidance(parser)
    _add_running(parser)
    _add_output(parser)
    add_published(parser)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("which model").add_argument
    add("run", metavar="RUN", nargs="?", help="run directory, or a checkpoint of one")
    add("--config", metavar="YAML", help="configuration of a checkpoint outside a run")
    add("--weights", choices=("ema", "raw"), default="ema", help="averaged, or as trained last")
    add("--trust", action="append", default=[], metavar="PACKAGE", help="see main.py --help")
    add("--from-png", metavar="PNG", help="draw this picture again, as its own record says")


def _add_running(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("where it runs").add_argument
    add("--batch-size", type=int, default=16, help="images drawn together")
    add("--decode-batch", type=int, metavar="N", help="images decoded together; default: all")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...")
    add("--gpus", metavar="0,1", help="a process for each of these GPUs, in place of --device")
    add("--processes", type=int, default=1, help="processes that share the images, on the CPU")
    add(
        "--precision",
        type=precision_named,
        choices=("fp32", "bf16"),
        default="fp32",
        help="precision of matrix products",
    )
    add(
        "--compile",
        nargs="?",
        choices=("default", "graphs"),
        const="default",
        help="compile the network first, which pays for many images; graphs: with CUDA graphs",
    )
    add("--worker", metavar="NUMBER/PARENT", help=argparse.SUPPRESS)


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what it writes").add_argument
    add("--out", metavar="DIR", help="goes on there where it stopped; default: outputs/TIME_SCRIPT")
    add("--npz", action="store_true", help="all images in images.npz as well, arr_0 (N, H, W, C)")
    add("--skip-grid", action="store_true", help="without grid.png")
    add("--preview", choices=("row", "gif"), help="how each image came about, in a file beside it")


def check_flags(args: argparse.Namespace) -> None:
    """Bring published flags to ours; ConfigError for a number out of range or flags that clash."""
    bring_to_ours(args)
    # None where it is not: what records of before there was this flag say too
    args.compiled = True if args.compile is not None and args.from_png is None else None
    if args.run is None and args.from_png is None:
        raise ConfigError("RUN is missing: a run directory, or a checkpoint")
    check_least(args, n=1, batch_size=1, decode_batch=1, seed=0, steps=1, eta=0, processes=1)
    if args.eta is not None and args.eta > 1:
        raise ConfigError(f"--eta {args.eta}: expected 0 to 1")
    check_finite(args)
