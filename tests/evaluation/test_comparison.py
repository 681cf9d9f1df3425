"""The table of several trainings."""

import pytest

from ldm.config import ConfigError
from ldm.evaluation.comparison import as_markdown, values_of

RESULTS = {"a": [{"psnr": 20.0}, {"psnr": 22.0}], "b": [{"psnr": 30.0}]}


def test_table_has_mean_and_deviation_over_seeds():
    assert as_markdown(RESULTS, ["psnr"]).splitlines() == [
        "| variant | psnr | seeds |",
        "| --- | --- | --- |",
        "| a | 21 ± 1.4 | 2 |",
        "| b | 30 | 1 |",
    ]


def test_values_are_kept_apart_by_metric_and_variant():
    assert values_of(RESULTS, ["psnr"]) == {"psnr": {"a": [20.0, 22.0], "b": [30.0]}}


def test_metric_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"--metrics val/psn: .*'val/psnr'"):
        as_markdown({"a": [{"val/psnr": 1.0}]}, ["val/psn"])
