"""Samplers at equal cost: what they draw from the same seeds, in tables and a plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ldm.evaluation.tables import markdown_table
from ldm.samplers.base import Sampler

__all__ = ["Outcome", "curves_of", "distance", "outcome_table", "steps_within"]

Images = Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class Outcome:
    """What one sampler drew with one number of steps.

    sampler: its short name.  allowed: evaluations of the denoiser per image, at most.
    steps: the most that these allow.
    score: share of the images that show all of their captions, 0 to 1; None where nothing can tell.
    distance: from the images that the probability-flow ODE leads to, in levels of 255, see
        `distance`; None for a sampler with noise, which leads elsewhere.
    """

    sampler: str
    allowed: int
    steps: int
    score: float | None
    distance: float | None


def steps_within(sampler: Sampler, evaluations: int) -> int:
    """The most steps that cost no more evaluations than these; 0 where even one does."""
    return max(s for s in range(evaluations + 1) if s == 0 or sampler.evaluations(s) <= evaluations)


def distance(images: Images, reference: Images) -> float:
    """Root mean square difference of images (H, W, C) uint8, in levels: the median over images.

    A mean would be that of the few images that are led to something else.
    """
    pairs = zip(images, reference, strict=True)
    squares = [np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2) for a, b in pairs]
    return float(np.sqrt(np.median(squares)))


def outcome_table(outcomes: Iterable[Outcome], value: str, scale: float = 1.0) -> str:
    """A row per sampler, a column per number of evaluations that was allowed, in Markdown.

    value: "score" or "distance"; samplers without any are left out.  scale: multiplies it.
    """
    curves = curves_of(outcomes, value)
    budgets = sorted({budget for curve in curves.values() for budget in curve})
    rows = [
        [f"`{name}`", *(f"{curve[b] * scale:.1f}" if b in curve else "" for b in budgets)]
        for name, curve in curves.items()
    ]
    return markdown_table(["evaluations", *map(str, budgets)], rows)


def curves_of(outcomes: Iterable[Outcome], value: str) -> Mapping[str, dict[int, float]]:
    """Sampler to evaluations to value, in the order in which samplers first appear."""
    curves: dict[str, dict[int, float]] = {}
    for outcome in outcomes:
        if (found := getattr(outcome, value)) is not None:
            curves.setdefault(outcome.sampler, {})[outcome.allowed] = found
    return curves
