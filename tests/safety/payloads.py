"""Files of weights that run a command when they are read the usual way."""

import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3)}


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


class Built:
    """Pickles as an object of a class, and a state that is given to it."""

    def __init__(self, cls: type, state: object) -> None:
        self.cls, self.state = cls, state

    def __reduce__(self) -> tuple[type, tuple[()], object]:
        return self.cls, (), self.state


def touch(canary: Path) -> Call:
    """The call that leaves a file."""
    return Call(os.system, f"touch {canary}")


def hidden(canary: Path) -> dict[str, Any]:
    """What a checkpoint may hold, by the place of the call in it."""
    call = touch(canary)
    bytes_ = torch.zeros(8).untyped_storage()
    storage = Call(torch._utils._rebuild_tensor_v2, bytes_, 0, (call,), (1,))
    subclass = Call(torch._tensor._rebuild_from_type_v2, os.system, str, (f"touch {canary}",), {})
    return {
        "alone": call,
        "in a list": [WEIGHTS, call],
        "as a key": {"state_dict": WEIGHTS, call: 1},
        "weight": {"state_dict": {**WEIGHTS, "b": call}},
        "ordered": OrderedDict(WEIGHTS, b=call),
        "optimizer": {"state_dict": WEIGHTS, "optimizer_states": [{"state": {0: call}}]},
        "callback": {"state_dict": WEIGHTS, "callbacks": {"x": call}},
        "settings": {"state_dict": WEIGHTS, "hyper_parameters": {"x": [call]}},
        "call in a call": {"state_dict": WEIGHTS, "x": Call(print, call)},
        "state": {"state_dict": WEIGHTS, "x": Built(OrderedDict, {"y": call})},
        "a tensor's shape": {"state_dict": {**WEIGHTS, "b": storage}},
        "a tensor's class": {"state_dict": {**WEIGHTS, "b": subclass}},
    }


def _text(content: str) -> bytes:
    return b"X" + struct.pack("<I", len(content)) + content.encode()


def opcodes(canary: Path) -> dict[str, bytes]:
    """Pickles that no pickler writes, by what runs the call."""
    command = f"touch {canary}"
    quoted = f"'{command}'\n".encode()
    short = b"\x8c" + bytes([len(command)]) + command.encode()
    return {
        "REDUCE": b"\x80\x02cos\nsystem\n" + _text(command) + b"\x85R.",
        "INST": b"(S" + quoted + b"ios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS" + quoted + b"o.",
        "NEWOBJ": b"\x80\x02csubprocess\nPopen\n" + _text(command) + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04csubprocess\nPopen\n" + short + b"\x85}\x92.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + short + b"\x85R.",
        "BUILD": b"\x80\x02ccollections\nOrderedDict\n)R}" + _text("x") + b"cos\nsystem\nsb.",
        "EXT1": b"\x80\x02\x82\x01.",
        "PERSID": b"P" + command.encode() + b"\n.",
        "posix": b"\x80\x02cposix\nsystem\n" + _text(command) + b"\x85R.",
        "python 2": b"\x80\x02c__builtin__\neval\n" + _text("1") + b"\x85R.",
        "commands": b"\x80\x02ccommands\ngetoutput\n" + _text(command) + b"\x85R.",
        "getattr": b"\x80\x02cbuiltins\ngetattr\ncos\nsystem\n" + _text("__call__") + b"\x86R.",
        "dotted": b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93" + short + b"\x85R.",
        "dotted global": b"\x80\x02ctorch\nos.system\n" + _text(command) + b"\x85R.",
        "torch.load": b"\x80\x02ctorch\nload\n" + _text("x") + b"\x85R.",
        "a name with NUL": b"\x80\x02cx\na\0b\n" + _text("x") + b"\x85R.",
        "a name without end": b"\x80\x02cx\n" + b"y" * 100_000,
        "unfinished": b"\x80\x02}",
        "empty": b"",
    }


def zipped(path: Path, data: bytes) -> Path:
    """A file of torch.save's form whose pickle is `data`."""
    writer = torch._C.PyTorchFileWriter(str(path))
    writer.write_record("data.pkl", data, len(data))
    writer.write_record("byteorder", b"little", 6)
    writer.write_end_of_file()
    return path


def tarred(path: Path, data: bytes) -> Path:
    """A file of the form of torch before 0.1.10, a tar."""
    with tarfile.open(path, "w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def bare(path: Path, data: bytes) -> Path:
    """A pickle as it is."""
    path.write_bytes(data)
    return path


def bomb(path: Path, size: int) -> Path:
    """A checkpoint of a few bytes that unpacks to so many."""
    torch.save({"state_dict": WEIGHTS}, path)
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            is_pickle = name.endswith("data.pkl")
            archive.writestr(name, b"\x80\x02" + b"N0" * (size // 2) if is_pickle else content)
    return path


def pickled(value: object, protocol: int) -> bytes:
    """A pickle, which is written and never read here."""
    return pickle.dumps(value, protocol)
