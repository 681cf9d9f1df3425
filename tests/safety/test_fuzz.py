"""The short form of tests/fuzz.py: always the same wrong starts."""

import pytest

from tests.fuzz import Tally, fuzz, start, workplace
from tests.safety.mutations import RAW, bases
from tests.safety.watching import watched


@pytest.fixture(scope="module")
def place():
    with workplace() as directory:
        yield directory


def test_the_fuzzer_sees_what_runs_and_what_is_written_elsewhere(tmp_path):
    import os
    import subprocess

    (tmp_path / "inside").mkdir()
    with watched(tmp_path / "inside") as seen:
        (tmp_path / "inside" / "a").write_text("")
        (tmp_path / "b").write_text("")
        os.rename(tmp_path / "b", tmp_path / "c")
        subprocess.run(["true"], check=True)
    assert [each.split()[0] for each in seen if "fork" not in each] == [
        "open",
        "os.rename",
        "os.rename",
        "subprocess.Popen",
    ]


def test_no_piece_of_yaml_starts_anything(place):
    outcomes = {raw: start(raw, [], place) for raw in RAW}
    assert {raw: each.problem for raw, each in outcomes.items() if each.problem} == {}
    assert {each.code for each in outcomes.values()} == {2}


@pytest.mark.slow
def test_wrong_configurations_and_words_are_refused_with_their_place(place):
    tally = Tally()
    fuzz(place, tally, 25, configs=bases()[:2])
    assert {where: each.outcome.problem for where, each in tally.problems.items()} == {}
    assert set(tally.codes) <= {"0", "2"}
    assert tally.codes["2"] > 10
