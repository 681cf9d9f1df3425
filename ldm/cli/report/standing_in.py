"""Samples of the configured size in place of data that is not there: the rest is checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import MISSING

from ldm.config import ConfigError, instantiate_from_config
from ldm.data.shapes import ShapesDataset

__all__ = ["Completed", "Made", "stand_in"]

_SMALLEST = 16  # pixels that drawn shapes need


class Made:
    """Four drawn scenes of a size, without a list of classes."""

    def __init__(self, size: Any) -> None:
        self.drawn = ShapesDataset(size, objects=1, length=4)

    def __len__(self) -> int:
        return len(self.drawn)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A scene with everything that `ShapesDataset` knows about it."""
        return self.drawn[index]


class Completed:
    """A data set with entries added that its own examples lack."""

    def __init__(self, data: Any, entries: Mapping[str, Any]) -> None:
        self.data, self.entries = data, entries

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The example with the entries."""
        return {**self.entries, **self.data[index]}


def stand_in(config: Mapping[str, Any], size: int) -> Any:
    """A data set as configured, but around drawn scenes instead of files.

    config: of the data set; one that wraps another keeps doing so, as far as it can.
    size: of the pictures in pixels where the configuration does not say.
    """
    inner = _innermost_size(config) or size
    made = Made(inner if not isinstance(inner, int) else max(inner, _SMALLEST))
    return _around(config, made)


def _around(config: Any, made: Made) -> Any:
    params = config.get("params") if isinstance(config, Mapping) else None
    if not isinstance(params, Mapping) or "source" not in params:
        return made
    source = _around(params["source"], made)
    own = {**params, "source": source}
    if MISSING in own.values():
        return source
    own.pop("masks", None)  # files beside those of the images
    try:
        return instantiate_from_config({**config, "params": own})
    except (ConfigError, OSError):
        return source


def _innermost_size(config: Any) -> Any:
    """`size` of the data set inside of all others, None where it has none."""
    if not isinstance(config, Mapping):
        return None
    params = config.get("params")
    if not isinstance(params, Mapping):
        return None
    if "source" in params:
        return _innermost_size(params["source"]) or params.get("size")
    nested = params.get("config")  # published: parameters in a mapping of their own
    return params.get("size") or (nested.get("size") if isinstance(nested, Mapping) else None)
