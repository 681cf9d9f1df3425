"""The frozen first stage of a run: in one file beside its checkpoints, which hold its hash."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ldm.config import ConfigError
from ldm.io import atomic
from ldm.io.digest import sha256_of
from ldm.io.manifest import Entry, record

__all__ = ["NOTE", "PREFIX", "FirstStageFile", "with_first_stage"]

PREFIX = "first_stage_model."
NOTE = "first_stage_file"  # a checkpoint's entry: {"file": its name, "sha256": of its bytes}

_NOTED = ("file", "sha256")


class FirstStageFile:
    """Takes the frozen first stage out of the checkpoints below a directory, and stores it there.

    The file is `first_stage-<beginning of its SHA-256>.safetensors`, written with the first
    checkpoint, or again where it has gone, and named in the manifest. Checkpoints that lie
    elsewhere keep their first stage.

    directory: a run's `checkpoints/`.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._stored: tuple[object, dict[str, str]] | None = None

    def taken_out(self, checkpoint: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
        """A checkpoint without the first stage, which is stored; the same one if it has none.

        path: where the checkpoint will be.
        Raises OSError when the first stage could not be written.
        """
        state = checkpoint.get("state_dict", {})
        own = {key: value for key, value in state.items() if key.startswith(PREFIX)}
        if not own or self.directory.absolute() not in path.absolute().parents:
            return checkpoint
        rest = copy.copy(state)
        for key in own:
            del rest[key]
        return {**checkpoint, "state_dict": rest, NOTE: self._note(own)}

    def _note(self, own: Mapping[str, Tensor]) -> dict[str, str]:
        # frozen tensors stay where and as they are: nothing is read or hashed a second time
        version = tuple((key, each.data_ptr(), each._version) for key, each in own.items())
        if self._stored is not None and self._stored[0] == version:
            note = self._stored[1]
            if (self.directory / note["file"]).is_file():
                return note
        note = self._store(own)
        self._stored = version, note
        return note

    def _store(self, own: Mapping[str, Tensor]) -> dict[str, str]:
        copies = {
            key.removeprefix(PREFIX): each.detach()
            .cpu()
            .clone(memory_format=torch.contiguous_format)
            for key, each in own.items()
        }
        content = save(copies)
        digest = hashlib.sha256(content).hexdigest()
        path = self.directory / f"first_stage-{digest[:16]}.safetensors"
        if not (path.is_file() and atomic.digest_of(path) == digest):
            written = atomic.write_atomically(
                path, lambda sink: sink.write(content), is_announced=False
            )
            record(self.directory, Entry(path.name, written.size, digest, time.time()))
        atomic.reached("first_stage")
        return {"file": path.name, "sha256": digest}


def with_first_stage(checkpoint: Any, path: Path) -> Any:
    """A checkpoint that was read, with the first stage that was stored once for its run.

    path: of the checkpoint; the file is beside it, or in the directory above.

    Raises ConfigError when the file is missing or damaged.
    """
    if not isinstance(checkpoint, dict) or NOTE not in checkpoint:
        return checkpoint
    note = checkpoint[NOTE]
    if not isinstance(note, dict) or not all(isinstance(note.get(key), str) for key in _NOTED):
        raise ConfigError(f"{path}: {NOTE} is {note!r}, expected the file and its sha256")
    found = first_stage_path(path, note["file"])
    if found is None:
        raise ConfigError(
            f"{path}: its first stage is in a file of its own, {note['file']}, which is not beside "
            "it; copy that from the checkpoints/ of its run, too"
        )
    if sha256_of(found) != note["sha256"]:
        raise ConfigError(
            f"{found}: the first stage of {path.name} is damaged (SHA-256); expected the file that "
            "its run wrote"
        )
    try:
        own = {PREFIX + key: value for key, value in load_file(found).items()}
    except SafetensorError as error:
        raise ConfigError(f"{found}: no safetensors file, or damaged: {error}") from error
    if not isinstance(checkpoint.get("state_dict"), dict):
        raise ConfigError(f"{path}: holds no state_dict, of which {note['file']} would be a part")
    state = copy.copy(checkpoint["state_dict"])
    type(state).update(state, own)  # whatever a file put in place of its methods
    rest = {key: value for key, value in checkpoint.items() if key != NOTE}
    return rest | {"state_dict": state}


def first_stage_path(checkpoint: Path, file: str) -> Path | None:
    """Where the first stage of a checkpoint is: beside it, or in the directory above."""
    name = Path(file).name  # whatever a file says, nowhere else
    above = (checkpoint.absolute().parent, checkpoint.absolute().parent.parent)
    return next((each / name for each in above if (each / name).is_file()), None)
