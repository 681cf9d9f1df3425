"""A folder of photographs of every kind, through both stages of the pair that is shipped for it."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli.train import main
from tests.data.photographs import mixed_directory
from tests.shipped_configs import ROOT, plain, previews_in_two_steps, shrunk

FIRST, SECOND = (ROOT / f"configs/{name}.yaml" for name in ("autoencoder-kl-f8", "ldm-kl-f8"))


def train(path, root, logdir, *overrides):
    """Train for one epoch through the command line; its exit code."""
    config = plain(path)
    options = ["--train", "--gpus", "cpu", "--logdir", str(logdir), "--max_epochs", "1"]
    shorter = [*shrunk(config, root), "data.params.batch_size=3", "lightning.trainer.max_steps=-1"]
    pictures = [*previews_in_two_steps(config), "data.params.train.params.size=128"]
    return main(["--base", str(path), *options, *shorter, *pictures, *overrides])


@pytest.fixture
def said(caplog_ldm):
    """What the package logs, message by message."""
    return lambda: [record.getMessage() for record in caplog_ldm.records]


@pytest.mark.slow
def test_both_stages_train_on_photographs_of_every_kind(tmp_path, said):
    root = tmp_path / "photographs"
    bad = mixed_directory(root)
    assert train(FIRST, root, tmp_path / "first") == 0
    (first,) = tmp_path.glob("first/*/checkpoints/last.ckpt")
    assert torch.load(first, weights_only=True)["global_step"] == 4, "12 images, 3 in a batch"
    for name in bad:
        lines = [line for line in said() if f"{name} (" in line and "is bad" in line]
        assert len(lines) == 1, f"{name} is named once"

    given = f"model.params.first_stage_config.params.ckpt_path={first}"
    smaller = "model.params.image_size=16"
    assert train(SECOND, root, tmp_path / "second", given, smaller) == 0
    (second,) = tmp_path.glob("second/*/checkpoints/last.ckpt")
    state = torch.load(second, weights_only=True)
    assert state["global_step"] == 4
    assert all(torch.isfinite(each).all() for each in state["state_dict"].values())
    for stage in ("first", "second"):
        pictures = list(tmp_path.glob(f"{stage}/*/images/train/*.png"))
        assert pictures
        assert all(np.asarray(Image.open(path)).std() > 0 for path in pictures)


@pytest.mark.slow
@pytest.mark.parametrize("path", [FIRST, SECOND], ids=["first", "second"])
def test_a_folder_of_bad_files_alone_ends_the_run_before_it_begins(path, tmp_path, said):
    root = tmp_path / "photographs"
    bad = mixed_directory(root)
    for file in root.iterdir():
        if file.name not in bad:
            file.unlink()
    assert train(path, root, tmp_path / "logs", "data.params.train.params.split=all") == 2
    (line,) = [line for line in said() if line.startswith("error")]
    assert all(name in line for name in bad)
    assert not list(tmp_path.glob("logs/*"))
