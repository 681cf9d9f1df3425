"""Ranges of parameters, written as annotations: a configuration is checked against them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

__all__ = ["AtLeast", "NonNegative", "Positive", "Weight"]


@dataclass(frozen=True)
class AtLeast:
    """The smallest number that a parameter takes."""

    value: float


Positive: TypeAlias = Annotated[int, AtLeast(1)]
NonNegative: TypeAlias = Annotated[int, AtLeast(0)]
Weight: TypeAlias = Annotated[float, AtLeast(0)]
