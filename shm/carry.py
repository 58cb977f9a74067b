"""Counts that a new region takes over from the one it replaces, as far as that one can still be read.

What an end wrote is its word: numbers may be absurd, and sums wrap as the counters do. Nothing here refuses them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from ringway.shm._native import ffi
from ringway.shm.errors import DropCause, RegionError
from ringway.shm.snapshot import Counts, RingSnapshot, read_what_is_left

_WRAP = (1 << 64) - 1
_NONE = Counts(0, 0, 0, 0, 0, 0, {})
_WORDS = ("frames", "bytes", "bells", "sleeps", "bells_idle", "mutes")


@dataclasses.dataclass(frozen=True)
class CarriedRing:
    """The accounts of one ring's two halves."""

    produced: Counts = _NONE
    consumed: Counts = _NONE
    originated: int = 0
    replicated: int = 0

    def __add__(self, other: CarriedRing) -> CarriedRing:
        return CarriedRing(
            _sum(self.produced, other.produced),
            _sum(self.consumed, other.consumed),
            (self.originated + other.originated) & _WRAP,
            (self.replicated + other.replicated) & _WRAP,
        )


@dataclasses.dataclass(frozen=True)
class Carried:
    """A region's accounts: for each producing side those of its rings, queue by queue. No rings: all begins at 0."""

    sides: tuple[tuple[CarriedRing, ...], tuple[CarriedRing, ...]] = ((), ())

    def over(self, queues: int) -> Carried:
        """The same sums over so many queues: what the surplus ones have is added to queue 0, new ones begin at 0."""
        a, b = (tuple(_folded(rings, queues)) for rings in self.sides)
        return Carried((a, b))

    def native(self, queues: int) -> Any:
        """As C takes it: `struct rway_carried[2 * queues]`."""
        rings = [ring for side in self.over(queues).sides for ring in side]
        carried = ffi.new("struct rway_carried[]", 2 * queues)
        for to, ring in zip(carried, rings, strict=True):
            _fill(to.produced, ring.produced)
            _fill(to.consumed, ring.consumed)
            to.originated, to.replicated = ring.originated, ring.replicated
        return carried


def carried_from(fd: int) -> Carried:
    """What can be carried over from the region behind `fd`, whose ends are gone: as the next to attach would find it.

    A ring whose head and tail contradict each other still has its counts. What cannot be read is not carried.
    """
    sides: tuple[list[CarriedRing], list[CarriedRing]] = ([], [])
    try:
        for ring in read_what_is_left(fd):
            sides[ring.producing_side].append(_carried(ring))
    except RegionError:
        return Carried()
    return Carried((tuple(sides[0]), tuple(sides[1])))


def _carried(ring: RingSnapshot) -> CarriedRing:
    """Frames that the consumer had begun to hand on were delivered, except for the last, of which nobody knows."""
    handed_on = max(0, ring.begun - 1)
    frames = (ring.consumed.frames + handed_on) & _WRAP
    consumed = dataclasses.replace(ring.consumed, frames=frames)
    return CarriedRing(ring.produced, consumed, ring.originated, ring.replicated)


def _folded(rings: tuple[CarriedRing, ...], queues: int) -> Iterator[CarriedRing]:
    first = CarriedRing()
    for ring in (*rings[:1], *rings[queues:]):
        first = first + ring
    yield first
    for queue in range(1, queues):
        yield rings[queue] if queue < len(rings) else CarriedRing()


def _sum(one: Counts, other: Counts) -> Counts:
    words = {word: (getattr(one, word) + getattr(other, word)) & _WRAP for word in _WORDS}
    causes = [*one.drops, *(cause for cause in other.drops if cause not in one.drops)]
    drops = {cause: (one.drops.get(cause, 0) + other.drops.get(cause, 0)) & _WRAP for cause in causes}
    return Counts(**words, drops=drops)


def _fill(native: Any, counts: Counts) -> None:
    for word in _WORDS:
        setattr(native, word, getattr(counts, word) & _WRAP)
    for cause, frames in counts.drops.items():
        native.drops[DropCause[cause.upper()]] = frames & _WRAP
