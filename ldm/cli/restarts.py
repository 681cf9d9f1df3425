"""Which run a start is of, held so that nothing else trains it, and what it must have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm.cli.arguments import Arguments
from ldm.cli.locks import held
from ldm.cli.rundir import RunDir, new_run, newest_run, resumable, resume_run, run_of
from ldm.config import ConfigError, load, to_plain
from ldm.log import log

__all__ = ["hold", "require_same_model", "run_dir", "set_aside", "shared_directory"]

_MAY_DIFFER = ("base_learning_rate", "learning_rate")  # keys of the model's block
_EARLIER = "of_starts_without_checkpoint"  # below configs/, where nothing reads them
_ABSENT = object()


def shared_directory(args: Arguments) -> Path:
    """A directory that all processes of a start see, known before the run is."""
    if args.resume and (run := run_of(args.resume)) is not None:
        return run
    return Path(_logdir(args))


def run_dir(args: Arguments, holding: ExitStack) -> RunDir:
    """The run that the command line names, goes on with, or starts.

    holding: is given the locks of directories that are there already, where something is trained.
    Raises ConfigError: no such run, no valid checkpoint, or another process trains it.
    """
    if args.resume:
        run_path = run_of(args.resume)
        if args.train and run_path is not None and run_path.is_dir():
            hold(run_path, holding)
        return resume_run(args.resume)
    if args.auto_resume:
        run = _auto_resumed(args, holding)
    else:
        run = new_run(_logdir(args), args.name, args.base, args.postfix)
    if args.resume_from_checkpoint and run.resume_from is None:
        run = replace(run, resume_from=resumable(args.resume_from_checkpoint))
    return run


def hold(run: Path, holding: ExitStack) -> None:
    """Let no other process train a run until `holding` is closed."""
    holding.enter_context(held(run / ".lock", str(run)))


def _auto_resumed(args: Arguments, holding: ExitStack) -> RunDir:
    logdir, name = Path(_logdir(args)), str(args.name)
    if args.train:
        if not logdir.exists():
            logdir.mkdir(parents=True)
            holding.callback(_remove_empty, logdir)
        # two that start now would otherwise each start a run of their own
        lock = logdir / f".{name}{args.postfix}.lock".replace("/", "_")
        holding.enter_context(held(lock, f"the run {name}{args.postfix} in {logdir}"))
    run = newest_run(str(logdir), name, args.postfix)
    if args.train and run.path.is_dir():
        hold(run.path, holding)
    return run


def _remove_empty(directory: Path) -> None:
    with suppress(OSError):
        directory.rmdir()


def _logdir(args: Arguments) -> str:
    return f"{args.logdir}/debug_runs" if args.debug else args.logdir


def require_same_model(args: Arguments, run: RunDir) -> None:
    """What the command line says of the model must be what the run was told; rates may differ.

    A network that fits the checkpoint may be trained towards something else all the same.
    Raises ConfigError that names the first key that differs.
    """
    recorded = _model(load(run.config_files(), []))
    told = _model(load([*(args.base or run.config_files())], args.overrides))
    for key, was, is_now in _differences(recorded, told, "model"):
        raise ConfigError(
            f"{key}: {_shown(is_now)}, but {run.path} was started with {_shown(was)}; give "
            f"another -n NAME to start another run, or -r {run.path} to go on with the change"
        )


def _model(config: Any) -> dict[str, Any]:
    block = to_plain(config).get("model")
    block = block if isinstance(block, Mapping) else {}
    return {key: value for key, value in block.items() if key not in _MAY_DIFFER}


def _differences(was: Any, is_now: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(was, Mapping) and isinstance(is_now, Mapping):
        for key in [*was, *(key for key in is_now if key not in was)]:
            one, other = was.get(key, _ABSENT), is_now.get(key, _ABSENT)
            yield from _differences(one, other, f"{path}.{key}")
    elif was != is_now:
        yield path, was, is_now


def _shown(value: Any) -> str:
    return "nothing" if value is _ABSENT else repr(value)


def set_aside(run: RunDir) -> None:
    """Move what an earlier start recorded to where nothing reads it: training begins anew."""
    records = list(run.configs.glob("*.yaml"))
    for path in records:
        path.replace(_made(run.configs / _EARLIER) / path.name)
    if records:
        log.info("%s: configurations of earlier starts are now in %s/", run.configs, _EARLIER)


def _made(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    return directory
