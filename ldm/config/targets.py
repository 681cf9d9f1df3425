"""Dotted paths: which of them a configuration may name, and what they name.

A `target:` is code, and a configuration file may come from anywhere, so a path is resolved only
inside trusted packages, and nothing else is imported while that is decided.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from ldm import published
from ldm.config.errors import ConfigError, did_you_mean

__all__ = ["LIBRARIES", "is_library", "is_ours", "locate", "trust"]

_MODULE = "torch.nn.modules.module.Module"

# parts of other libraries that a configuration may name, and of what kind: subclasses of these.
# Functions it may not, since some of them run what they are given (torch.load, torch.hub.load),
# nor other classes: there are such that start a server or read a pickle when they are built
LIBRARIES = {
    "torch.nn": (_MODULE,),
    "torch.optim": (
        "torch.optim.optimizer.Optimizer",
        "torch.optim.lr_scheduler.LRScheduler",
        _MODULE,
    ),
    "torchvision.transforms": ("builtins.object",),
    "torchmetrics": (_MODULE,),
    "pytorch_lightning.callbacks": ("pytorch_lightning.callbacks.callback.Callback",),
    "pytorch_lightning.loggers": ("pytorch_lightning.loggers.logger.Logger",),
    "pytorch_lightning.profilers": ("pytorch_lightning.profilers.profiler.Profiler",),
    "pytorch_lightning.strategies": ("pytorch_lightning.strategies.strategy.Strategy",),
    "transformers": (_MODULE,),
}
_LIBRARY_NAMES = tuple({name.partition(".")[0] for name in LIBRARIES})

# parts of our own whose classes a configuration may name; the others act: they write files, start
# processes, trust packages
_OURS = (
    "ldm.autoencoders",
    "ldm.callbacks",
    "ldm.conditioning",
    "ldm.data",
    "ldm.diffusion",
    "ldm.guidance",
    "ldm.losses",
    "ldm.lr_scheduler",
    "ldm.models",
    "ldm.nets",
    "ldm.samplers",
)

# files beside the package that do something when they are imported or called
_SCRIPTS = ("main", "scripts", "setup")

_trusted: set[str] = set()


def trust(package: str) -> None:
    """Let configurations name the classes and functions of one more package in this process.

    The environment variable LDM_TRUST (names with commas between) does the same.
    Raises ConfigError for a part of Python's own library, which can run any command.
    """
    if _is_standard(package):
        raise ConfigError(f"{package}: Python's own library cannot be trusted with a target")
    _trusted.add(package)


def locate(target: str) -> Callable[..., Any]:
    """The class or function that a dotted path names; a published path finds its present home.

    Raises ConfigError when the path is malformed, outside the trusted packages, was never
    released, or does not exist (with the nearest name that does).
    """
    if not isinstance(target, str) or not _is_path(target):
        raise ConfigError(f"{target!r}: expected a dotted path such as ldm.nets.unet.UNetModel")
    if hint := published.advice(target):
        raise ConfigError(f"{target} was never released: {hint}")
    module_name, _, name = published.current(target).rpartition(".")
    _require_trusted(module_name, target)
    module = _import(module_name, target)
    found = getattr(module, name, None)
    if found is None:
        near = did_you_mean(name, _public_names(module))
        raise ConfigError(f"{target}: {module_name} has no {name!r}{near}")
    _require_buildable(found, target)
    return found  # type: ignore[no-any-return]


def is_ours(found: object) -> bool:
    """Whether a class or function is defined in this package."""
    return _is_inside(getattr(found, "__module__", None) or "", ("ldm",))


def is_library(found: object) -> bool:
    """Whether a class or function is neither ours nor defined under the current directory."""
    return not is_ours(found) and not _is_local(getattr(found, "__module__", None) or "builtins")


def _is_path(target: str) -> bool:
    parts = target.split(".")
    return len(parts) > 1 and all(
        part.isidentifier() and not part.startswith("_") for part in parts
    )


def _is_inside(module: str, prefixes: Iterable[str]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def _trusted_by_user() -> set[str]:
    named = {name.strip() for name in os.environ.get("LDM_TRUST", "").split(",")}
    return {name for name in named | _trusted if name and not _is_standard(name)}


def _is_trusted(module: str) -> bool:
    return _is_inside(module, ("ldm", *LIBRARIES, *_trusted_by_user())) or _is_local(module)


def _require_trusted(module: str, target: str) -> None:
    if _is_trusted(module):
        return
    if _is_standard(module):
        raise ConfigError(f"{target}: refused, a configuration may not name Python's own library")
    top = module.partition(".")[0]
    allowed = [name for name in LIBRARIES if _is_inside(name, [top])]
    if allowed:
        raise ConfigError(f"{target}: refused, of {top} only classes in {', '.join(allowed)}")
    raise ConfigError(
        f"{target}: refused, {top} is not a trusted package; if you trust it, add --trust {top} "
        f"or set LDM_TRUST={top} (trusted are ldm, {', '.join(LIBRARIES)} and modules under the "
        "current directory)"
    )


def _require_buildable(found: object, target: str) -> None:
    """Refuse what a trusted module merely imported, and a library's functions."""
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        kind = "a module" if isinstance(found, ModuleType) else f"a {type(found).__name__}"
        raise ConfigError(f"{target}: is {kind}, expected a class or a function")
    home = getattr(found, "__module__", None) or "builtins"
    _require_trusted(home, target)
    if is_ours(found) and not _is_inside(home, _OURS):
        raise ConfigError(f"{target}: refused, {home} holds nothing that a configuration builds")
    if _is_inside(home, ("ldm", *_LIBRARY_NAMES)) and not inspect.isclass(found):
        raise ConfigError(f"{target}: refused, a configuration may name only classes of {home}")
    kinds = [LIBRARIES[name] for name in LIBRARIES if _is_inside(home, [name])]
    if kinds and not _is_inside(home, _trusted_by_user()):
        _require_kind(found, kinds[0], target)


def _require_kind(found: Any, kinds: Sequence[str], target: str) -> None:
    """Refuse a library's class that is a subclass of none of these."""
    above = {f"{base.__module__}.{base.__qualname__}" for base in found.__mro__}
    if above.isdisjoint(kinds):
        names = " or ".join(kind.rpartition(".")[2] for kind in kinds)
        raise ConfigError(f"{target}: refused, of this library only a {names} may be named")


def _is_local(module: str) -> bool:
    """Whether a module lives under the current directory, found without importing it."""
    top, _, rest = module.partition(".")
    spec = _spec(top)
    if spec is None:
        return False
    places = list(spec.submodule_search_locations or ())
    if spec.has_location and spec.origin:
        places.append(spec.origin)
    parts = rest.split(".")
    return bool(places) and all(
        _is_users(Path(place).resolve()) and not _is_script(Path(place, *parts)) for place in places
    )


def _is_script(place: Path) -> bool:
    """Whether this project's own scripts are there, which act."""
    root = Path(__file__).resolve().parents[2]
    place = place.resolve()
    below = place.relative_to(root).parts if place.is_relative_to(root) else ()
    return bool(below) and below[0].removesuffix(".py") in _SCRIPTS


def _spec(top: str) -> ModuleSpec | None:
    here = os.getcwd()
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module that was made by hand has none
        return None
    if spec is None and (spec := PathFinder.find_spec(top, [here])) is not None:
        # a script in a folder of its own does not see the directory it was started from;
        # last on the path, that directory hides nothing
        sys.path.append(here)
    return spec


def _is_users(place: Path) -> bool:
    """Whether a file under the current directory is the user's, not an environment's."""
    paths = sysconfig.get_paths()
    installed = [Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib")]
    is_installed = any(place.is_relative_to(part) for part in installed)
    in_environment = {"site-packages", "dist-packages"}.intersection(place.parts)
    return place.is_relative_to(Path.cwd()) and not is_installed and not in_environment


def _import(module_name: str, target: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        missing = error.name or ""
        if not isinstance(error, ModuleNotFoundError) or not _is_inside(module_name, [missing]):
            raise ConfigError(f"{target}: importing {module_name} failed: {error}") from error
        parent, _, name = missing.rpartition(".")
        near = did_you_mean(name, _submodules(parent))
        raise ConfigError(f"{target}: there is no module {missing}{near}") from error


def _public_names(module: ModuleType) -> list[str]:
    names = getattr(module, "__all__", None) or dir(module)
    return [name for name in names if not name.startswith("_")]


def _submodules(package: str) -> list[str]:
    search = getattr(sys.modules.get(package), "__path__", None)
    return [] if search is None else [entry.name for entry in pkgutil.iter_modules(search)]
