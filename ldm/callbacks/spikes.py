"""What a sequence of losses says: that it jumped, or that it goes nowhere."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

__all__ = ["FlatDetector", "Spike", "SpikeDetector"]

_TO_SIGMA = 1.4826  # median absolute deviation to standard deviation, of a normal distribution
_LEAST_SIGMA = 0.1  # as a share of the loss: below it a loss is quiet, not in danger
_BLOCKS = 20  # whose means tell whether a loss falls


@dataclass(frozen=True)
class Spike:
    """A loss that jumped and stayed: steps from 0, both included.

    usual: median of before.  seen: median since.  score: lowest, in robust standard deviations.
    """

    first: int
    last: int
    usual: float
    seen: float
    score: float


class SpikeDetector:
    """Finds the steps from which on a loss lies far above what it was.

    A loss is high whose distance to the median of the last `window` losses, divided by 1.4826 times
    their median absolute deviation, is above `threshold`; `patience` high losses in a row are a
    spike. Losses that are all positive are compared by their logarithms, as the noise of a loss
    grows with it and has a long tail upwards; the deviation then counts as at least 0.1, which with
    the default threshold of 8 makes exp(0.8) = 2.2 times the median the least that can be high. A
    high loss does not become part of the window. After a spike the window begins anew.
    """

    def __init__(self, window: int = 200, threshold: float = 8.0, patience: int = 8) -> None:
        self.threshold, self.patience = threshold, patience
        self._losses: deque[float] = deque(maxlen=window)
        self._sorted: list[float] = []
        self._high: list[tuple[int, float, float]] = []  # step, loss, score

    def update(self, step: int, loss: float) -> Spike | None:
        """Take in the loss of a step; the spike that is certain now."""
        score = self.score(loss)
        if score <= self.threshold:
            self._high.clear()
            self._append(loss)
            return None
        self._high.append((step, loss, score))
        if len(self._high) < self.patience:
            return None
        steps, losses, scores = zip(*self._high, strict=True)
        seen = _middle(sorted(losses))
        spike = Spike(steps[0], steps[-1], _middle(self._sorted), seen, min(scores))
        for each in (self._high, self._losses, self._sorted):
            each.clear()
        return spike

    def score(self, loss: float) -> float:
        """Robust standard deviations above the median; 0 until half of the window is filled.

        0, too, where even the least deviation would put it below the threshold.
        """
        if len(self._sorted) < max(self._losses.maxlen or 0, 2) / 2:
            return 0.0
        middle, is_positive = _middle(self._sorted), min(self._sorted[0], loss) > 0
        # a loss that is 0 does not vary
        least = _LEAST_SIGMA if is_positive else _LEAST_SIGMA * abs(middle) + 1e-12
        distance = math.log(loss / middle) if is_positive else loss - middle
        if distance <= self.threshold * least:  # nearly always: nothing more is computed
            return 0.0
        away = [math.log(x / middle) if is_positive else x - middle for x in self._sorted]
        return distance / max(_TO_SIGMA * _middle(sorted(map(abs, away))), least)

    def _append(self, loss: float) -> None:
        if len(self._losses) == self._losses.maxlen:
            del self._sorted[bisect_left(self._sorted, self._losses[0])]
        self._losses.append(loss)
        insort(self._sorted, loss)

    def state_dict(self) -> dict[str, Any]:
        """What the next judgement depends on."""
        return {"losses": list(self._losses), "high": [list(each) for each in self._high]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._losses = deque(state["losses"], maxlen=self._losses.maxlen)
        self._sorted = sorted(self._losses)
        self._high = [(step, loss, score) for step, loss, score in state["high"]]


class FlatDetector:
    """Finds out that a loss has not fallen in `steps` steps and is no better than a guess.

    The steps are cut into 20 blocks; the loss falls where the mean of the first ten is above that
    of the last ten by more than 3 standard errors of their difference. Said once, until it falls.
    """

    def __init__(self, steps: int = 5000) -> None:
        self.block = max(steps // _BLOCKS, 1)
        self._sum, self._count = 0.0, 0
        self._means: deque[float] = deque(maxlen=_BLOCKS)
        self._is_said = False

    def update(self, loss: float, guess: float | None) -> float | None:
        """Take in a loss; its mean over the last half of the steps, when it is found to be flat.

        guess: the loss of one who does not look; None judges nothing.
        """
        self._sum, self._count = self._sum + loss, self._count + 1
        if self._count < self.block:
            return None
        self._means.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if guess is None or len(self._means) < _BLOCKS:
            return None
        is_flat = self._is_flat(guess)
        is_news, self._is_said = is_flat and not self._is_said, is_flat
        return fmean(list(self._means)[_BLOCKS // 2 :]) if is_news else None

    def _is_flat(self, guess: float) -> bool:
        means = list(self._means)
        early, late = means[: _BLOCKS // 2], means[_BLOCKS // 2 :]
        error = math.sqrt((variance(early) + variance(late)) / len(late))
        has_fallen = fmean(early) - fmean(late) > 3 * error
        return not has_fallen and fmean(late) > 0.98 * guess

    def state_dict(self) -> dict[str, Any]:
        """What the next judgement depends on."""
        means = list(self._means)
        return {"sum": self._sum, "count": self._count, "means": means, "said": self._is_said}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._sum, self._count, self._is_said = state["sum"], state["count"], state["said"]
        self._means = deque(state["means"], maxlen=_BLOCKS)


def _middle(ordered: list[float]) -> float:
    """The (upper) median, which of logarithms is the logarithm of that of the values."""
    return ordered[len(ordered) // 2]
