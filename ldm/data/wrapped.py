"""Data sets around data sets: each changes the items of another one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ldm.config import ConfigError, build
from ldm.data.substitutes import Fault, known_bad, name_of

__all__ = ["Wrapped", "entry"]


class Wrapped(Dataset[dict[str, Any]], ABC):
    """The items of another data set, changed.

    source: the other one, a configuration or an object. Its classes are those of this one.

    Random choices follow those of the source, from the same generator.
    """

    def __init__(self, source: Any) -> None:
        self.source = build(source, path="source")
        is_data = hasattr(self.source, "__getitem__") and hasattr(self.source, "__len__")
        if not is_data or isinstance(self.source, Mapping | Sequence):
            found = type(self.source).__name__
            raise ConfigError(f"source: expected a data set, a target with params, got {found}")

    @abstractmethod
    def changed(self, item: dict[str, Any], index: int, rng: np.random.Generator) -> dict[str, Any]:
        """What becomes of an item of the source; every random choice is drawn from `rng`."""

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item with the random choices of epoch 0."""
        return self.item(index, np.random.default_rng([0, 0, index]))

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The sample at `index`, changed."""
        has_choices = hasattr(self.source, "item")
        item = self.source.item(index, rng) if has_choices else self.source[index]
        return self.changed(dict(item), index, rng)

    @property
    def class_names(self) -> Sequence[str]:
        """Those of the source, none when it has none."""
        return getattr(self.source, "class_names", ())

    def name_of(self, index: int) -> str:
        """What the source calls a sample."""
        return name_of(self.source, index)

    def known_bad(self) -> list[Fault]:
        """The samples of the source that are known to be bad."""
        return known_bad(self.source)

    def adopt_classes(self, names: Sequence[str]) -> None:
        """Number the classes as another set does, as the source can.

        Raises ConfigError where it cannot.
        """
        if not hasattr(self.source, "adopt_classes"):
            found = type(self.source).__name__
            raise ConfigError(f"source: the classes of {found} cannot be numbered otherwise")
        self.source.adopt_classes(names)


def entry(item: dict[str, Any], key: str, source: object) -> Any:
    """An entry of an item; ConfigError that names what the source has instead."""
    if key not in item:
        known = ", ".join(sorted(item))
        raise ConfigError(f"source: items of {type(source).__name__} have no {key!r}, only {known}")
    return item[key]
