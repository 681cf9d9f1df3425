"""Checkpoints that are attacks: refused, and nothing in them runs."""

import json
import struct
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from ldm.callbacks.checkpoints import AtomicCheckpointIO
from ldm.config import ConfigError
from ldm.io.checkpoint import load_state
from ldm.io.unpickle import unpickle
from ldm.losses.perceptual import LPIPS
from tests.safety.payloads import (
    WEIGHTS,
    Built,
    bare,
    bomb,
    hidden,
    opcodes,
    pickled,
    tarred,
    touch,
    zipped,
)
from tests.safety.watching import watched

PLACES = list(hidden(Path("x")))
OPCODES = list(opcodes(Path("x")))


@pytest.fixture
def canary(tmp_path):
    """A file that is there when something ran; nothing outside of the directory is changed."""
    path = tmp_path / "ran"
    with watched(tmp_path) as seen, warnings.catch_warnings():
        # torch, of old formats, before it refuses them
        warnings.simplefilter("ignore")
        yield path
    assert not path.exists()
    assert not [each for each in seen if "pickle.find_class" not in each]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", PLACES)
def test_a_call_is_refused_wherever_it_is_in_a_checkpoint(tmp_path, canary, place, legacy):
    path = tmp_path / "model.ckpt"
    torch.save(hidden(canary)[place], path, _use_new_zipfile_serialization=not legacy)
    for read in (load_state, unpickle):
        with pytest.raises(ConfigError, match=r"model\.ckpt: (refused|cannot be read)"):
            read(path)


@pytest.mark.parametrize("form", [zipped, tarred, bare])
@pytest.mark.parametrize("name", OPCODES)
def test_no_opcode_runs_anything(tmp_path, canary, form, name):
    path = form(tmp_path / "model.pt", opcodes(canary)[name])
    with pytest.raises(ConfigError, match=r"model\.pt: "):
        load_state(path)


@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".pth", ".bin", ""])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_plain_pickle_is_refused_whatever_it_is_called(tmp_path, canary, ending, protocol):
    path = bare(tmp_path / f"model{ending}", pickled(touch(canary), protocol))
    with pytest.raises(ConfigError, match="holds more than weights"):
        load_state(path)


def test_a_run_does_not_go_on_from_a_checkpoint_that_calls(tmp_path, canary):
    path = tmp_path / "last.ckpt"
    for content in hidden(canary).values():
        torch.save(content, path)
        with pytest.raises(Exception, match=r"[Ww]eights.only|refused|cannot be read"):
            AtomicCheckpointIO().load_checkpoint(path)


def test_weights_of_the_perceptual_loss_call_nothing(tmp_path, canary):
    path = tmp_path / "vgg.pth"
    torch.save(hidden(canary)["ordered"], path)
    with pytest.raises(ValueError, match=r"vgg\.pth: cannot be read as weights"):
        LPIPS(path)


@pytest.mark.parametrize("force", ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_no_switch_of_the_environment_makes_reading_unsafe(tmp_path, canary, monkeypatch, force):
    monkeypatch.setenv(force, "1")
    torch.save({"state_dict": WEIGHTS, "x": touch(canary)}, tmp_path / "model.ckpt")
    with pytest.raises(ConfigError):
        load_state(tmp_path / "model.ckpt")


def test_a_checkpoint_that_would_unpack_to_much_more_is_refused_unread(tmp_path):
    path = bomb(tmp_path / "model.ckpt", 2**24)
    assert path.stat().st_size < 2**20
    with pytest.raises(ConfigError, match=r"refused, 'model/data\.pkl' in it is compressed"):
        load_state(path)


def test_a_member_that_claims_to_be_longer_than_the_file_is_refused(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save(WEIGHTS, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        size = next(i.file_size for i in archive.infolist() if i.filename.endswith("data/0"))
    assert size == 24
    place = content.rfind(b"data/0") - 46 + 20  # both sizes, in the central directory
    place = content.index(struct.pack("<II", size, size), place - 40)
    content[place : place + 8] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.ckpt"):
        load_state(path)


def test_a_file_that_names_thousands_of_classes_is_refused(tmp_path):
    names = b"".join(b"cx\nC%d\n" % index for index in range(5000))
    path = zipped(tmp_path / "model.ckpt", b"\x80\x02(" + names + b"t.")
    with pytest.raises(ConfigError, match="refused"):
        load_state(path)


@pytest.mark.parametrize("name", ["get", "items", "keys", "__class__", "state_dict"])
def test_what_shadows_a_dictionarys_methods_has_no_effect(tmp_path, name):
    content = Built(OrderedDict, {name: 1})
    torch.save({"state_dict": content}, tmp_path / "inner.ckpt")
    torch.save(content, tmp_path / "outer.ckpt")
    for path in (tmp_path / "inner.ckpt", tmp_path / "outer.ckpt"):
        with pytest.raises(ConfigError, match=r"(holds no weights|cannot be read)"):
            load_state(path)


@pytest.mark.parametrize("key", [0, None, (1, 2), b"a"])
def test_weights_have_names(tmp_path, key):
    torch.save({key: WEIGHTS["a"]}, tmp_path / "model.ckpt")
    with pytest.raises(ConfigError, match="holds no weights"):
        load_state(tmp_path / "model.ckpt")


_ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def _safetensors(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


DAMAGED = {
    "empty": b"",
    "no header": b"\0" * 7,
    "a header of no length": _safetensors(b""),
    "a huge header": _safetensors({"a": _ENTRY}, length=2**63 - 1),
    "a header longer than the file": _safetensors({"a": _ENTRY}, length=10**6),
    "not JSON": _safetensors(b"{'a': 1}"),
    "not UTF-8": _safetensors(b'{"\xff": 1}'),
    "a list": _safetensors([1, 2]),
    "nested": _safetensors(b"[" * 50_000),
    "negative offsets": _safetensors({"a": {**_ENTRY, "data_offsets": [-8, 0]}}),
    "offsets the wrong way": _safetensors({"a": {**_ENTRY, "data_offsets": [8, 0]}}),
    "offsets beyond the end": _safetensors({"a": {**_ENTRY, "data_offsets": [2**40, 2**40 + 8]}}),
    "overlapping": _safetensors({"a": _ENTRY, "b": _ENTRY}),
    "a negative shape": _safetensors({"a": {**_ENTRY, "shape": [-1, -2]}}),
    "a huge shape": _safetensors({"a": {**_ENTRY, "shape": [2**62, 8]}}),
    "an unknown type": _safetensors({"a": {**_ENTRY, "dtype": "OBJECT"}}),
    "fractions": _safetensors({"a": {**_ENTRY, "data_offsets": [0.0, 8.0]}}),
    "texts": _safetensors({"a": {**_ENTRY, "shape": "22"}}),
    "a pickle": pickled({"a": 1}, 2),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_safetensors_file_is_one_error(tmp_path, what):
    path = bare(tmp_path / "model.safetensors", DAMAGED[what])
    with pytest.raises(ConfigError, match=r"model\.safetensors: not a safetensors file"):
        load_state(path)
