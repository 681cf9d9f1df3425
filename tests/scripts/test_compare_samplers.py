"""scripts/compare_samplers.py on a run."""

import json

import pytest

from ldm.cli.exits import exit_code
from tests.cli.runs import script, second_stage, trained, unconditional

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    configs = {"plain": unconditional(), "class": second_stage()}
    return trained(tmp_path_factory.mktemp("runs"), **configs)


def compare(run, out, *words):
    words = [str(run), "--out", str(out), "--n", "2", "--device", "cpu", *map(str, words)]
    return exit_code(script("compare_samplers"), words)


def outcomes(out):
    lines = (out / "outcomes.jsonl").read_text().splitlines()
    return {(each["sampler"], each["allowed"]): each for each in map(json.loads, lines)}


def test_what_is_there_is_not_drawn_again(runs, tmp_path, capsys):
    words = ["--samplers", "heun", "ddpm", "--evaluations", 1, 4]
    assert compare(runs["class"], tmp_path, *words, "--scale", 2) == 0
    first = (tmp_path / "outcomes.jsonl").read_text()
    assert outcomes(tmp_path)["heun", 4]["steps"] == 2
    assert outcomes(tmp_path)["heun", 4]["distance"] > 0
    assert outcomes(tmp_path)["ddpm", 4]["distance"] is None
    more = ["--samplers", "dpmpp-3m", "heun", "--evaluations", 4, "--scale", 2]
    assert compare(runs["class"], tmp_path, *more) == 0
    assert (tmp_path / "outcomes.jsonl").read_text().startswith(first)
    assert outcomes(tmp_path).keys() - {("dpmpp-3m", 4)} == {
        ("heun", 1),
        ("heun", 4),
        ("ddpm", 1),
        ("ddpm", 4),
    }
    assert "| `heun` |" in capsys.readouterr().out
    assert (tmp_path / "picture.png").is_file()


def test_the_solution_is_at_no_distance_from_itself(runs, tmp_path):
    assert compare(runs["plain"], tmp_path, "--samplers", "dpmpp-3m", "--evaluations", 4, 200) == 0
    assert outcomes(tmp_path)["dpmpp-3m", 4]["distance"] > 0
    assert outcomes(tmp_path)["dpmpp-3m", 200]["distance"] == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--samplers", "heunn"], "--samplers: 'heunn'"),
        (["--evaluations", 0], "--evaluations 0: expected 1 or more"),
        (["--n", 5], "--n 5: the validation data has 4 items"),
    ],
)
def test_what_cannot_be_compared_is_told(runs, tmp_path, caplog_ldm, words, expected):
    assert compare(runs["class"], tmp_path, *words) == 2
    assert expected in caplog_ldm.text


def test_a_directory_of_another_comparison_is_refused(runs, tmp_path, caplog_ldm):
    words = ["--samplers", "ddim", "--evaluations", 2]
    assert compare(runs["plain"], tmp_path, *words) == 0
    assert compare(runs["plain"], tmp_path, *words, "--seed", 7) == 2
    assert "seed was 0, and now is 7" in caplog_ldm.text
