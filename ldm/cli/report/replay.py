"""What a step allocates and frees, replayed: as bytes that live, or in a C library's heap."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeAlias

__all__ = ["Event", "Heap", "Live", "Memory", "played"]

# (name, bytes) takes memory, (name, -1) gives it back
Event: TypeAlias = tuple[int, int]

_ALIGNED = 64  # bytes that torch's tensors begin at multiples of
_SPARE = 96  # bytes that glibc looks for beside those, so as to have room to align them
# what `ldm.memory.keep_freed_memory` tells glibc
_KEPT = 2**30
_MAPPED_APART = 2**28


class Memory(Protocol):
    """Something that takes and gives back, and knows the most it ever held."""

    peak: int

    def take(self, name: int, size: int) -> None:
        """Take so many bytes under a name."""
        ...

    def give(self, name: int) -> None:
        """Give back what has this name."""
        ...


class Live:
    """Counts bytes that live: what a GPU's allocator reports."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def take(self, name: int, size: int) -> None:
        """Count them."""
        self._sizes[name] = size
        self.now += size
        self.peak = max(self.peak, self.now)

    def give(self, name: int) -> None:
        """Count them no more."""
        self.now -= self._sizes.pop(name)


class Heap:
    """A heap as glibc keeps it once `keep_freed_memory` has told it to: its holes count.

    What is freed stays with the process, as a hole that joins its neighbours; what is taken comes
    out of the smallest hole that is large enough, or makes the heap longer. The largest pieces are
    mapped by themselves.
    """

    def __init__(self) -> None:
        self.peak = self.top = self.mapped = 0
        self._used: dict[int, tuple[int, int]] = {}  # name -> start and size; start -1 if mapped
        self._holes: list[tuple[int, int]] = []  # size and start, in order
        self._starts: dict[int, int] = {}  # of holes: start -> size
        self._ends: dict[int, int] = {}  # end -> start

    def take(self, name: int, size: int) -> None:
        """Take from a hole, from the end, or by a mapping of its own."""
        size = -(-size // _ALIGNED) * _ALIGNED + _ALIGNED
        if size >= _MAPPED_APART:
            self._used[name] = (-1, size)
            self.mapped += size
        else:
            self._used[name] = (self._place(size), size)
        self.peak = max(self.peak, self.top + self.mapped)

    def give(self, name: int) -> None:
        """Make a hole of it, joined to those beside it."""
        start, size = self._used.pop(name)
        if start < 0:
            self.mapped -= size
            return
        if start in self._ends:
            start, size = self._joined(self._ends[start], size)
        if start + size in self._starts:
            size += self._remove(start + size)
        if start + size == self.top and size > _KEPT:
            self.top = start
        else:
            self._add(start, size)

    def _place(self, size: int) -> int:
        index = bisect_left(self._holes, (size + _SPARE, -1))
        if index < len(self._holes):
            found, start = self._holes[index]
            self._remove(start)
            if found > size:
                self._add(start + size, found - size)
            return start
        start = self.top
        if start in self._ends:  # the last hole becomes the beginning of it
            start = self._ends[start]
            self._remove(start)
        self.top = start + size
        return start

    def _joined(self, before: int, size: int) -> tuple[int, int]:
        return before, self._remove(before) + size

    def _add(self, start: int, size: int) -> None:
        insort(self._holes, (size, start))
        self._starts[start] = size
        self._ends[start + size] = start

    def _remove(self, start: int) -> int:
        """Take a hole out; its size."""
        size = self._starts.pop(start)
        del self._ends[start + size]
        del self._holes[bisect_left(self._holes, (size, start))]
        return size


def played(
    events: Sequence[Event],
    states: Iterable[int],
    backward: int,
    memory: Memory,
    *,
    accumulates: bool = False,
) -> int:
    """Most bytes of two steps, the optimizer's state made between them.

    events: of one micro-batch.  states: bytes of each piece of the state.
    backward: the event at which gradients of the step before are dropped: the first one of the
        backward pass where a trainer does so, 0 where they are gone before.
    accumulates: whether more micro-batches follow in a step, whose gradients are added to those of
        the first.
    """
    for event in events:
        _play(memory, event)
    taken = {name for name, size in events if size >= 0}
    left = taken - {name for name, size in events if size < 0}
    if accumulates:
        _play_added(memory, events, left, _ADDED)
    for index, size in enumerate(states):
        memory.take(-1 - index, size)
    for position, (name, size) in enumerate(events):
        if position == backward:
            for each in left:
                memory.give(each)
        _play(memory, (name + _SECOND, size))
    if accumulates:
        _play_added(memory, events, left, _SECOND + _ADDED)
    return memory.peak


def _play_added(memory: Memory, events: Sequence[Event], left: set[int], names: int) -> None:
    """A micro-batch after the first: a gradient is gone once it has been added."""
    for name, size in events:
        _play(memory, (name + names, size))
        if name in left and size >= 0:
            memory.give(name + names)


# added to the names of what is made again
_ADDED = 2**61
_SECOND = 2**62


def _play(memory: Memory, event: Event) -> None:
    name, size = event
    if size < 0:
        memory.give(name)
    else:
        memory.take(name, size)
