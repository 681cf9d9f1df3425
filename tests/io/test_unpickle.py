"""Files that hold more than weights: what is harmless is passed over, nothing is ever run."""

import argparse
import collections
import datetime
import functools
import importlib
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.parsing import AttributeDict

from ldm.config import ConfigError
from ldm.io.checkpoint import load_state

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3)}


class Call:
    """Pickles as the call of a function, which reading it the usual way would run."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture
def write(tmp_path):
    def save(content, **options):
        torch.save(content, tmp_path / "model.ckpt", **options)
        return tmp_path / "model.ckpt"

    return save


@pytest.fixture
def gone(tmp_path, monkeypatch):
    """A class of a package that is there when a file is written, and trapped when it is read."""
    source = tmp_path / "gone_package.py"
    source.write_text("class Thing:\n    def __init__(self, *a): self.a = a\ndef make(*a): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("gone_package")

    def leave():
        del sys.modules["gone_package"]
        source.write_text("raise SystemExit('imported')")
        importlib.invalidate_caches()

    yield module, leave
    sys.modules.pop("gone_package", None)


def test_the_classes_of_callbacks_and_settings_are_passed_over(tmp_path):
    path = tmp_path / "old.ckpt"
    torch.save(
        {
            "epoch": 3,
            "state_dict": WEIGHTS,
            "callbacks": {ModelCheckpoint: {"best_model_path": Path("a/b.ckpt")}},
            "hyper_parameters": OmegaConf.create({"a": [1, {"b": 2}]}),
            "attributes": AttributeDict(lr=1e-4, net=AttributeDict(width=3)),
            "counts": collections.defaultdict(list, {"a": [1]}),
            "arguments": argparse.Namespace(name="x"),
            "began": datetime.datetime(2022, 1, 1),
            "function": functools.partial(int, base=2),
        },
        path,
    )
    assert torch.equal(load_state(path)["a"], WEIGHTS["a"])


def test_a_class_of_another_package_is_not_imported(write, gone):
    module, leave = gone
    path = write({"state_dict": WEIGHTS, "callbacks": [module.Thing(1), Call(module.make, 2)]})
    leave()
    assert torch.equal(load_state(path)["a"], WEIGHTS["a"])
    assert "gone_package" not in sys.modules


def test_a_foreign_object_among_the_weights_is_refused(write, gone):
    module, leave = gone
    path = write({"state_dict": {**WEIGHTS, "b": module.Thing(1)}})
    leave()
    with pytest.raises(ConfigError, match=r"expected tensors, got b \(gone_package\.Thing\)"):
        load_state(path)
    assert "gone_package" not in sys.modules


def test_the_forged_calls_of_these_tests_would_run_the_usual_way(tmp_path):
    pickle.loads(pickle.dumps(Call(os.system, f"touch {tmp_path / 'ran'}")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["callbacks", "state_dict"])
@pytest.mark.parametrize(
    "function",
    [os.system, subprocess.check_call, eval, exec, getattr, importlib.import_module, shutil.rmtree],
    ids=lambda function: function.__name__,
)
def test_a_file_that_calls_the_system_is_refused_and_nothing_runs(write, tmp_path, function, place):
    content = {"state_dict": dict(WEIGHTS), "callbacks": {}}
    content[place]["x"] = Call(function, f"touch {tmp_path / 'ran'}")
    with pytest.raises(ConfigError, match=rf"refused, .* call .*{function.__name__}"):
        load_state(write(content))
    assert not (tmp_path / "ran").exists()


def test_a_call_in_an_old_file_is_refused_and_nothing_runs(write, tmp_path):
    content = {"state_dict": WEIGHTS, "x": Call(os.system, f"touch {tmp_path / 'ran'}")}
    path = write(content, _use_new_zipfile_serialization=False)
    with pytest.raises(ConfigError, match="holds more than weights"):
        load_state(path)
    assert not (tmp_path / "ran").exists()


def test_a_pickled_module_is_refused_with_what_to_save_instead(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pt")
    with pytest.raises(ConfigError, match=r"Linear, expected weights; save .*state_dict\(\)"):
        load_state(tmp_path / "m.pt")


def test_an_old_file_with_foreign_classes_is_refused_without_reading_on(tmp_path):
    path = tmp_path / "legacy.ckpt"
    content = {"state_dict": WEIGHTS, "callbacks": {ModelCheckpoint: 1}}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ConfigError, match="holds more than weights"):
        load_state(path)


def test_what_is_safe_for_one_file_is_not_left_safe_for_the_next(tmp_path):
    before = torch.serialization.get_safe_globals()
    torch.save({"state_dict": WEIGHTS, "callbacks": {ModelCheckpoint: 1}}, tmp_path / "m.ckpt")
    load_state(tmp_path / "m.ckpt")
    assert torch.serialization.get_safe_globals() == before
