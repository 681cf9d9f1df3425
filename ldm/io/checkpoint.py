"""Weights out of a file, safely, and into a module, with a report of what did not match."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ldm.config import ConfigError, nearest, nearest_path
from ldm.io.first_stage import with_first_stage
from ldm.io.manifest import entry_of, require_intact
from ldm.io.unpickle import unpickle

__all__ = ["MatchReport", "compare", "load_into", "load_state", "select"]

State = dict[str, Tensor]

_SHOWN = 3  # examples of each kind in a report


def load_state(path: str | Path) -> State:
    """The weights of a checkpoint: of its `state_dict` entry, or of the file itself.

    path: a file of `torch.save`, or a `.safetensors` file. Tensors are on the CPU and mapped from
        the file where its format allows, so they are read when they are used.

    The first stage that a run stores once, beside its checkpoints, is put in its place.

    Nothing in the file is executed: the classes of trainers and callbacks that old files pickle
    beside the weights are replaced by stand-ins that do nothing, and never imported.

    Raises ConfigError for a file that is missing (with the nearest name), is a configuration or a
    directory, is damaged (as the manifest beside it tells, too), calls a function of the system,
    or holds no weights, and for one whose first stage is missing.
    """
    path = Path(path)
    _require_file(path)
    if entry_of(path) is not None:
        require_intact(path)
    if path.suffix == ".safetensors":
        state = _read_safetensors(path)
    else:
        state = with_first_stage(_plain(unpickle(path)), path)
    state = _plain(state)
    if isinstance(state, dict):
        state = _plain(state.get("state_dict", state))
    if not isinstance(state, dict):
        raise ConfigError(
            f"{path}: holds {_named(state)}, expected weights; save the module's state_dict()"
        )
    strange = [key for key, value in state.items() if not _is_weight(key, value)]
    if strange or not state:
        found = ", ".join(f"{key} ({_named(state[key])})" for key in strange[:_SHOWN])
        raise ConfigError(f"{path}: holds no weights, expected tensors, got {found or 'nothing'}")
    return state


def _is_weight(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor)


def _plain(value: Any) -> Any:
    """A dictionary without what a file may have put in place of its methods."""
    return dict(dict.items(value)) if isinstance(value, dict) else value


def select(state: Mapping[str, Tensor], prefix: str, *, source: str = "the checkpoint") -> State:
    """The part of a state dict under a prefix such as `first_stage_model.`, without the prefix.

    Raises ConfigError, with the prefixes there are, when there is none.
    """
    part = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
    if not part:
        tops = Counter(key.partition(".")[0] for key in state)
        there = ", ".join(f"{top}.* ({count})" for top, count in tops.most_common(5))
        raise ConfigError(f"{source} has nothing under {prefix!r}; it has {there}")
    return part


@dataclass(frozen=True)
class MatchReport:
    """How a state dict and a module fit together, by name.

    matched: number of tensors that fit.  missing: what the module needs and the file lacks.
    unexpected: what the file has beyond that.  mismatched: name, shape in the file, in the module.
    """

    matched: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether every tensor fits and none is left over."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        """The counts, the first names of each kind, and a hint where there is one."""
        shapes = [f"{key} (file {file}, model {own})" for key, file, own in self.mismatched]
        lines = [f"{self.matched} tensors match"]
        lines += _listed("missing in the file", self.missing)
        lines += _listed("unexpected in the file", self.unexpected)
        lines += _listed("of another shape", shapes)
        return "\n  ".join(lines + self._hints())

    def _hints(self) -> list[str]:
        prefix = self._prefix()
        if prefix:
            return [f"hint: the file's names begin with {prefix!r}, those of the model do not"]
        near = nearest(self.missing[0], self.unexpected) if self.missing else None
        return [f"hint: {near} in the file resembles {self.missing[0]}"] if near else []

    def _prefix(self) -> str | None:
        """What stands before the missing names in the file, if that explains most of them."""
        if not self.missing:
            return None
        found = [key for key in self.unexpected if key.endswith("." + self.missing[0])]
        names = set(self.unexpected)
        for prefix in (key.removesuffix(self.missing[0]) for key in found):
            if 2 * sum(prefix + key in names for key in self.missing) > len(self.missing):
                return prefix
        return None


def compare(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], ignore: Sequence[str] = ()
) -> MatchReport:
    """How a state dict fits a module's own, names that begin with one of `ignore` left out."""
    names = [key for key in wanted if not key.startswith(tuple(ignore))]
    given = {key for key in state if not key.startswith(tuple(ignore))}
    shared = [key for key in names if key in given]
    shapes = {key: (tuple(state[key].shape), tuple(wanted[key].shape)) for key in shared}
    mismatched = [(key, *both) for key, both in shapes.items() if both[0] != both[1]]
    return MatchReport(
        matched=len(shared) - len(mismatched),
        missing=tuple(key for key in names if key not in given),
        unexpected=tuple(key for key in state if key in given and key not in wanted),
        mismatched=tuple(mismatched),
    )


def load_into(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    strict: bool = True,
    ignore: Sequence[str] = (),
    source: str = "the checkpoint",
) -> MatchReport:
    """Give a module the weights of a state dict; a module on the meta device receives them as is.

    strict: false lets names be missing or left over, as long as any match.
    ignore: prefixes of names that are neither loaded nor missed (published: `ignore_keys`).
    source: file name for the error message.

    Raises ConfigError with the whole report when they do not fit; a tensor of another shape never
    does. The module is unchanged then.
    """
    wanted = module.state_dict()
    report = compare(state, wanted, ignore)
    is_other = bool(wanted) and not report.matched and not report.is_exact
    if report.mismatched or is_other or (strict and not report.is_exact):
        raise ConfigError(f"{source} does not fit {type(module).__name__}: {report}")
    fitting = {key: state[key] for key in wanted if key in state}
    fitting = {key: value for key, value in fitting.items() if not key.startswith(tuple(ignore))}
    is_meta = any(value.is_meta for value in wanted.values())
    module.load_state_dict(fitting, strict=False, assign=is_meta)
    return report


def _require_file(path: Path) -> None:
    if path.suffix in (".yaml", ".yml", ".json"):
        raise ConfigError(
            f"{path}: is a configuration, not a checkpoint; expected a file of weights "
            "(.ckpt, .pt, .pth or .safetensors)"
        )
    if path.is_dir():
        last = path / "checkpoints" / "last.ckpt"
        hint = f"; did you mean {last}?" if last.is_file() else ""
        raise ConfigError(f"{path}: is a directory, expected a checkpoint file{hint}")
    if not path.is_file():
        near = nearest_path(path)
        raise ConfigError(
            f"{path}: no such checkpoint" + (f"; did you mean {near}?" if near else "")
        )


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"{path}: not a safetensors file, or damaged: {error}") from error


def _named(value: object) -> str:
    kind = type(value)
    return (
        f"a {kind.__qualname__}"
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def _listed(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = ", ..." if len(names) > _SHOWN else ""
    return [f"{what}: {len(names)} ({', '.join(names[:_SHOWN])}{more})"]
