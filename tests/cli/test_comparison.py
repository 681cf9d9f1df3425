"""Several trainings side by side: what is run, what is kept, what stops them."""

import json
import sys
import time
from pathlib import Path

import pytest

from ldm.cli.comparison import Training, run_all, trainings
from ldm.cli.exits import exit_code
from ldm.config import ConfigError
from ldm.data.decoding import read_image
from tests.cli.runs import first_stage, script, write

# what a training leaves behind, without one; `{}` is done first
WRITES = """
import pathlib, sys, time
{}
metrics = pathlib.Path(sys.argv[1], "run", "metrics", "version_0", "metrics.csv")
metrics.parent.mkdir(parents=True)
metrics.write_text("step,val/psnr\\n1,20.0\\n")
"""


class Pretended(Training):
    """A training of no time, or of as many seconds as its seed says."""

    def command(self):
        return [sys.executable, "-c", WRITES.format(f"time.sleep({self.seed})"), self.directory]


def variant(place, name, **params):
    return str(write(place / f"{name}.yaml", {"model": {"params": params}}))


def based(place):
    return str(write(place / "base.yaml", first_stage()))


def test_variants_are_trained_seed_by_seed(tmp_path):
    files = [variant(tmp_path, name, embed_dim=2) for name in ("a", "b")]
    planned = trainings([based(tmp_path)], files, seeds=(1, 2), out=tmp_path)
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
        trainings(files[:1], files, seeds=(1,), out=tmp_path)


def test_a_mistake_in_any_variant_is_said_before_the_first_is_trained(tmp_path):
    files = [variant(tmp_path, "good", embed_dim=2), variant(tmp_path, "bad", embed_dimm=2)]
    with pytest.raises(ConfigError, match=r"bad\.yaml: .*'embed_dimm'; did you mean 'embed_dim'"):
        trainings([based(tmp_path)], files, seeds=(1,), out=tmp_path)


def test_metrics_are_collected_by_variant(tmp_path):
    planned = [Pretended(name, 0, (), tmp_path / name) for name in ("a", "b")]
    assert run_all(planned, jobs=2, on_end=lambda _: None) == {
        "a": [{"val/psnr": 20.0}],
        "b": [{"val/psnr": 20.0}],
    }


def test_an_interrupt_stops_what_runs_and_starts_nothing_more(tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    planned = [Pretended(str(seed), seed, (), tmp_path / str(seed)) for seed in (0, 600, 601)]
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_all(planned, jobs=1, on_end=interrupt)
    assert time.monotonic() - start < 60
    assert [each.record.is_file() for each in planned] == [True, False, False]
    assert not planned[2].directory.exists()


@pytest.mark.parametrize("change", ["override", "file"])
def test_figures_of_another_configuration_are_not_taken(tmp_path, change):
    base, kind = based(tmp_path), variant(tmp_path, "kind", embed_dim=2)
    plan = {"seeds": (1,), "out": tmp_path / "out"}
    (training,) = trainings([base], [kind], **plan)
    training.directory.mkdir(parents=True)
    record = {"told": training.told(), "metrics": {"val/psnr": 7.0}}
    training.record.write_text(json.dumps(record))
    assert run_all([training], on_end=lambda _: None) == {"kind": [{"val/psnr": 7.0}]}
    if change == "file":
        variant(tmp_path, "kind", embed_dim=3)
    else:
        (training,) = trainings([base], [kind], **plan, overrides=["model.learning_rate=1"])
    with pytest.raises(ConfigError, match=r"kind-1: this training was run with other files or"):
        run_all([training], on_end=lambda _: None)


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Two variants of a training of two steps, one of which cannot be built."""
    monkeypatch.chdir(tmp_path)
    base = based(tmp_path)
    files = {"good": variant(tmp_path, "good", embed_dim=2)}
    # found by the model, not in its signature
    files["bad"] = variant(tmp_path, "bad", ddconfig={"double_z": False})
    flags = ["--gpus", "cpu", "--max_steps", "6"]
    return lambda name: trainings(
        [base], [files[name]], seeds=(1,), out=tmp_path / "out", flags=flags
    )


@pytest.mark.slow
def test_training_is_run_once_and_what_it_logged_is_kept(planned):
    ended = []
    (first,) = run_all(planned("good"), on_end=ended.append)["good"]
    assert first["val/psnr"] > 0
    kept = ended[0].record
    record = json.loads(kept.read_text())
    kept.write_text(json.dumps(record | {"metrics": {"val/psnr": 7.0}}))
    assert run_all(planned("good"), on_end=ended.append) == {"good": [{"val/psnr": 7.0}]}
    assert len(ended) == 2


@pytest.mark.slow
def test_training_that_fails_says_why_and_is_run_anew(planned):
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=r"bad, seed 1: the training failed:\n(.*\n)*.*double_z"
        ):
            run_all(planned("bad"), on_end=lambda _: None)


@pytest.mark.slow
def test_the_script_writes_the_table_it_prints(planned, capsys):
    (training,) = planned("good")
    _, base, path, *_ = training.words
    words = ["-b", base, "--variants", path, "--seeds", "1", "--metrics", "val/psnr"]
    # an override after a list belongs to neither list
    options = ["model.params.embed_dim=3", "--out", "here", "--gpus", "cpu", "--max_steps", "6"]
    compare = script("compare_trainings")
    assert exit_code(compare, [*words, *options]) == 0
    assert Path("here/table.md").read_text() in capsys.readouterr().out
    assert read_image("here/picture.png").std() > 0
    (project,) = Path("here/good-23").glob("*/configs/*-project.yaml")
    assert "embed_dim: 3" in project.read_text()
    assert exit_code(compare, [*words, "--seeds", "0"]) == 2
    # known as soon as one has ended
    assert exit_code(compare, [*words[:-1], "val/psn", *options]) == 2
