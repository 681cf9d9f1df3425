"""`main.py --check`: the report on standard output, and the exit code that it stands for."""

from __future__ import annotations

import sys

from ldm.cli.arguments import Arguments
from ldm.cli.report.checking import check_everything
from ldm.cli.rundir import RunDir

__all__ = ["report"]


def report(args: Arguments, run: RunDir) -> RunDir:
    """Check what a command line describes and write the report.

    Raises SystemExit with 3 for warnings and 2 for errors.
    """
    found = check_everything(args, run)
    sys.stdout.write((found.json() if args.format == "json" else found.text()) + "\n")
    if found.exit_code:
        raise SystemExit(found.exit_code)
    return run
