"""scripts/compare_samplers.py on a run."""

import json

import pytest

from ldm.cli.exits import exit_code
from ldm.samplers.names import SAMPLERS
from tests.cli.runs import script, second_stage, trained, unconditional, write

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
        (["--evaluations", 0], "--evaluations 0: expected 1 to 1000"),
        (["--evaluations", 1001], "--evaluations 1001: expected 1 to 1000"),
        (["--n", 5], "--n 5: the validation data has 4 items"),
        (["--scale", "nan"], "--scale nan: expected a number"),
        (["--seed", -3], "--seed -3: expected 0 or more"),
    ],
)
def test_what_cannot_be_compared_is_told(runs, tmp_path, caplog_ldm, words, expected):
    assert compare(runs["class"], tmp_path, *words) == 2
    assert expected in caplog_ldm.text
    assert not any(tmp_path.iterdir())


def test_without_a_condition_there_is_nothing_to_follow(runs, tmp_path, caplog_ldm):
    assert compare(runs["plain"], tmp_path, "--scale", 9) == 2
    assert "--scale 9: an unconditional model has nothing to follow" in caplog_ldm.text


def test_other_data_is_another_comparison(runs, tmp_path, caplog_ldm):
    config = second_stage()
    config["data"]["params"]["validation"]["params"]["split"] = "train"
    words = ["--samplers", "ddim", "--evaluations", 2]
    out = tmp_path / "out"
    assert compare(runs["class"], out, *words) == 0
    other = ["--config", write(tmp_path / "other.yaml", config)]
    assert compare(runs["class"], out, *words, *other) == 2
    assert "holds another comparison: conditions was" in caplog_ldm.text


def test_a_comparison_goes_on_after_a_cut(runs, tmp_path):
    words = ["--samplers", "ddim", "ddim", "--evaluations", 2, 2, 3]
    assert compare(runs["plain"], tmp_path, *words) == 0
    whole = (tmp_path / "outcomes.jsonl").read_text()
    assert len(whole.splitlines()) == 2
    (tmp_path / "outcomes.jsonl").write_text(whole[:-9])
    assert compare(runs["plain"], tmp_path, *words) == 0
    lines = (tmp_path / "outcomes.jsonl").read_text().splitlines()
    assert [lines[0], lines[2]] == whole.splitlines()


def test_samplers_with_noise_alone_have_nothing_to_show(runs, tmp_path, capsys):
    assert compare(runs["plain"], tmp_path, "--samplers", "euler-a", "--evaluations", 2) == 0
    assert "nothing to show" in capsys.readouterr().out


def of_schedule(target, **params):
    config = unconditional()
    for key in ("linear_start", "linear_end"):
        del config["model"]["params"][key]
    config["model"]["params"]["parameterization"] = "v"
    config["model"]["params"]["schedule_config"] = {"target": target, "params": params}
    return config


def test_a_model_of_few_levels_is_compared_as_well(tmp_path):
    config = unconditional()
    config["model"]["params"]["timesteps"] = 100
    run = trained(tmp_path, few=config)["few"]
    assert compare(run, tmp_path / "out", "--samplers", "ddim", "--evaluations", 4, 100) == 0
    assert outcomes(tmp_path / "out")["ddim", 100]["distance"] < 5


def test_samplers_that_a_schedule_is_not_for_are_left_out_or_refused(tmp_path, caplog_ldm):
    config = of_schedule("ldm.diffusion.schedule.PublishedSchedule", zero_terminal_snr=True)
    run = trained(tmp_path, zero=config)["zero"]
    assert compare(run, tmp_path / "out", "--evaluations", 2) == 0
    assert "plms is left out: " in caplog_ldm.text
    assert {name for name, _ in outcomes(tmp_path / "out")} == set(SAMPLERS) - {"plms"}
    assert compare(run, tmp_path / "out", "--samplers", "plms", "--evaluations", 2) == 2
    assert "--samplers plms: " in caplog_ldm.text


def test_a_directory_of_another_comparison_is_refused(runs, tmp_path, caplog_ldm):
    words = ["--samplers", "ddim", "--evaluations", 2]
    assert compare(runs["plain"], tmp_path, *words) == 0
    assert compare(runs["plain"], tmp_path, *words, "--seed", 7) == 2
    assert "seed was 0, and now is 7" in caplog_ldm.text
