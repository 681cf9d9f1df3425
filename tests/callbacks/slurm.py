"""A job of SLURM as a process sees it: environment, and a `scontrol` that writes down its words."""

from pathlib import Path
from typing import Any


def in_job(monkeypatch: Any, directory: Path, scontrol: str = "exit 0") -> Path:
    """Pretend to be in job 7; returns the file in which `scontrol` writes its words.

    scontrol: what it does then, as a line of the shell.
    """
    said = directory / "scontrol.txt"
    command = directory / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {said}\n{scontrol}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return said
