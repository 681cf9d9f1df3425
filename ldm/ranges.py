"""Ranges of parameters, written as annotations: a configuration is checked against them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

__all__ = ["Minimum", "NonNegative", "Positive", "Weight"]


@dataclass(frozen=True)
class Minimum:
    """The smallest number that a parameter takes."""

    value: float


Positive: TypeAlias = Annotated[int, Minimum(1)]
NonNegative: TypeAlias = Annotated[int, Minimum(0)]
Weight: TypeAlias = Annotated[float, Minimum(0)]
