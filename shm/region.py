"""A region's life from Python: made by the broker, attached and detached by an end."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Sequence
from typing import Any, Self

from ringway.shm._native import ffi, lib
from ringway.shm.errors import BreakCause, RefusalCause, RegionError, error_of
from ringway.shm.geometry import Geometry
from ringway.shm.reading import SideReading, _side_of
from ringway.shm.ring import Consumer, Consumers, Producer

_BELL_SIZE = 4096  # bytes: one page is the smallest pipe, and one byte is a whole message


def create_region(geometry: Geometry, link_id: int, huge: bool = False) -> int:
    """Make a region and return its descriptor, which the caller owns. RegionError: GEOMETRY, NO_HUGE, SYSTEM."""
    error = ffi.new("struct rway_error *")
    flags = lib.RWAY_CREATE_HUGE if huge else 0
    fd = int(lib.rway_region_create(geometry.native(), link_id, flags, error))
    if fd < 0:
        raise error_of(error)
    return fd


def make_bell() -> tuple[int, int]:
    """A pipe of one page: its read end for the sleeper, its write end for the ringer; the caller owns both."""
    wait_fd, ring_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.fcntl(ring_fd, fcntl.F_SETPIPE_SZ, _BELL_SIZE)
    return wait_fd, ring_fd


@dataclasses.dataclass(frozen=True)
class QueueBells:
    """The four descriptors one end holds for one queue: its producer's and its consumer's bells, and the peer's."""

    producer_wait: int
    producer_ring: int
    consumer_wait: int
    consumer_ring: int


class Region:
    """One side's mapping of a region, with the producers and consumers of its queues.

    Nothing may use them after `detach`: loops in C are stopped first (the agent does), and Producer and Consumer
    objects refuse from then on.
    """

    def __init__(self, native: Any, geometry: Geometry) -> None:
        self._native = native
        self.geometry = geometry
        self.shape = geometry.shape()
        self.producers = [Producer(self, lib.rway_region_producer(native, q)) for q in range(geometry.queues)]
        self.consumers = [Consumer(self, lib.rway_region_consumer(native, q)) for q in range(geometry.queues)]
        self.all_consumers = Consumers(self, self.consumers)

    @classmethod
    def attach(
        cls,
        fd: int,
        geometry: Geometry,
        link_id: int,
        side: int,
        incarnation: int = 0,
        bells: Sequence[QueueBells] = (),
    ) -> Region:
        """Map the region behind `fd` (which stays the caller's) as `side`; the bells are its own, also on failure.

        Geometry and link id are the broker's offer; RegionError when the region says otherwise or is damaged.
        """
        error = ffi.new("struct rway_error *")
        left = [fd for queue in bells for fd in dataclasses.astuple(queue)]
        try:
            native = lib.rway_region_attach(fd, geometry.native(), link_id, side, incarnation, error)
            if native == ffi.NULL:
                raise error_of(error)
            region = cls(native, geometry)
            try:
                region._take_bells(left)
            except BaseException:
                region.detach()
                raise
        finally:
            for bell in left:
                with contextlib.suppress(OSError):  # one that was not open is what the refusal is about
                    os.close(bell)
        return region

    def _take_bells(self, bells: list[int]) -> None:
        """Hand the descriptors over queue by queue; those that C has taken leave the list."""
        if bells and len(bells) != 4 * self.geometry.queues:
            raise RegionError(RefusalCause.ARGUMENT, "number of bells", len(bells), 4 * self.geometry.queues)
        error = ffi.new("struct rway_error *")
        takers = ((lib.rway_producer_bells, self.producers), (lib.rway_consumer_bells, self.consumers))
        for queue in range(len(bells) // 4):
            for take, halves in takers:
                if take(halves[queue].native, bells[0], bells[1], error) != 0:
                    raise error_of(error)
                del bells[:2]

    @property
    def native(self) -> Any:
        """The `struct rway_region *`, for C loops; ValueError once detached."""
        if self._native is None:
            raise ValueError("the region is detached")
        return self._native

    @property
    def attached(self) -> bool:
        return self._native is not None

    @property
    def broken(self) -> BreakCause:
        """WHOLE while the link can be used."""
        return BreakCause(lib.rway_region_broken(self.native))

    def peer(self) -> SideReading:
        """What the other side says of itself."""
        side = ffi.new("struct rway_side *")
        lib.rway_region_peer(self.native, side)
        return _side_of(side)

    def serve(self, queues: int) -> None:
        """Tell the peer in which queues this side wants its frames: bit q for queue q; 0: in any.

        Senders that spread by flow follow, flow by flow; frames can still come in the others.
        """
        lib.rway_region_serve(self.native, queues)

    def join(self, out: Region) -> int | None:
        """Before a forwarder starts that alone takes this end's frames, and alone offers frames to `out`.

        Returns how many frames one before it had taken and not offered when it was killed, now counted as `restart`
        at `out`; 0 when there was none, and None when the counts say what no kill can lose, and nothing is counted.
        """
        lost = ffi.new("uint64_t *")
        joined = lib.rway_region_join(self.native, out.native, lost)
        return None if joined == lib.RWAY_JOIN_IMPLAUSIBLE else int(lost[0])

    def part(self) -> None:
        """The forwarder has ended, and holds no frames."""
        lib.rway_region_part(self.native)

    def detach(self) -> None:
        """Mark the side detached and unmap. Safe to call twice; no thread may be inside a call of this region."""
        native, self._native = self._native, None
        if native is not None:
            lib.rway_region_detach(native)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()
