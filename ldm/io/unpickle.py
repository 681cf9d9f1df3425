"""Files of `torch.save` read without running anything in them."""

from __future__ import annotations

import builtins
import sys
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch._weights_only_unpickler import get_globals_in_pkl

from ldm.config import ConfigError

__all__ = ["unpickle"]

# parts of Python's own library that trainers and their settings leave in a file
_HARMLESS = (
    "_codecs",
    "argparse",
    "collections",
    "copyreg",
    "datetime",
    "decimal",
    "enum",
    "functools",
    "pathlib",
    "types",
    "typing",
    "uuid",
)

_MOST_CLASSES = 1000  # that a file may name: each is looked for anew at every object that is made
_OLD_PICKLES = 4  # magic number, version, machine, content
_LONGEST = 500  # characters of a name
_SHOWN = 10  # of them in a message

# dictionaries of a class of their own, which a file fills item by item
_DICTIONARIES = ("defaultdict", "AttributeDict")


def unpickle(path: Path) -> Any:
    """What `torch.save` wrote, tensors on the CPU, mapped from the file where its format allows.

    Only tensors and plain containers are made. Classes of trainers, callbacks and settings that
    old files hold beside the weights become stand-ins that do nothing; they are not imported.

    Raises ConfigError for a file that is damaged or of another kind, and for one that names a
    function which would do damage.
    """
    is_zip = zipfile.is_zipfile(path)
    names: list[str] = []
    if is_zip:
        _require_stored(path)
        with _readable(path):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    else:
        _require_old_form(path)
    calls = sorted(name for name in names if not _is_harmless(name))
    if calls or len(names) > _MOST_CLASSES:
        shown = [*calls, *names][:_SHOWN]
        raise ConfigError(
            f"{path}: refused, reading it the usual way would call {', '.join(shown)}"
        )
    with _readable(path), warnings.catch_warnings():
        stand_ins: list[Any] = [(_stand_in(name), name) for name in names]
        warnings.simplefilter("ignore")  # of pickle protocols: it reads them, or it raises
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _require_old_form(path: Path) -> None:
    """Refuse what is neither a zip nor the pickles of old files, before torch tries to read it.

    It would unpack a tar, and look for hours at a name of millions of characters.
    """
    with _readable(path), path.open("rb") as file:
        for _ in range(_OLD_PICKLES):
            names = get_globals_in_pkl(file)
            if any(len(name) > _LONGEST for name in names):
                raise ValueError("names something at great length")


def _require_stored(path: Path) -> None:
    """Refuse a zip with members that are compressed, which `torch.save` never writes.

    A few bytes could become any number of them in memory, and what is mapped is not unpacked.
    """
    with _readable(path), zipfile.ZipFile(path) as archive:
        packed = [
            info.filename
            for info in archive.infolist()
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > info.compress_size
        ]
    if packed:
        raise ConfigError(
            f"{path}: refused, {packed[0]!r} in it is compressed, which torch.save does not do"
        )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a file that is not what it seems makes the reader raise anything
        raise ConfigError(
            f"{path}: cannot be read as a checkpoint; it is damaged or incomplete, or holds more "
            f"than weights ({type(error).__name__})"
        ) from error


def _is_harmless(name: str) -> bool:
    """Whether a file of weights may well name this; what remains is there to do damage.

    Stand-ins are made for all names alike: this only makes an attack known.
    """
    module, _, attribute = name.partition(".")
    module = IMPORT_MAPPING.get(module, module)  # pickles keep Python 2's names of modules
    if module == "builtins":
        return isinstance(getattr(builtins, attribute, None), type)
    return module in _HARMLESS or module not in sys.stdlib_module_names


def _stand_in(name: str) -> type:
    module, _, cls = name.rpartition(".")
    base = _DictStandIn if cls in _DICTIONARIES else _StandIn
    return type(cls, (base,), {"__module__": module})


class _StandIn:
    """An object whose class is not imported: it takes anything and remembers nothing."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


class _DictStandIn(_StandIn):
    """A dictionary of a class that is not imported, as a plain one."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return {}
