"""A region's life from Python: made by the broker, attached and detached by an end."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Self

from ringway.shm._native import ffi, lib
from ringway.shm.carry import Carried
from ringway.shm.errors import BreakCause, RefusalCause, RegionError, RegionHeldError, error_of
from ringway.shm.geometry import Geometry
from ringway.shm.ring import Consumer, Consumers, Producer
from ringway.shm.snapshot import SideSnapshot, _side_of

_BELL_SIZE = 4096  # bytes: one page is the smallest pipe, and one byte is a whole message


_HELD_S = 10.0  # how long whoever uses a region may take to let go of it


class LossState(enum.IntEnum):
    """What was known, when a forwarder starts, of those before it."""

    UNKNOWN = lib.RWAY_LOSSES_UNKNOWN
    COUNTED = lib.RWAY_LOSSES_COUNTED
    IMPLAUSIBLE = lib.RWAY_LOSSES_IMPLAUSIBLE


def count_losses(regions: Sequence[Region]) -> tuple[LossState, int]:
    """Before a forwarder starts: find out what those before it held when they were killed.

    COUNTED: so many frames, now counted as lost by a restart, in a ring that they were going to. IMPLAUSIBLE: so many
    as no kill can lose, and nothing is counted. All regions of a forwarder have to be here, before anything is moved.
    """
    lost = ffi.new("uint64_t *")
    return LossState(lib.rway_losses_count(_natives(regions), len(regions), lost)), int(lost[0])


def watch_losses(taken_from: Sequence[Region], sent_to: Sequence[Region]) -> None:
    """A forwarder starts that takes frames out of some regions and sends them to others, or to the same ones."""
    lib.rway_losses_watch(_natives(taken_from), len(taken_from), _natives(sent_to), len(sent_to))


def _natives(regions: Sequence[Region]) -> Any:
    return ffi.new("struct rway_region *[]", [region.native for region in regions])


def create_region(geometry: Geometry, link_id: int, huge: bool = False, carried: Carried | None = None) -> int:
    """Make a region and return its descriptor, which the caller owns. RegionError: GEOMETRY, NO_HUGE, SYSTEM.

    `carried`: the counts of the region that it replaces; what was in flight there counts as lost by a restart.
    """
    error = ffi.new("struct rway_error *")
    flags = lib.RWAY_CREATE_HUGE if huge else 0
    begin = ffi.NULL
    if carried is not None:
        geometry.shape()  # refuses a number of queues that no array can have
        begin = carried.native(geometry.queues)
    fd = int(lib.rway_region_create_from(geometry.native(), link_id, flags, begin, error))
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

    Nothing may use them after `detach`: Producer and Consumer objects refuse from then on, and whatever uses the memory
    without them, such as a thread in C, holds the region for as long.
    """

    def __init__(self, native: Any, geometry: Geometry) -> None:
        self._native = native
        self._let_go = threading.Condition()  # guards the three below; notified when somebody lets go
        self._holders: collections.Counter[str] = collections.Counter()
        self._leaving = False
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

    def peer(self) -> SideSnapshot:
        """What the other side says of itself."""
        side = ffi.new("struct rway_side *")
        lib.rway_region_peer(self.native, side)
        return _side_of(side)

    def serve(self, queues: int) -> None:
        """Tell the peer in which queues this side wants its frames: bit q for queue q; 0: in any.

        Senders that spread by flow follow, flow by flow; frames can still come in the others.
        """
        lib.rway_region_serve(self.native, queues)

    def forget_losses(self) -> None:
        """The forwarder that used this region has ended in an orderly way, or somebody else takes it over."""
        lib.rway_losses_forget(self.native)

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Keep the region mapped meanwhile: `detach` waits. `name` is for people. ValueError once it is being detached.

        For whoever uses `native` or the memory in a thread of its own; it lets go when that thread can touch neither.
        """
        with self._let_go:
            if self._native is None or self._leaving:
                raise ValueError("the region is detached")
            self._holders[name] += 1
        try:
            yield
        finally:
            with self._let_go:
                self._holders[name] -= 1
                if self._holders[name] == 0:
                    del self._holders[name]
                self._let_go.notify_all()

    def detach(self, timeout: float | None = None) -> None:
        """Wait until nobody holds the region, mark the side detached and unmap. Safe to call twice.

        RegionHeldError after `timeout` seconds (None: 10), with the names of what still does; the region stays as it
        was. Threads that use it without holding it must have ended.
        """
        timeout = _HELD_S if timeout is None else timeout
        with self._let_go:
            self._leaving = True
            try:
                if not self._let_go.wait_for(lambda: not self._holders, timeout):
                    raise RegionHeldError(sorted(self._holders), timeout)
                native, self._native = self._native, None
            finally:
                self._leaving = False
        if native is not None:
            lib.rway_region_detach(native)

    def leave_to_parent(self) -> None:
        """In a forked child, first of all: unmap it without a word to anybody. The parent's goes on."""
        self._let_go = threading.Condition()
        self._holders.clear()
        native, self._native = self._native, None
        if native is not None:
            lib.rway_region_leave_to_parent(native)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()
