"""A C loop from Python: a thread that moves frames, set up here and then left alone."""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

from ringway.shm._native import ffi, lib


class Holdable(Protocol):
    """What a job uses of a region: the region itself, a half of a queue, a steering."""

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

    def use(self, used: Holdable) -> None:
        """Keep it mapped until the loop is closed. Before C gets to know it: what cannot be held is about to go."""
        self._held.enter_context(used.hold(f"loop {self.name}"))
        self._kept.append(used)

    def add(self, job: Any, *uses: Holdable) -> Any:
        """Run `job` (a `struct rway_job *`, owned by the loop from here on), which uses these objects. Returns it."""
        for used in uses:
            self.use(used)
        if job == ffi.NULL or lib.rway_loop_add(self._native, job) != 0:
            raise MemoryError("no memory, or no room, for a job")
        return job

    def hook(self, hook: Any, *uses: Holdable) -> None:
        """Call `hook` (a `struct rway_hook *`, owned by the loop from here on) at each turn and rest."""
        for used in uses:
            self.use(used)
        if hook == ffi.NULL or lib.rway_loop_hook(self._native, hook) != 0:
            raise MemoryError("no memory, or no room, for a hook")

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
