"""Metrics of runs, read from their files and drawn as one picture."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.config import ConfigError

__all__ = ["plot_curves", "plot_spread", "read_metrics"]

Curve = list[tuple[int, float]]

_COLOURS = 10  # of matplotlib's cycle


def read_metrics(run: str | Path) -> dict[str, Curve]:
    """Every metric of a run: name to (optimizer step, value), in the order they were logged.

    Raises ConfigError when the run has no metrics.
    """
    files = sorted(Path(run).glob("metrics/*/metrics.csv"))
    if not files:
        raise ConfigError(f"{run}: no metrics/*/metrics.csv in it; expected a run directory")
    curves: dict[str, Curve] = {}
    for path in files:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name not in ("step", "epoch"):
                        curves.setdefault(name, []).append((int(float(row["step"])), float(value)))
    return curves


def plot_curves(
    panels: Mapping[str, Mapping[str, Curve]],
    path: str | Path,
    *,
    logarithmic: Sequence[str] = (),
    along: str = "optimizer step",
    is_log_along: bool = False,
) -> None:
    """Write a PNG with one panel per entry: title to curves by label.

    logarithmic: titles of the panels with a logarithmic axis of values.  along: what the other axis
    is, and whether it is logarithmic.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4), squeeze=False)
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for index, (label, curve) in enumerate(curves.items()):
            steps, values = zip(*curve, strict=True)
            style = "-" if index < _COLOURS else "--"  # colours repeat
            axis.plot(steps, values, style, label=label, linewidth=1.2)
        axis.set(title=title, xlabel=along)
        if is_log_along:
            _tick_at(axis, sorted({at for curve in curves.values() for at, _ in curve}))
        if title in logarithmic:
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _tick_at(axis: Any, places: Sequence[int]) -> None:
    """A logarithmic axis with ticks where there are values."""
    axis.set_xscale("log")
    axis.set_xticks(places, [str(place) for place in places])
    axis.minorticks_off()


def plot_spread(panels: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path) -> None:
    """Write a PNG with one panel per entry: title to the values of each label.

    A label is a row, each of its values a dot in it. Panels have the same labels in one order.
    """
    plt = _pyplot()
    labels = list(next(iter(panels.values())))
    size = (3.5 * len(panels) + 1, 0.3 * len(labels) + 1)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True)
    for axis, (title, values) in zip(axes[0], panels.items(), strict=True):
        for row, label in enumerate(labels):
            axis.plot(values[label], [row] * len(values[label]), "o", color="C0", alpha=0.6)
        axis.set(title=title, yticks=range(len(labels)), yticklabels=labels)
        axis.grid(alpha=0.3)
    axes[0][0].invert_yaxis()  # the first on top
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _pyplot() -> Any:
    import matplotlib as mpl  # an extra, and slow to import

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt
