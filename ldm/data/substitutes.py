"""Samples that cannot be read, and what takes their place in training.

The substitute of a sample is drawn by seed, epoch and sample: neither the number of processes nor
when something was read has a say in it, so a resumed run sees the same. Its image, caption and
names are its own; `sample_id`, and with it noise, times and the random choices of its framing, are
those of the place that it fills.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from ldm.config import ConfigError
from ldm.data.decoding import reason
from ldm.log import log

__all__ = [
    "FAULTS",
    "BadSample",
    "Fault",
    "Keyed",
    "Substituted",
    "first_readable",
    "known_bad",
    "name_of",
    "printable",
]

Fault = tuple[str, str]  # name of a sample that cannot be read, and why

FAULTS = "__faults__"  # entry of an item, and of a batch: those that were met instead of it

_TRIED = 100  # samples that are drawn in the place of one before the data set is given up
_SALT = 0x5AB5  # so that a substitute does not depend on how its place draws its crop
_NAMED = 3


class BadSample(ConfigError):
    """A sample that cannot be read: its file, and the reason.

    Raised by data sets. In training `DataModuleFromConfig` replaces the sample, everywhere else it
    is the error of a user's file that it is.
    """

    def __init__(self, name: str, why: str = "") -> None:
        self.fault: Fault = (printable(name), why)
        super().__init__(f"{self.fault[0]}: {why}" if why else name)


class Reading(Protocol):
    """Who wants to know which sample is being read."""

    def begin(self, index: int) -> None:
        """A sample is about to be read."""

    def end(self) -> None:
        """It has been, or could not be."""


class Keyed(Dataset[dict[str, Any]]):
    """A data set whose random choices depend on seed, epoch and sample alone.

    data: one that makes random choices offers `item(index, rng)` and draws them from `rng`; another
        is indexed.  rounds: of the `EpochSampler` whose keys it is read by.
    replaces: whether another sample takes the place of one that is a `BadSample` or that raises
        OSError; what was wrong with which is `FAULTS` of the item then, a list of `Fault`.
    reading: is told which sample is being read.

    Each item gets `sample_id`: its index, plus the size of the set for each round before.

    Raises ConfigError when there is nothing to read in the place of a sample.
    """

    def __init__(
        self,
        data: Any,
        seed: int,
        rounds: int = 1,
        *,
        replaces: bool = False,
        reading: Reading | None = None,
    ) -> None:
        self.data, self.seed, self.rounds = data, seed, rounds
        self.replaces, self.reading = replaces, reading

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: int) -> dict[str, Any]:
        """The sample of a key, or its substitute, with the random choices of its epoch."""
        epoch, sample_id = divmod(key, len(self.data) * self.rounds)
        index = sample_id % len(self.data)
        faults: list[Fault] = []
        for candidate in itertools.chain([index], self._substitutes(index, epoch, sample_id)):
            # anew for each: one that could not be read may have drawn some
            rng = np.random.default_rng([self.seed, epoch, sample_id])
            found = self._read(candidate, rng)
            if isinstance(found, dict):
                told = {FAULTS: faults} if faults else {}
                return {**found, "sample_id": sample_id, **told}
            faults.append(found)
        raise ConfigError(_nothing_left(faults))

    def _read(self, index: int, rng: np.random.Generator) -> dict[str, Any] | Fault:
        """A sample, or why it cannot be read."""
        if self.reading:
            self.reading.begin(index)
        try:
            has_choices = hasattr(self.data, "item")
            return dict(self.data.item(index, rng) if has_choices else self.data[index])
        except BadSample as error:
            fault = error.fault
        except OSError as error:  # of a data set that knows no BadSample
            fault = (name_of(self.data, index), reason(error))
        finally:
            if self.reading:
                self.reading.end()
        if self.replaces:
            return fault
        raise BadSample(*fault)

    def _substitutes(self, index: int, epoch: int, sample_id: int) -> Iterator[int]:
        """The samples that are tried in the place of one, in their order."""
        rng = np.random.default_rng([self.seed, epoch, sample_id, _SALT])
        size = len(self.data)
        drawn: list[int] = rng.choice(size, min(size, _TRIED), replace=False).tolist()
        yield from (each for each in drawn if each != index)


class Substituted(Dataset[dict[str, Any]]):
    """The items of a data set as they are, or their substitutes, each bad one named in the log.

    For those who look at what an item is of and do not take one for another.
    """

    def __init__(self, data: Any) -> None:
        self._keyed = Keyed(data, seed=0, replaces=True)

    def __len__(self) -> int:
        return len(self._keyed)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item with the random choices of epoch 0."""
        item = self._keyed[index]
        for name, why in item.pop(FAULTS, [])[:1]:
            log.warning("%s (%s) is left out", name, why)
        return item


def first_readable(data: Any) -> Any:
    """The first item of a data set that can be read; the error of its first one if none can."""
    first: BadSample | None = None
    for index in range(len(data)):
        try:
            return data[index]
        except BadSample as error:
            first = first or error
    raise first or ConfigError("the data set is empty")


def name_of(data: Any, index: int) -> str:
    """What a message calls a sample: its file where the data set knows one."""
    named = getattr(data, "name_of", None)
    return printable(named(index)) if callable(named) else f"sample {index}"


def known_bad(data: Any) -> list[Fault]:
    """Samples of a data set that are known to be bad before they are asked for."""
    known = getattr(data, "known_bad", None)
    return list(known()) if callable(known) else []


def printable(name: str) -> str:
    """A name on one line, whatever is in it: control characters and lone bytes are escaped."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in name)


def _nothing_left(faults: list[Fault]) -> str:
    named = ", ".join(f"{name} ({why})" for name, why in faults[1 : 1 + _NAMED])
    drawn = len(faults) - 1
    other = f"none of {drawn} others that were drawn can be read: {named}, ..." if drawn else ""
    return f"{faults[0][0]} ({faults[0][1]}) cannot be read, and {other or 'there is no other'}"
