"""Flags that all scripts of preparation have."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping

from ldm.config import ConfigError
from ldm.preparation.archives import existing_source
from ldm.preparation.journal import Plan

__all__ = ["add_preparation", "plan_of"]


def add_preparation(
    parser: argparse.ArgumentParser, sources: str, *, out: str | None, nargs: str | None = None
) -> None:
    """Add SOURCE, --out, --expect, --sha256 and --workers.

    sources: what SOURCE is, in words.  out: default directory; None where it has to be given.
    nargs: `+` where there may be several sources.
    """
    add = parser.add_argument
    add("source", metavar="SOURCE", nargs=nargs, help=sources)
    default = f"; default: {out}" if out else ""
    add("--out", metavar="DIR", default=out, required=not out, help=f"where it goes{default}")
    add("--expect", metavar="N", help="number of files, any for no check; default: the owner's")
    digests = "digest that SOURCE must have; again for each further one"
    add("--sha256", metavar="HEX", action="append", default=[], help=digests)
    add("--workers", metavar="N", type=int, default=4, help="threads that write; default: 4")


def plan_of(
    args: argparse.Namespace,
    part: str,
    *,
    expected: int | None,
    what: str,
    settings: Mapping[str, str | int | float | bool | None] | None = None,
) -> Plan:
    """The plan that the common flags say.

    part: name within the output directory.  expected: the owner's number of files.
    what: the sources in words.  settings: those of the script's own flags that change the files.
    Raises ConfigError for a source that is not there and a flag that cannot be.
    """
    if args.workers < 1:
        raise ConfigError(f"--workers {args.workers}: expected 1 or more")
    given = args.source if isinstance(args.source, list) else [args.source]
    for digest in args.sha256:
        if not re.fullmatch("[0-9a-fA-F]{64}", digest):
            raise ConfigError(f"--sha256 {digest}: expected 64 hexadecimal digits")
    return Plan(
        part,
        tuple(existing_source(each, what) for each in given),
        settings or {},
        _expected(args.expect, expected),
        tuple(args.sha256),
    )


def _expected(given: str | None, default: int | None) -> int | None:
    if given is None:
        return default
    if given == "any":
        return None
    if not given.isdecimal() or int(given) < 1:
        raise ConfigError(f"--expect {given}: expected a number of 1 or more, or any")
    return int(given)
