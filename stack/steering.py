"""Sending over several queues from Python: each flow's frames go into one of those that the peer wants."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from ringway.shm import BreakCause, Frame, Region, RegionBrokenError
from ringway.shm._native import ffi, lib
from ringway.shm.frame import packed


class Steering:
    """Chooses the queue for each frame by its flow, and follows the peer's wishes. One thread at a time.

    While it is used, nobody else may send into these queues: what others send is in no order with it.
    """

    def __init__(self, region: Region, owned: int | None = None) -> None:
        """`owned`: the queues it may use, bit q for queue q; all of the link when it is None."""
        self._region = region
        every = (1 << region.geometry.queues) - 1
        native = lib.rway_steering_new(region.native, every if owned is None else owned)
        if native == ffi.NULL:
            raise MemoryError("no memory for a steering, or no queue for it")
        self.native = ffi.gc(native, lib.rway_steering_free)

    def hold(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Keep the region mapped whose queues it chooses among: Region.hold."""
        return self._region.hold(name)

    def send(self, frames: Sequence[bytes | Frame]) -> tuple[int, int | None]:
        """Copy frames into the rings and publish them, up to the first that has to wait.

        Returns how many were dealt with, and the queue that is full when not all were. Frames of a length that the link
        never carries are dropped and counted (runt, oversize), like those whose offload data does not fit.
        RegionBrokenError when the link is broken.
        """
        bytes_, lens, offloads = packed(frames)
        stopped_by = ffi.new("uint32_t *")
        with self.hold("a steering"):
            self._check()
            done = int(lib.rway_steering_copy_in(self.native, bytes_, lens, offloads, len(frames), stopped_by))
            self._check()
        return done, None if done == len(frames) else int(stopped_by[0])

    def _check(self) -> None:
        cause = self._region.broken
        if cause is not BreakCause.WHOLE:
            raise RegionBrokenError(cause)
