"""Autoguidance from the scripts: the weak model is told by its own encoders."""

import pytest
import torch

from ldm.cli.exits import exit_code
from ldm.cli.sampling.weak import Weak
from ldm.guidance.autoguidance import Autoguided, Told
from ldm.guidance.classifier_free import ClassifierFree
from tests.cli.jobs import built, job
from tests.cli.runs import script, second_stage, trained, unconditional


@pytest.fixture(scope="module")
def models():
    """A model of classes, a weak one with another table of them, and one that is told nothing."""
    main, weak, plain = built(second_stage()), built(second_stage()), built(unconditional())
    with torch.no_grad():
        weak.cond_stage_model.embedding.weight.neg_()
    return main, weak, plain


def drawn(main, weak, out, *words):
    made = job(main, out, "--steps", 3, "--n", 2, "--classes", 3, *words, weak=weak)
    return torch.from_numpy(made.draw([0, 1])[1])


def by_hand(main, weak, cond, scale):
    """What --weak is to draw; the weak model's condition is `cond`."""
    labels = {"class_label": torch.tensor([3, 3])}

    def guide(denoiser, null):
        net = weak.ema_denoiser
        if scale != 1:
            denoiser = ClassifierFree(denoiser, scale, null)
            if cond is not None:
                net = ClassifierFree(net, scale, weak.conditioner.null(labels))
        return Autoguided(denoiser, Told(net, cond), 1.5)

    images = main.sample([0, 1], labels, steps=3, guide=guide)
    return ((images[1].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0)


@pytest.mark.parametrize("scale", [1, 2])
def test_a_weak_model_is_told_by_its_own_encoders(models, tmp_path, scale):
    main, weak, _ = models
    words = ["--scale", scale, "--weak", "w", "--weak-scale", 1.5]
    images = drawn(main, Weak(weak, weak.ema_denoiser, ""), tmp_path, *words)
    with torch.no_grad():
        cond = weak.conditioner({"class_label": torch.tensor([3, 3])})
        of_main = main.conditioner({"class_label": torch.tensor([3, 3])})
    assert (images - by_hand(main, weak, cond, scale)).abs().max() <= 1
    assert (images - by_hand(main, weak, of_main, scale)).abs().max() > 1


def test_a_weak_model_without_classes_is_told_none(models, tmp_path):
    main, _, plain = models
    weak = Weak(plain, plain.ema_denoiser, "")
    images = drawn(main, weak, tmp_path, "--weak", "w", "--weak-scale", 1.5)
    assert (images - by_hand(main, plain, None, 1)).abs().max() <= 1


@pytest.mark.slow
def test_a_weak_model_that_is_told_more_is_refused(tmp_path, caplog_ldm):
    runs = trained(tmp_path, main=unconditional(), weak=second_stage())
    words = [str(runs["main"]), "--weak", str(runs["weak"]), "--out", str(tmp_path / "out")]
    assert exit_code(script("sample"), [*words, "--device", "cpu"]) == 2
    assert "is told class_label (ClassEmbedder), which" in caplog_ldm.text
    assert not (tmp_path / "out").exists()
    words = [str(runs["weak"]), "--weak", str(runs["main"]), "--out", str(tmp_path / "out")]
    words += ["--classes", "3", "--n", "1", "--steps", "2", "--device", "cpu"]
    assert exit_code(script("sample"), words) == 0
    again = ["--from-png", str(tmp_path / "out/00000.png"), "--out", str(tmp_path / "again")]
    assert exit_code(script("sample"), [*again, "--device", "cpu"]) == 0
    assert "the same to the last bit" in caplog_ldm.text
