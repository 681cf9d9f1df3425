"""Parts of transformers from a directory or the hub, with errors that say how to get them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.config import ConfigError

__all__ = ["from_hub"]


def from_hub(loader: Any, name: str, what: str, *needs: Sequence[str]) -> Any:
    """Load something of transformers from a local directory or the hub's cache, or fetch it.

    needs: files, all of one of these lists, without which transformers would make up an empty one.
    Raises ConfigError that names what a directory lacks, or the command that gets it.
    """
    is_local, at = Path(name).is_dir(), Path(name)
    if needs and is_local and not any(all((at / f).is_file() for f in files) for files in needs):
        known = " or ".join(" with ".join(files) for files in needs)
        raise ConfigError(f"{what}: the directory {name!r} lacks a file: expected {known}")
    try:
        found = loader.from_pretrained(name)
        if _is_made_up(found):
            raise ValueError("its vocabulary is empty")
    except ImportError:
        raise
    except Exception as error:  # four libraries read a part each, and raise what they like
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if is_local:
            raise ConfigError(
                f"{what}: the directory {name!r} lacks a file, or has one that cannot be read: "
                f"{reason}"
            ) from error
        raise ConfigError(
            f"{what} {name!r} is neither a local directory nor in the hub's cache, and cannot be "
            f"fetched. Where there is a network run `hf download {name} --local-dir DIR`, "
            f"then give DIR here. ({reason})"
        ) from error
    return found


def _is_made_up(found: Any) -> bool:
    """Whether it is a tokenizer of no words, which transformers makes where it finds no files."""
    special = getattr(found, "all_special_tokens", None)
    return special is not None and len(found) <= len(set(special))
