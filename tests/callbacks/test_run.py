import random

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml

from ldm.callbacks.run import RunRecord, SeededSteps, environment, git_revision


@pytest.fixture
def trainer(tmp_path):
    return pl.Trainer(logger=False, default_root_dir=tmp_path, accelerator="cpu")


def drawn(trainer, seed, batch):
    SeededSteps(seed).on_train_batch_start(trainer, None, None, batch)
    return (torch.rand(()).item(), np.random.rand(), random.random())  # noqa: NPY002


def test_what_a_step_draws_depends_on_seed_and_batch_alone(trainer):
    first = drawn(trainer, 0, 3)
    others = [drawn(trainer, 1, 3), drawn(trainer, 0, 4)]
    assert drawn(trainer, 0, 3) == first
    for other in others:
        assert all(one != another for one, another in zip(first, other, strict=True))


def test_a_checkpoint_says_what_it_was_written_by(tmp_path):
    record = RunRecord(tmp_path, "now", {"data": {"params": {"seed": 1}}, "model": {"a": 2}})
    checkpoint = {}
    record.on_save_checkpoint(None, None, checkpoint)
    assert yaml.safe_load(checkpoint["config"])["model"] == {"a": 2}
    assert yaml.safe_load(checkpoint["environment"]) == environment()
    assert environment()["torch"].startswith(torch.__version__.split("+")[0])
    assert environment()["git"] == git_revision()
