"""A C loop from Python: a thread that moves frames, set up here and then left alone."""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

from ringway.shm import Consumer, Producer, Region
from ringway.shm._native import ffi, lib
from ringway.stack.spread import Spread


class Holdable(Protocol):
    """What a job uses of a region: the region itself, a half of a queue, a spread."""

    def hold(self, name: str) -> contextlib.AbstractContextManager[None]: ...


class Loop:
    """Add jobs and start. The regions that it uses stay mapped until it is closed. No GIL while it runs."""

    def __init__(self, name: str, spin_us: int) -> None:
        self.name = name
        self._native = lib.rway_loop_new(spin_us)
        if self._native == ffi.NULL:
            raise MemoryError("no memory or descriptors for a loop")
        self._kept: list[object] = []  # what C points to
        self._held = contextlib.ExitStack()

    def _hold(self, used: Holdable) -> None:
        """Before C gets to know it: what cannot be held is about to go."""
        self._held.enter_context(used.hold(f"loop {self.name}"))
        self._kept.append(used)

    def add(self, job: Any, *uses: Holdable) -> None:
        """Run `job` (a `struct rway_job *`, owned by the loop from here on), which uses these objects."""
        for used in uses:
            self._hold(used)
        if job == ffi.NULL or lib.rway_loop_add(self._native, job) != 0:
            raise MemoryError("no memory, or no room, for a job")

    def forward(self, source: Consumer, target: Producer, in_port: int, out_port: int, patience_us: int) -> None:
        """Forward frames past the loop's filter, as coming in by port number `in_port` and leaving by `out_port`.

        Frames wait for room in `target` until its consumer has not moved for `patience_us`; 0: they are dropped.
        """
        self.add(lib.rway_forward_new(source.native, target.native, in_port, out_port, patience_us), source, target)

    def forward_spread(self, source: Consumer, target: Spread, in_port: int, out_port: int) -> None:
        """The same into several queues, each flow into its own; jobs of this loop may share the spread."""
        self.add(lib.rway_forward_spread_new(source.native, target.native, in_port, out_port), source, target)

    def judge_by(self, native_filter: Any) -> None:
        if lib.rway_loop_filter(self._native, native_filter) != 0:
            raise RuntimeError("all reader places of the filter are taken")

    def watch(self, region: Region, queue: int) -> None:
        """Publish this loop's progress as that of the region's queue."""
        self._hold(region)
        if lib.rway_loop_watch(self._native, region.native, queue) != 0:
            raise RuntimeError(f"loop {self.name} serves more queues than it can show progress for")

    def start(self) -> None:
        if lib.rway_loop_start(self._native) != 0:
            raise RuntimeError(f"the thread of loop {self.name} could not be started")

    def counts(self) -> dict[str, int]:
        counts = ffi.new("struct rway_loop_counts *")
        if self._native is not None:
            lib.rway_loop_read(self._native, counts)
        return {"iterations": counts.iterations, "sleeps": counts.sleeps, "frames": counts.frames}

    def close(self) -> None:
        """Stop the thread, wait for it, and free the loop. Safe to call twice."""
        native, self._native = self._native, None
        if native is not None:
            lib.rway_loop_free(native)
        self._held.close()
        self._kept.clear()
