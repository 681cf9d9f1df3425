"""Runs a script of preparation as its command line does."""

import runpy

from ldm.cli.exits import exit_code
from tests.shipped_configs import ROOT


def run(name, *words):
    """The exit code of `scripts/NAME.py` with these words."""
    script = runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))
    return exit_code(script[name], list(map(str, words)))
