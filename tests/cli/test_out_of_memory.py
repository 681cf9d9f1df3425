"""Memory that runs out, on the command line: one error, the words that help, a checkpoint."""

from pathlib import Path

import pytest
import torch

from ldm.cli.out_of_memory import (
    OutOfMemory,
    advised_drawing,
    drawing_remedies,
    smaller_batch,
    training_remedies,
)
from ldm.cli.train import main
from ldm.config import instantiate_from_config, instantiate_model
from ldm.nets.unet import UNetModel
from tests.cli.jobs import built, job
from tests.cli.runs import first_stage, only_run, second_stage, unconditional, write

CPU = torch.device("cpu")
WORDS = "data.params.batch_size=8 lightning.trainer.accumulate_grad_batches=2"
SWITCH = "model.params.unet_config.params.use_checkpoint=true"
PRECISION = "--precision bf16-mixed"


def remedies(config, batch_size=16, accumulate=1, precision="32-true", **options):
    """Words to add, and the bytes that they save."""
    config["data"]["params"]["batch_size"] = batch_size
    data = instantiate_from_config(config["data"])
    data.setup()
    model = instantiate_model(config["model"])
    found = training_remedies(
        model,
        data,
        config["model"],
        accumulate=accumulate,
        precision=precision,
        device=CPU,
        **options,
    )
    return {remedy.words: remedy.saves for remedy in found}


def test_what_is_on_already_is_left_out():
    config = second_stage()
    config["model"]["params"]["unet_config"]["params"]["use_checkpoint"] = True
    assert remedies(config, batch_size=1, precision="bf16-mixed") == {}


def test_a_step_stays_as_large_whatever_the_batch():
    given = [(8, 1), (6, 2), (9, 1), (5, 2), (1, 4)]
    smaller = [smaller_batch(*each) for each in given]
    assert smaller == [(4, 2), (3, 4), (3, 3), (1, 10), None]


def test_a_first_stage_has_no_blocks_to_recompute():
    assert [*remedies(first_stage())] == [WORDS, PRECISION]


def test_what_cannot_be_estimated_is_named_nevertheless(monkeypatch):
    monkeypatch.setattr(UNetModel, "forward", None)
    assert remedies(second_stage()) == dict.fromkeys([WORDS, SWITCH, PRECISION])


@pytest.fixture
def short_of(monkeypatch):
    """Have the network run out of memory in one of its calls that are of a kind."""

    def short(after, is_training):
        calls, forward = [], UNetModel.forward

        def limited(self, x, *rest, **told):
            if self.training == is_training and len(x) > 2:
                calls.append(len(x))
                if len(calls) == after + 1:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return forward(self, x, *rest, **told)

        monkeypatch.setattr(UNetModel, "forward", limited)

    return short


@pytest.mark.slow
def test_it_is_one_error_a_checkpoint_is_saved_and_the_words_go_on(
    tmp_path, monkeypatch, caplog_ldm, short_of
):
    monkeypatch.chdir(tmp_path)
    config = write(Path("config.yaml"), second_stage())
    short_of(after=3, is_training=True)
    with pytest.raises(SystemExit) as ended:
        main(["-b", config, "-t", "data.params.batch_size=16"])
    assert ended.value.code == 1
    (error,) = [r.getMessage() for r in caplog_ldm.records if r.getMessage().startswith("error")]
    assert "out of memory in training, at step 3: CUDA out of memory. Tried to allocate" in error
    lines = error.splitlines()[2:]
    told = [line.split("  (about ") for line in lines]
    assert {words.strip() for words, _ in told} == {WORDS, SWITCH, PRECISION}
    saved = [float(rest.partition(" GiB less")[0]) for _, rest in told]
    assert saved == sorted(saved, reverse=True)
    assert saved[-1] > 0.001
    run = only_run(tmp_path / "logs")
    last = run / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 3
    assert main(["-r", str(run), "-t", *WORDS.split(), "--max_steps", "5"]) == 0
    assert torch.load(last, weights_only=True)["global_step"] == 5


@pytest.mark.slow
def test_validation_that_runs_out_says_where(tmp_path, monkeypatch, caplog_ldm, short_of):
    monkeypatch.chdir(tmp_path)
    config = write(Path("config.yaml"), second_stage())
    short_of(after=0, is_training=False)
    words = ["--max_steps", "2", "--val_check_interval", "1", "data.params.batch_size=16"]
    with pytest.raises(SystemExit) as ended:
        main(["-b", config, "-t", *words, "lightning.callbacks.image_logger=null"])
    assert ended.value.code == 1
    assert "error: out of memory in validation, at step 1: " in caplog_ldm.text
    assert WORDS in caplog_ldm.text
    assert SWITCH not in caplog_ldm.text  # where there are no gradients


def test_drawing_is_told_what_helps(tmp_path, caplog_ldm):
    model = built(second_stage(), scale_by_std=False)
    drawing = job(model, tmp_path / "out", "--n", 4, "--classes", 1, "--scale", 2)
    found = {remedy.words: remedy.saves for remedy in drawing_remedies(drawing)}
    assert found.keys() >= {"--batch-size 2", "--precision bf16"}
    assert all(saves > 0 for saves in found.values())
    with pytest.raises(OutOfMemory) as ended, advised_drawing(drawing):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert ended.value.code == 1
    assert "error: out of memory in drawing: CUDA out of memory." in caplog_ldm.text
    assert "--batch-size 2  (about" in caplog_ldm.text


def test_another_error_of_drawing_is_its_own(tmp_path):
    drawing = job(built(unconditional(), scale_by_std=False), tmp_path / "out")
    with pytest.raises(RuntimeError, match="mat1"), advised_drawing(drawing):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
