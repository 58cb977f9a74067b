"""A region as the broker and tools see it: read through its descriptor, never mapped."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from ringway.shm._native import ffi, lib
from ringway.shm.errors import BreakCause, DropCause, error_of
from ringway.shm.geometry import Geometry

_WRAP = (1 << 64) - 1
_CAUSES = [cause.name.lower() for cause in DropCause]  # their numbers are those of the list


class SideState(enum.IntEnum):
    """What a side says of itself."""

    DETACHED = lib.RWAY_SIDE_DETACHED
    ATTACHED = lib.RWAY_SIDE_ATTACHED
    BROKEN = lib.RWAY_SIDE_BROKEN


@dataclasses.dataclass(frozen=True)
class SideSnapshot:
    """One side's own words: a state or cause that this release does not know reads as DETACHED or WHOLE."""

    state: SideState
    cause: BreakCause
    incarnation: int
    queues_served: int


@dataclasses.dataclass(frozen=True)
class Counts:
    """One half's account of a ring. `drops` holds the causes that are not zero, by lower-case name."""

    frames: int
    bytes: int
    bells: int
    sleeps: int
    bells_idle: int
    mutes: int
    drops: dict[str, int]


@dataclasses.dataclass(frozen=True)
class RingSnapshot:
    """One ring; head and tail in slots, `in_flight` in frames; counts are those that belong to head and tail."""

    producing_side: int
    queue: int
    head: int
    tail: int
    produced: Counts
    consumed: Counts
    in_flight: int
    begun: int = 0  # frames of those in flight that the consumer has begun to hand on
    originated: int = 0  # of the frames offered: taken out of no other link by the producer's forwarder
    replicated: int = 0  # by the consumer's forwarder: offered to other links beyond those taken out, less consumed

    # The ends can write what they like into their counters: sums wrap as those do.

    @property
    def offered(self) -> int:
        return (self.produced.frames + sum(self.produced.drops.values())) & _WRAP

    @property
    def delivered(self) -> int:
        return (self.consumed.frames - sum(self.consumed.drops.values())) & _WRAP

    @property
    def owed(self) -> int:
        """Where the consumer is a forwarder: what it has to offer to other links."""
        return (self.delivered + self.replicated) & _WRAP

    @property
    def paid(self) -> int:
        """Where the producer is a forwarder: what it has offered of other links' frames.

        Over all rings of a forwarder, `owed` and `paid` have grown by the same whenever it is at rest.
        """
        return (self.offered - self.originated) & _WRAP

    @property
    def balanced(self) -> bool:
        """Published = released + in flight. Exact when both ends are quiet, else true only within a burst or two."""
        return self.produced.frames == (self.consumed.frames + self.in_flight) & _WRAP


@dataclasses.dataclass(frozen=True)
class RegionSnapshot:
    """Everything a tool can know of a region."""

    geometry: Geometry
    link_id: int
    sides: tuple[SideSnapshot, SideSnapshot]
    rings: list[RingSnapshot]


def _known(kind: Any, value: int, otherwise: Any) -> Any:
    try:
        return kind(value)
    except ValueError:
        return otherwise


def _side_of(native: Any) -> SideSnapshot:
    return SideSnapshot(
        state=_known(SideState, native.state, SideState.DETACHED),
        cause=_known(BreakCause, native.cause, BreakCause.WHOLE),
        incarnation=native.incarnation,
        queues_served=native.queues_served,
    )


def _counts_of(native: Any) -> Counts:
    """A `struct rway_counts` in Python's words."""
    drops = {_CAUSES[at]: count for at, count in enumerate(ffi.unpack(native.drops, len(_CAUSES))) if count}
    return Counts(native.frames, native.bytes, native.bells, native.sleeps, native.bells_idle, native.mutes, drops)


def _read_ring(fd: int, snapshot: Any, side: int, queue: int, believe: bool = False) -> RingSnapshot:
    """`believe`: also a head and tail that contradict each other; then nothing is in flight."""
    ring, error = ffi.new("struct rway_ring_snapshot *"), ffi.new("struct rway_error *")
    refused = -lib.rway_ring_read(fd, snapshot, side, queue, ring, error)
    if refused not in ((0, lib.RWAY_REFUSED_COUNTERS) if believe else (0,)):
        raise error_of(error)
    return RingSnapshot(
        producing_side=side,
        queue=queue,
        head=ring.head,
        tail=ring.tail,
        produced=_counts_of(ring.produced),
        consumed=_counts_of(ring.consumed),
        in_flight=ring.in_flight,
        begun=ring.begun,
        originated=ring.originated,
        replicated=ring.replicated,
    )


def read_sides(fd: int) -> tuple[SideSnapshot, SideSnapshot]:
    """What the sides say of themselves, also when a ring cannot be read. RegionError when the header is damaged."""
    snapshot = _read(fd)
    return _side_of(snapshot.sides[0]), _side_of(snapshot.sides[1])


def _read(fd: int) -> Any:
    snapshot, error = ffi.new("struct rway_snapshot *"), ffi.new("struct rway_error *")
    if lib.rway_region_read(fd, snapshot, error) != 0:
        raise error_of(error)
    return snapshot


def read_region(fd: int) -> RegionSnapshot:
    """Read a region. RegionError when its header is damaged or head and tail of a ring cannot be."""
    snapshot = _read(fd)
    geometry = Geometry.of(snapshot.header.geometry)
    return RegionSnapshot(
        geometry=geometry,
        link_id=snapshot.header.link_id,
        sides=(_side_of(snapshot.sides[0]), _side_of(snapshot.sides[1])),
        rings=[_read_ring(fd, snapshot, side, queue) for side in (0, 1) for queue in range(geometry.queues)],
    )


def check_region(fd: int) -> tuple[Geometry, tuple[SideSnapshot, SideSnapshot]]:
    """Geometry and sides of a region, all of which could be read: RegionError as in `read_region`, slower."""
    snapshot = _read(fd)
    geometry = Geometry.of(snapshot.header.geometry)
    ring, error = ffi.new("struct rway_ring_snapshot *"), ffi.new("struct rway_error *")
    for side in (0, 1):
        for queue in range(geometry.queues):
            if lib.rway_ring_read(fd, snapshot, side, queue, ring, error) != 0:
                raise error_of(error)
    return geometry, (_side_of(snapshot.sides[0]), _side_of(snapshot.sides[1]))


def read_what_is_left(fd: int) -> list[RingSnapshot]:
    """The rings of a region that cannot be continued, also those whose head and tail contradict each other.

    RegionError when its header is damaged or a ring lies behind the carrier's end.
    """
    snapshot = _read(fd)
    queues = snapshot.header.geometry.queues
    return [_read_ring(fd, snapshot, side, queue, believe=True) for side in (0, 1) for queue in range(queues)]
