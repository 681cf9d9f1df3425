"""Last metrics of trainings that differ in one thing, set side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from ldm.config import ConfigError, did_you_mean
from ldm.evaluation.tables import markdown_table

__all__ = ["Metrics", "as_markdown", "values_of"]

Metrics = Mapping[str, float]


def as_markdown(results: Mapping[str, Sequence[Metrics]], metrics: Sequence[str]) -> str:
    """A table: a row per variant, a column per metric, mean and deviation over the seeds.

    results: variant to the last metrics of each of its trainings.
    Raises ConfigError for a metric that a training does not have.
    """
    columns = values_of(results, metrics).values()
    rows = [
        [variant, *(_over(column[variant]) for column in columns), str(len(runs))]
        for variant, runs in results.items()
    ]
    return markdown_table(["variant", *metrics, "seeds"], rows)


def values_of(
    results: Mapping[str, Sequence[Metrics]], metrics: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Metric to variant to the values of its trainings.

    Raises ConfigError for a metric that a training does not have.
    """
    for metric in metrics:
        for run in (run for runs in results.values() for run in runs):
            if metric not in run:
                near = did_you_mean(metric, run)
                raise ConfigError(f"--metrics {metric}: is not among those of the trainings{near}")
    return {
        metric: {variant: [run[metric] for run in runs] for variant, runs in results.items()}
        for metric in metrics
    }


def _over(values: Sequence[float]) -> str:
    """Mean and, of several, standard deviation."""
    mean = f"{statistics.fmean(values):.4g}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2g}"
