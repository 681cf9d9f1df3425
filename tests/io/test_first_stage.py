import shutil

import pytest
import torch

from ldm.config import ConfigError
from ldm.io import atomic, store
from ldm.io.checkpoint import load_state
from ldm.io.first_stage import FirstStageFile
from ldm.io.manifest import damage, newest_valid

STAGE = {
    "first_stage_model.encoder.weight": torch.randn(4, 3, 2, 2).to(
        memory_format=torch.channels_last
    ),
    "first_stage_model.quantize.used": torch.arange(5),
    "first_stage_model.scale": torch.tensor(0.5, dtype=torch.bfloat16),
}


def checkpoint(step=1):
    state = {"model.weight": torch.full((3,), float(step)), **STAGE}
    return {"global_step": step, "state_dict": state, "optimizer_states": []}


@pytest.fixture
def run(tmp_path):
    """A run's `checkpoints/` with one checkpoint."""
    directory = tmp_path / "run" / "checkpoints"
    saved(FirstStageFile(directory), directory / "last.ckpt")
    return directory


def saved(once, path, step=1):
    store.save(once.taken_out(checkpoint(step), path), path)


def stage_of(directory):
    (file,) = directory.glob("first_stage-*.safetensors")
    return file


def test_the_first_stage_is_stored_once_and_comes_back(run, monkeypatch):
    once = FirstStageFile(run)  # of a run that goes on
    before = stage_of(run).stat().st_mtime_ns
    read = []
    digest_of = atomic.digest_of
    monkeypatch.setattr(atomic, "digest_of", lambda path: read.append(path) or digest_of(path))
    for step in (2, 3, 4):
        saved(once, run / "last.ckpt", step)
    saved(once, run / "trainstep_checkpoints" / "a.ckpt", 4)
    assert stage_of(run).stat().st_mtime_ns == before
    assert read.count(stage_of(run)) == 1
    for path in (run / "last.ckpt", run / "trainstep_checkpoints" / "a.ckpt"):
        assert damage(path) is None
        state = load_state(path)
        assert state.keys() == checkpoint()["state_dict"].keys()
        for name, value in checkpoint(4)["state_dict"].items():
            assert torch.equal(state[name], value)
            assert state[name].dtype == value.dtype
    held = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    assert list(held) == ["model.weight"]


def test_another_first_stage_gets_a_file_of_its_own(run, monkeypatch):
    once = FirstStageFile(run)
    saved(once, run / "last.ckpt", 2)
    monkeypatch.setitem(STAGE, "first_stage_model.scale", torch.tensor(2.0))
    saved(once, run / "last.ckpt", 3)
    assert len(list(run.glob("first_stage-*"))) == 2
    assert load_state(run / "last.ckpt")["first_stage_model.scale"] == 2


def test_a_checkpoint_outside_of_the_run_keeps_its_first_stage(run, tmp_path):
    saved(FirstStageFile(run), tmp_path / "elsewhere.ckpt")
    assert load_state(tmp_path / "elsewhere.ckpt").keys() == checkpoint()["state_dict"].keys()


def test_a_copy_without_the_first_stage_says_what_to_copy(run, tmp_path):
    lone = shutil.copy(run / "last.ckpt", tmp_path / "lone.ckpt")
    with pytest.raises(ConfigError, match=f"{stage_of(run).name}, which is not beside it; copy"):
        load_state(lone)
    shutil.copy(stage_of(run), tmp_path)
    assert len(load_state(lone)) == 4


def test_a_damaged_or_missing_first_stage_is_named_by_all_who_read(run, caplog_ldm):
    file = stage_of(run)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ConfigError, match=rf"last\.ckpt: damaged, its first stage {file.name}"):
        load_state(run / "last.ckpt")
    assert file.name in damage(run / "last.ckpt")
    assert newest_valid(run) is None
    file.unlink()
    assert file.name in damage(run / "last.ckpt")


@pytest.mark.parametrize("fault", ["gone", "damaged"])
def test_a_first_stage_that_is_gone_or_damaged_is_written_again(run, fault):
    file = stage_of(run)
    file.unlink() if fault == "gone" else file.write_bytes(b"x")
    saved(FirstStageFile(run), run / "last.ckpt", 2)
    assert len(load_state(run / "last.ckpt")) == 4
    assert damage(run / "last.ckpt") is None


def test_a_name_that_leads_elsewhere_is_not_followed(run, tmp_path):
    path = run / "last.ckpt"
    held = torch.load(path, weights_only=True)
    held["first_stage_file"]["file"] = f"../../{(tmp_path / 'secret.safetensors').name}"
    shutil.copy(stage_of(run), tmp_path / "secret.safetensors")
    torch.save(held, path)
    (run / "manifest.json").unlink()  # which would know that it is another file
    with pytest.raises(ConfigError, match="not beside"):
        load_state(path)
