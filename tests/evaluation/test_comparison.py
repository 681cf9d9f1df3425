"""Several trainings side by side: what is run, what is kept, what the table says."""

import json
from pathlib import Path

import pytest

from ldm.cli.exits import exit_code
from ldm.config import ConfigError
from ldm.data.decoding import read_image
from ldm.evaluation.comparison import Result, Training, as_markdown, run_all, trainings
from tests.cli.runs import first_stage, script, write


def result(variant, seed, **metrics):
    return Result(Training(variant, seed, (), Path()), metrics)


def variant(place, name, **params):
    return str(write(place / f"{name}.yaml", {"model": {"params": params}}))


def test_table_has_mean_and_deviation_over_seeds():
    results = [result("a", 1, psnr=20.0), result("a", 2, psnr=22.0), result("b", 1, psnr=30.0)]
    assert as_markdown(results, ["psnr"]).splitlines() == [
        "| variant | psnr | seeds |",
        "| --- | --- | --- |",
        "| a | 21 ± 1.4 | 2 |",
        "| b | 30 | 1 |",
    ]


def test_metric_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"--metrics val/psn: .*'val/psnr'"):
        as_markdown([result("a", 1, **{"val/psnr": 1.0})], ["val/psn"])


def test_variants_are_trained_seed_by_seed(tmp_path):
    files = [variant(tmp_path, name) for name in ("a", "b")]
    planned = trainings(files[0], files, (1, 2), tmp_path)
    assert [(each.variant, each.seed) for each in planned] == [
        ("a", 1),
        ("b", 1),
        ("a", 2),
        ("b", 2),
    ]


def test_two_variants_of_one_name_are_an_error(tmp_path):
    (tmp_path / "other").mkdir()
    files = [variant(tmp_path, "a"), variant(tmp_path / "other", "a")]
    with pytest.raises(ConfigError, match="two variants are named 'a'"):
        trainings(files[0], files, (1,), tmp_path)


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Two variants of a training of two steps, one of which cannot be built."""
    monkeypatch.chdir(tmp_path)
    base = str(write(tmp_path / "base.yaml", first_stage()))
    good = variant(tmp_path, "good", embed_dim=2)
    bad = variant(tmp_path, "bad", embed_dim=0)
    words = ["--gpus", "cpu", "--max_steps", "6"]
    return lambda *names: trainings(
        base, [{"good": good, "bad": bad}[name] for name in names], (1,), tmp_path / "out", words
    )


@pytest.mark.slow
def test_training_is_run_once_and_what_it_logged_is_kept(planned):
    ended = []
    (first,) = run_all(planned("good"), on_end=ended.append)
    assert first.metrics["val/psnr"] > 0
    kept = first.training.record
    record = json.loads(kept.read_text())
    kept.write_text(json.dumps(record | {"metrics": {"val/psnr": 7.0}}))
    (again,) = run_all(planned("good"), on_end=ended.append)
    assert again.metrics == {"val/psnr": 7.0}
    assert len(ended) == 2


@pytest.mark.parametrize("change", ["override", "file"])
def test_figures_of_another_configuration_are_not_taken(tmp_path, change):
    base = variant(tmp_path, "base", n_embed=1024)
    (training,) = trainings(base, [base], (1,), tmp_path / "out", ["a.b=1"])
    training.directory.mkdir(parents=True)
    record = {"told": training.told(), "metrics": {"val/psnr": 7.0}}
    training.record.write_text(json.dumps(record))
    (result,) = run_all([training], on_end=lambda _: None)
    assert result.metrics == {"val/psnr": 7.0}
    if change == "file":
        variant(tmp_path, "base", n_embed=8192)
    else:
        (training,) = trainings(base, [base], (1,), tmp_path / "out", ["a.b=2"])
    with pytest.raises(ConfigError, match=r"base-1: this training was run with other files or"):
        run_all([training], on_end=lambda _: None)


@pytest.mark.slow
def test_training_that_fails_says_why_and_is_run_anew(planned):
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"bad, seed 1: the training failed:\n.*embed_dim"):
            run_all(planned("bad"), on_end=lambda _: None)


@pytest.mark.slow
def test_the_script_writes_the_table_it_prints(planned, capsys):
    (training,) = planned("good")
    _, base, path, *_ = training.words
    words = ["-b", base, "--variants", path, "--seeds", "1", "--metrics", "val/psnr"]
    options = ["--out", "here", "--gpus", "cpu", "--max_steps", "6"]
    compare = script("compare_trainings")
    assert exit_code(compare, [*words, *options]) == 0
    assert Path("here/table.md").read_text() in capsys.readouterr().out
    assert read_image("here/picture.png").std() > 0
    assert exit_code(compare, [*words, "--seeds", "0"]) == 2
