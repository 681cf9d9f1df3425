import os
import shutil
import subprocess
import time
from datetime import datetime

import pytest

from ldm.callbacks.clock import MARGIN, deadline, moment, process_start, to_seconds
from ldm.config import ConfigError

HOUR = 3600


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("00:00:01", 1),
        ("12:00:00", 12 * HOUR),
        ("100:30:00", 100.5 * HOUR),
        ("1:02:03:04", 26 * HOUR + 184),
        ("00:00:00.25", 0.25),
        ("2h30m", 2.5 * HOUR),
        ("90m", 1.5 * HOUR),
        ("45s", 45),
        ("1d", 24 * HOUR),
        ("0.5s", 0.5),
        ("1.5h", 1.5 * HOUR),
        (" 2H 30M ", 2.5 * HOUR),
        ({"hours": 1, "minutes": 30}, 1.5 * HOUR),
    ],
)
def test_a_duration_is_read_in_every_form(given, expected):
    assert to_seconds(given) == expected


@pytest.mark.parametrize(
    "given",
    ["", "0s", "90", "1:30", "30m2h", "1:60:00", "2 weeks", "-5s", True, 5400, None, {"years": 1}],
)
def test_anything_else_is_refused_with_what_was_expected(given):
    with pytest.raises(ConfigError, match=r"lightning\.trainer\.max_time: .* such as 2h30m"):
        to_seconds(given)


def test_a_number_that_yaml_made_of_a_time_is_to_be_quoted():
    with pytest.raises(ConfigError, match=r"43200; .* in quotes"):
        to_seconds(12 * HOUR)


@pytest.mark.skipif(shutil.which("ps") is None, reason="there is no ps to ask")
def test_the_age_of_the_process_is_what_the_system_says():
    age = time.monotonic() - process_start()
    told = subprocess.run(
        ["ps", "-o", "etimes=", "-p", str(os.getpid())], capture_output=True, text=True, check=True
    )
    assert age == pytest.approx(float(told.stdout), abs=2)


def test_a_limit_counts_from_the_start_of_the_process():
    assert deadline(100.0) == pytest.approx(process_start() + 100, abs=0.05)
    assert deadline(None) is None


@pytest.mark.parametrize(("left", "margin"), [(HOUR, MARGIN), (100, 10)])
def test_a_job_stops_a_margin_before_its_end(monkeypatch, left, margin):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + left))
    expected = time.monotonic() + left - margin
    assert deadline(None) == pytest.approx(expected, abs=1.1)  # the end is a whole second
    assert deadline(1e6) == pytest.approx(expected, abs=1.1)
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert deadline(None) is None


def test_a_moment_is_shown_in_local_time():
    shown = datetime.fromisoformat(moment(time.monotonic() + 60))
    assert (shown - datetime.now().astimezone()).total_seconds() == pytest.approx(60, abs=1.1)
