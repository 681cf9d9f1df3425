"""Measure the training step of a configuration, beside the same networks of diffusers if asked.

With --sampling: drawing, beside the bare calls of its network. With --safety: the same training
with the callbacks that keep it safe and without.

python scripts/benchmark.py configs/quickstart/ldm.yaml
python scripts/benchmark.py configs/benchmark/uncond.yaml --against diffusers --precision fp32
python scripts/benchmark.py configs/benchmark/sampling-kl-f8.yaml --sampling
python scripts/benchmark.py configs/tiny/ldm-class.yaml --safety
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from ldm.benchmark.configuration import is_first_stage, measured_block, without_weights
from ldm.benchmark.report import machine, rows, sampler_line, table
from ldm.benchmark.sampling import DRAWN_HEADER, Drawing
from ldm.benchmark.setting import Setting
from ldm.cli.exits import exit_code
from ldm.config import ConfigError
from ldm.evaluation.tables import markdown_table


def benchmark(argv: Sequence[str]) -> None:
    """Parse the command line, measure, print."""
    args = _parser().parse_args(argv)
    setting = Setting(
        device=args.device,
        precision=args.precision,
        batch_size=args.batch_size,
        num_threads=args.threads,
        is_compiled=args.compile,
    )
    setting.apply()
    if args.safety and (args.sampling or args.against):
        raise ConfigError("--safety: measured alone, leave --sampling and --against out")
    if args.sampling and args.against:
        raise ConfigError("--sampling: compared with the network alone, leave --against out")
    if args.safety:
        _safety(args, setting)
        return
    block = measured_block(args.config, args.overrides)
    model = without_weights(block)
    print(f"{args.config}, {args.precision}, batch {args.batch_size}; {machine(setting)}")
    clock = "wall time" if setting.is_cuda else "processor time, summed over threads"
    if args.sampling:
        print(f"seconds: of {clock}; medians, with quartiles over calls")
        _sampling(Drawing(block, setting), args.steps)
        return
    print(f"seconds and utilisation: of {clock}; images/s: of wall time; medians")
    print("weights are random; images, latents and conditions are given")
    if is_first_stage(model) and model.loss.perceptual_loss is not None:
        print("LPIPS has random weights too: its cost, not its judgement")
    found = rows(
        block,
        setting,
        against=args.against,
        rounds=args.rounds,
        with_memory=not args.no_memory,
    )
    print(f"ceiling: {found[0].limit / 1e9:.0f} GFLOP/s in {args.precision}")
    print(table(found))
    if not is_first_stage(model):
        print(sampler_line(setting, against=args.against))


def _safety(args: argparse.Namespace, setting: Setting) -> None:
    """Train with the callbacks that keep a training safe, and without, in turns."""
    from ldm.cli.safety_cost import SAVED_EVERY, safety_costs

    precision = "bf16-mixed" if args.precision == "bf16" else "32-true"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{args.config}, {precision}; {machine(setting)}{load}")
    found = safety_costs(
        args.config, args.overrides, precision=precision, device=args.device, rounds=args.rounds
    )
    print(f"a step without any: {found.step:.3g} s, wall {found.wall:.3g} s")
    print(found.table())
    print(
        f"a checkpoint: {found.saving:.3g} s of wall time; every {SAVED_EVERY} steps "
        f"{100 * found.saving_share:.3f} % of theirs"
    )


def _sampling(drawing: Drawing, steps: int) -> None:
    """Draw with each solver, and print a row when it is done."""
    print("weights are random, conditions are given; what is drawn are latents")
    print("guidance: classifier-free" if drawing.is_guided else "no condition, so no guidance")
    print(markdown_table(DRAWN_HEADER, []), flush=True)
    first = None
    for draw in drawing.draws(steps):
        first = first or draw
        print(f"| {' | '.join(draw.cells())} |", flush=True)
    if (times := drawing.cast_each_call()) is not None:
        held, cast = times["held"], times["cast"]
        ratio = cast.ratio_to(held)
        print(f"weights held in bf16: {held.typical_busy:.3g} s a call of twice the batch")
        print(
            f"cast from float32 at each call: {cast.typical_busy:.3g} s, {ratio:.2f} times as long"
        )
    if first is not None and (seconds := drawing.decoding()) is not None:
        share = 100 * seconds / first.total
        print(f"decoding, which no row holds: {seconds:.3g} s, {share:.1f} % of the first draw")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Measure the training step of a configuration: time, images per second, peak "
        "memory, model FLOPs and utilisation; of a diffusion model also the sampling loop. With "
        "--sampling: drawing beside the bare calls of its network.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("config", help="YAML file with a block `model`")
    parser.add_argument("overrides", nargs="*", help="a.b.c=value, as for training")
    parser.add_argument("--against", choices=["diffusers"], help="measure this library beside")
    parser.add_argument(
        "--precision", choices=["bf16", "fp32"], default="bf16", help="precision of matrix products"
    )
    parser.add_argument("--batch-size", type=_positive, default=1, help="images per step")
    parser.add_argument("--rounds", type=_positive, default=7, help="steps of each that count")
    parser.add_argument(
        "--threads", type=_natural, default=1, help="CPU threads; 0: torch's default"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--compile", action="store_true", help="compile the networks")
    parser.add_argument("--sampling", action="store_true", help="measure drawing instead")
    parser.add_argument("--safety", action="store_true", help="measure what safety costs instead")
    parser.add_argument(
        "--steps", type=_positive, default=50, help="of the first solver drawn with"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    return parser


def _natural(text: str, least: int = 0) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{text}: expected at least {least}")
    return value


def _positive(text: str) -> int:
    return _natural(text, least=1)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)  # diffusers' own
    sys.exit(exit_code(benchmark))
