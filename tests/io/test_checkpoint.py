"""Weights out of files, into modules, and what is said when either does not work."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from ldm.config import ConfigError
from ldm.io.atomic import write_atomically
from ldm.io.checkpoint import compare, load_into, load_state, select
from ldm.io.manifest import Entry, record


def state_of(**shapes):
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def refusal(call, *arguments, **options):
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **options)
    return str(caught.value)


# reading


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}])
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_weights_are_read_from_the_entry_or_the_file_itself(tmp_path, wrap, is_zip):
    state = state_of(a=(2, 3), b=())
    path = tmp_path / "model.ckpt"
    torch.save(wrap(state), path, _use_new_zipfile_serialization=is_zip)
    assert same(load_state(path), state)


def test_weights_are_read_from_safetensors(tmp_path):
    state = state_of(a=(2, 3), b=(4,))
    save_file(state, tmp_path / "model.safetensors")
    assert same(load_state(str(tmp_path / "model.safetensors")), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_types_are_kept(tmp_path, dtype):
    torch.save({"a": torch.ones(3, dtype=dtype)}, tmp_path / "m.pt")
    assert load_state(tmp_path / "m.pt")["a"].dtype is dtype


def test_a_missing_checkpoint_is_named_with_the_nearest(tmp_path):
    torch.save(state_of(a=(1,)), tmp_path / "model.ckpt")
    message = refusal(load_state, tmp_path / "modellx.ckpt")
    assert message.startswith(f"{tmp_path / 'modellx.ckpt'}: no such checkpoint")
    assert message.endswith(f"did you mean {tmp_path / 'model.ckpt'}?")


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("name", ["model.yaml", "config.json"])
def test_a_configuration_given_as_a_checkpoint_is_called_that(tmp_path, name, exists):
    if exists:
        (tmp_path / name).write_text("model: {}")
    assert "is a configuration, not a checkpoint" in refusal(load_state, tmp_path / name)


def test_a_run_directory_given_as_a_checkpoint_points_at_its_last(tmp_path):
    assert "is a directory" in refusal(load_state, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    torch.save({}, tmp_path / "checkpoints" / "last.ckpt")
    assert "did you mean" in refusal(load_state, tmp_path)
    assert "last.ckpt" in refusal(load_state, tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>404</html>", bytes(range(256)), b"PK\x03\x04" + bytes(100), b"\x80\x02}q\x00."],
    ids=["empty", "html", "bytes", "zip", "pickle"],
)
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    assert refusal(load_state, path).startswith(f"{path}: ")


@pytest.mark.parametrize("part", [0.3, 0.7, 0.99])
def test_an_incomplete_download_is_refused(tmp_path, part):
    whole, path = tmp_path / "whole.ckpt", tmp_path / "part.ckpt"
    torch.save(state_of(a=(100, 100)), whole)
    content = whole.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    assert "damaged or incomplete" in refusal(load_state, path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], "a list"),
        (3, "a int"),
        (torch.ones(2), "torch.Tensor"),
        ({"epoch": 3, "weights": {}}, "epoch (a int), weights (a dict)"),
        ({"state_dict": {"a": torch.ones(1), "b": "text"}}, "b (a str)"),
        ({"state_dict": [1]}, "a list"),
        ({}, "nothing"),
    ],
)
def test_a_file_without_weights_says_what_it_holds(tmp_path, content, found):
    torch.save(content, tmp_path / "m.ckpt")
    message = refusal(load_state, tmp_path / "m.ckpt")
    assert "expected" in message
    assert found in message


# selecting


def test_a_part_is_selected_by_its_prefix():
    state = state_of(**{"first_stage_model.a.b": (1,), "first_stage_model.c": (2,), "model.a": ()})
    assert set(select(state, "first_stage_model.")) == {"a.b", "c"}
    assert select(state, "model.")["a"] is state["model.a"]


def test_a_prefix_that_is_not_there_is_reported_with_those_that_are():
    state = state_of(**{"encoder.a": (1,), "encoder.b": (1,), "decoder.a": (1,)})
    message = refusal(select, state, "first_stage_model.", source="x.ckpt")
    assert message == (
        "x.ckpt has nothing under 'first_stage_model.'; it has encoder.* (2), decoder.* (1)"
    )


# matching


names = st.text("abc.", min_size=1, max_size=4)
shapes = st.dictionaries(names, st.lists(st.integers(1, 3), max_size=2).map(tuple), max_size=6)


@settings(database=None)
@given(shapes, shapes)
def test_every_name_is_counted_once_in_the_right_place(file, own):
    state = {key: torch.empty(shape) for key, shape in file.items()}
    report = compare(state, {key: torch.empty(shape) for key, shape in own.items()})
    assert set(report.missing) == own.keys() - file.keys()
    assert set(report.unexpected) == file.keys() - own.keys()
    assert {name for name, *_ in report.mismatched} == {
        name for name in own.keys() & file.keys() if own[name] != file[name]
    }
    assert report.matched + len(report.missing) + len(report.mismatched) == len(own)
    assert report.is_exact == (file == own)


def test_a_fitting_state_is_loaded():
    source, target = nn.Linear(3, 4), nn.Linear(3, 4)
    report = load_into(target, source.state_dict())
    assert report.is_exact
    assert report.matched == 2
    assert same(target.state_dict(), source.state_dict())


def test_a_module_on_the_meta_device_receives_the_weights():
    source = nn.Linear(3, 4)
    with torch.device("meta"):
        target = nn.Linear(3, 4)
    target.bias.requires_grad_(False)
    load_into(target, source.state_dict())
    assert same(target.state_dict(), source.state_dict())
    assert target.weight.requires_grad
    assert not target.bias.requires_grad


class Pair(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.encoder = nn.Linear(2, width)
        self.decoder = nn.Linear(width, 2)


def test_a_checkpoint_of_another_model_is_refused_with_a_report():
    module, before = Pair(), Pair().state_dict()
    module.load_state_dict(before)
    state = state_of(
        **{"encoder.weight": (5, 2), "encoder.bias": (3,), "decoder.weigt": (2, 3), "extra": (1,)}
    )
    message = refusal(load_into, module, state, source="other.ckpt")
    assert message.startswith("other.ckpt does not fit Pair: 1 tensors match")
    assert "missing in the file: 2 (decoder.weight, decoder.bias)" in message
    assert "unexpected in the file: 2 (decoder.weigt, extra)" in message
    assert "of another shape: 1 (encoder.weight (file (5, 2), model (3, 2)))" in message
    assert "hint: decoder.weigt in the file resembles decoder.weight" in message
    assert same(module.state_dict(), before)


def test_long_lists_are_cut_to_their_first_names():
    state = {f"layers.{index}": torch.ones(1) for index in range(50)}
    message = refusal(load_into, Pair(), state)
    assert "unexpected in the file: 50 (layers.0, layers.1, layers.2, ...)" in message


def test_a_part_of_a_larger_model_is_recognised_by_its_prefix():
    state = {f"first_stage_model.{key}": value for key, value in Pair().state_dict().items()}
    state["model.a"] = torch.ones(1)
    message = refusal(load_into, Pair(), state)
    assert "hint: the file's names begin with 'first_stage_model.'" in message


def test_loading_less_strictly_tolerates_names_but_neither_shapes_nor_a_stranger():
    state = Pair().state_dict()
    del state["decoder.bias"]
    state["extra"] = torch.ones(1)
    target = Pair()
    report = load_into(target, state, strict=False)
    assert report.missing == ("decoder.bias",)
    assert report.unexpected == ("extra",)
    assert torch.equal(target.encoder.weight, state["encoder.weight"])
    assert "another shape" in refusal(load_into, Pair(4), state, strict=False)
    assert "does not fit" in refusal(
        load_into, nn.Conv2d(1, 1, 1), {"x": state["extra"]}, strict=False
    )


@pytest.mark.parametrize("where", ["file", "model", "both with other shapes"])
def test_ignored_names_are_neither_loaded_nor_missed(where):
    module = Pair()
    state = Pair().state_dict()
    if where == "file":
        state["loss.logvar"] = torch.ones(1)
        ignore = ("loss.",)
    else:
        ignore = ("decoder.",)
        for key in ("decoder.weight", "decoder.bias"):
            state[key] = torch.ones(7)
            if where == "model":
                del state[key]
    kept = module.decoder.weight.clone()
    report = load_into(module, state, ignore=ignore)
    assert report.is_exact
    assert torch.equal(module.encoder.weight, state["encoder.weight"])
    assert torch.equal(module.decoder.weight, kept) == (where != "file")


def test_weights_that_are_not_what_was_written_are_not_taken_for_what_was(tmp_path):
    path = tmp_path / "resume-1.ckpt"
    weights = {"state_dict": {"weight": torch.zeros(64)}, "global_step": 1}
    written = write_atomically(path, lambda sink: torch.save(weights, sink))
    record(tmp_path, Entry.of(path.name, written, weights))
    assert load_state(path)["weight"].shape == (64,)
    content = bytearray(path.read_bytes())
    content[content.index(bytes(200)) + 100] ^= 1  # one bit of one weight
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"resume-1\.ckpt: damaged, its bytes are not those"):
        load_state(path)
