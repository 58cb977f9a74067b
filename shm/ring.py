"""The two halves of a queue from Python: frames go in and come out in bursts, copied by C with the GIL released."""

from __future__ import annotations

import abc
import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from ringway.shm._native import ffi, lib
from ringway.shm.errors import BreakCause, DropCause, RegionBrokenError
from ringway.shm.frame import Frame, offload_from, packed

if TYPE_CHECKING:
    from ringway.shm.region import Region

_WAIT_STEP_US = 100_000  # how long a signal handler of Python may have to wait


class _Half(abc.ABC):
    """What producer and consumer share: the C object while the region is attached, and the one way to sleep."""

    def __init__(self, region: Region, native: Any) -> None:
        self._region = region
        self._native = native
        self._waiter = ffi.gc(lib.rway_waiter_new(), lib.rway_waiter_free)

    @property
    def native(self) -> Any:
        if not self._region.attached:
            raise ValueError("the region is detached")
        return self._native

    def hold(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Keep the region mapped that this half belongs to: Region.hold."""
        return self._region.hold(name)

    def _check_whole(self) -> None:
        cause = lib.rway_region_broken(self._region.native)
        if cause != 0:
            raise RegionBrokenError(BreakCause(cause))

    @abc.abstractmethod
    def _add_to_waiter(self) -> None:
        """Say to the waiter what this half waits for."""

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until there is something to do here; False after `timeout` seconds. RegionBrokenError ends it too."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._check_whole()
            lib.rway_waiter_reset(self._waiter)
            self._add_to_waiter()
            left = _WAIT_STEP_US
            if deadline is not None:
                left = max(0, min(left, int((deadline - time.monotonic()) * 1e6)))
            if lib.rway_waiter_wait(self._waiter, left):
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False


class Producer(_Half):
    """The sending half of a queue. One thread at a time."""

    def __init__(self, region: Region, native: Any) -> None:
        super().__init__(region, native)
        self._one_len = ffi.new("uint32_t[1]")

    def _add_to_waiter(self) -> None:
        lib.rway_waiter_add_producer(self._waiter, self.native, 1)

    def send(self, frames: Sequence[bytes | Frame]) -> int:
        """Copy frames into the ring and publish them; returns how many were dealt with before the ring was full.

        Frames of a length that the link never carries are dropped and counted (runt, oversize), not raised; so are
        those whose offload data does not fit them (offload).
        """
        count = len(frames)
        if count == 1 and type(frames[0]) is bytes:  # as it is: what answers a request is mostly one frame
            self._one_len[0] = len(frames[0])
            done = lib.rway_frames_copy_in(self.native, frames[0], self._one_len, 1)
        else:
            done = lib.rway_frames_copy_in_whole(self.native, *packed(frames), count)
        if done != count:
            self._check_whole()
        return int(done)

    def drop(self, cause: DropCause, frames: int) -> None:
        """Count frames that were meant for this ring and that the caller gives up."""
        lib.rway_producer_drop(self.native, cause, frames)
        lib.rway_ring_publish(self.native, ffi.NULL, 0)  # shows the count, also when nothing follows


class Consumer(_Half):
    """The receiving half of a queue. One thread at a time."""

    def __init__(self, region: Region, native: Any) -> None:
        super().__init__(region, native)
        self._lens = ffi.new("uint32_t[]", 256)
        self._offloads: Any = None  # made when the first frames are asked for whole
        self._memory = bytearray()
        self._buffer: Any = None  # the same, as C takes it; made at the first call, because it is large

    def _add_to_waiter(self) -> None:
        lib.rway_waiter_add_consumer(self._waiter, self.native)

    @overload
    def receive(self, count: int = 256, *, whole: Literal[False] = False) -> list[bytes]: ...
    @overload
    def receive(self, count: int = 256, *, whole: Literal[True]) -> list[Frame]: ...
    @overload
    def receive(self, count: int = 256, *, whole: bool) -> list[bytes] | list[Frame]: ...
    def receive(self, count: int = 256, *, whole: bool = False) -> list[bytes] | list[Frame]:
        """Take up to `count` frames that are there now; an empty list when there are none.

        They are as a wire would have carried them: cut into segments, which count one by one, checksums finished.
        Segments beyond `count` are kept for the next call. `whole`: as they are in the ring, with what is left to do.
        RegionBrokenError once the link is broken and nothing more can come.
        """
        got = self._copy_out(count, whole)
        if got == 0:
            self._check_whole()
            return []
        frames, at = [], 0
        view = memoryview(self._memory)
        for length in ffi.unpack(self._lens, got):
            frames.append(bytes(view[at : at + length]))
            at += length
        if not whole:
            return frames
        return [Frame(data, offload_from(self._offloads[number])) for number, data in enumerate(frames)]

    def _copy_out(self, count: int, whole: bool) -> int:
        if count > len(self._lens):
            self._lens = ffi.new("uint32_t[]", count)
        if self._buffer is None:
            # Behind the longest frame there is room for a VLAN tag that is put back.
            self._memory = bytearray(max(1 << 18, self._region.shape.frame_max + 4))
            self._buffer = ffi.from_buffer(self._memory)
        if not whole:
            return int(lib.rway_frames_copy_out(self.native, self._buffer, len(self._memory), self._lens, count))
        if self._offloads is None or count > len(self._offloads):
            self._offloads = ffi.new("struct rway_offload[]", len(self._lens))
        return int(
            lib.rway_frames_copy_out_whole(
                self.native, self._buffer, len(self._memory), self._lens, self._offloads, count
            )
        )


class Consumers(_Half):
    """The receiving halves of all queues of a link, as one. One thread at a time, and nobody else on any of them."""

    def __init__(self, region: Region, consumers: Sequence[Consumer]) -> None:
        super().__init__(region, None)
        self._consumers = list(consumers)
        self._next = 0  # so that no queue is always the last

    def _add_to_waiter(self) -> None:
        for consumer in self._consumers:
            lib.rway_waiter_add_consumer(self._waiter, consumer.native)

    @overload
    def receive(self, count: int = 256, *, whole: Literal[False] = False) -> list[bytes]: ...
    @overload
    def receive(self, count: int = 256, *, whole: Literal[True]) -> list[Frame]: ...
    @overload
    def receive(self, count: int = 256, *, whole: bool) -> list[bytes] | list[Frame]: ...
    def receive(self, count: int = 256, *, whole: bool = False) -> list[bytes] | list[Frame]:
        """As `Consumer.receive`, from each queue in turn; an empty list when there are no frames.

        The frames of a flow come in the order in which a sender that steers by flow has sent them.
        RegionBrokenError once the link is broken and nothing more can come.
        """
        frames: list[Any] = []
        first, self._next = self._next, (self._next + 1) % len(self._consumers)
        for number in [*range(first, len(self._consumers)), *range(first)]:
            if len(frames) == count:
                break
            consumer = self._consumers[number]
            try:
                frames += consumer.receive(count - len(frames), whole=whole)
            except RegionBrokenError:
                if not frames:
                    raise
                break  # what has been taken is the caller's; the next call finds the same
            if lib.rway_segments_wait(consumer.native):
                self._next = number  # first of all: later frames of that flow may be in another queue by now
                break
        return frames
