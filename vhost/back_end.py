"""What a session works on, in C: the guest's memory, and a job for each queue pair of a link."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from ringway.shm._native import ffi, lib
from ringway.vhost.protocol import MemoryRegion
from ringway.vhost.session import RefusedError, RingSetup

# By enum rway_vring_break; what `show` says of a ring.
BREAKS: Final = {
    lib.RWAY_VRING_AVAIL: "more was made available than the ring holds, or the index went back",
    lib.RWAY_VRING_HEAD: "an entry names no buffer",
    lib.RWAY_VRING_NEXT: "a chain goes on outside its table",
    lib.RWAY_VRING_CHAIN: "a chain is longer than the ring",
    lib.RWAY_VRING_INDIRECT: "a bad indirect table",
    lib.RWAY_VRING_WRAP: "a chain goes on in a descriptor that is not available",
    lib.RWAY_VRING_VANISHED: "memory was taken away",
}


class QueuePairs:
    """The BackEnd of sessions, one after the other. One thread; the loops of the jobs run meanwhile.

    It owns the guest's memory. The jobs are their loops', and `close` comes after those are closed.
    """

    def __init__(
        self, jobs: Sequence[Any], consumers: Sequence[Any], sealed: bool, serve: Callable[[int], None]
    ) -> None:
        """`jobs`: of lib.rway_pair_new, each with its consumer. `sealed`: what could be shortened under us is refused.

        `serve` is called with the pairs by which the guest takes frames, bit n for pair n, whenever that changes; 0: it
        takes none, and frames wait for it in all.
        """
        self._jobs = list(jobs)
        self._consumers = list(consumers)
        self._sealed = sealed
        self._serve = serve
        self._receiving = 0
        self._guest = self._new_guest()
        self._set(self._guest)

    @property
    def count(self) -> int:
        return len(self._jobs)

    def set_memory(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        fresh = self._new_guest()
        try:
            for region, fd in zip(regions, fds, strict=True):
                self._map(fresh, region, fd)
            with self._paused():
                if not all(lib.rway_pair_fits(job, fresh) for job in self._jobs):
                    raise RefusedError("a ring that runs would not lie in it")
                self._set(fresh)
        except BaseException:
            lib.rway_guest_free(fresh)
            raise
        before, self._guest = self._guest, fresh
        lib.rway_guest_free(before)

    def add_memory(self, region: MemoryRegion, fd: int) -> None:
        with self._paused():
            self._map(self._guest, region, fd)

    def remove_memory(self, region: MemoryRegion) -> None:
        native = ffi.new("struct rway_guest_region *", [region.guest, region.size, region.user, region.offset])
        with self._paused():
            if any(lib.rway_pair_uses(job, native) for job in self._jobs):
                raise RefusedError("a ring that runs lies in it")
            lib.rway_guest_remove(self._guest, native)

    def start(self, index: int, setup: RingSetup, kick_fd: int, call_fd: int, enabled: bool) -> None:
        job, ring = self._ring(index)
        native = ffi.new("struct rway_vring_setup *")
        native.desc, native.avail, native.used = setup.addresses.desc, setup.addresses.avail, setup.addresses.used
        native.features, native.size, native.base = setup.features, setup.size, setup.base
        error = ffi.new("struct rway_error *")
        with self._paused():
            if lib.rway_pair_start(job, ring, native, error) != 0:
                raise _refused(error)
            if lib.rway_pair_set_kick(job, ring, kick_fd) != 0:
                lib.rway_pair_stop(job, ring)
                raise RefusedError(f"its kick cannot be watched: {os.strerror(ffi.errno)}")
            lib.rway_pair_set_call(job, ring, call_fd)
            lib.rway_pair_enable(job, ring, enabled)
            self._receives(index, enabled)

    def stop(self, index: int) -> int:
        job, ring = self._ring(index)
        with self._paused():
            self._receives(index, False)
            return int(lib.rway_pair_stop(job, ring))

    def set_kick(self, index: int, kick_fd: int) -> None:
        job, ring = self._ring(index)
        with self._paused():
            if lib.rway_pair_set_kick(job, ring, kick_fd) != 0:
                raise RefusedError(f"its kick cannot be watched: {os.strerror(ffi.errno)}")

    def set_call(self, index: int, call_fd: int) -> None:
        job, ring = self._ring(index)
        with self._paused():
            lib.rway_pair_set_call(job, ring, call_fd)

    def enable(self, index: int, enabled: bool) -> None:
        job, ring = self._ring(index)
        with self._paused():
            lib.rway_pair_enable(job, ring, enabled)
            self._receives(index, enabled)

    def trouble_fds(self) -> list[int]:
        """Readable once a ring is broken; the jobs' own."""
        return [lib.rway_pair_trouble_fd(job) for job in self._jobs]

    def broken(self) -> dict[int, str]:
        """Why which rings are not served any more."""
        found = {}
        state = ffi.new("struct rway_pair_state *")
        for number, job in enumerate(self._jobs):
            lib.rway_pair_read(job, state)
            for ring in (lib.RWAY_VRING_RECEIVE, lib.RWAY_VRING_TRANSMIT):
                if state.broken[ring] != lib.RWAY_VRING_WHOLE:
                    found[2 * number + ring] = BREAKS[state.broken[ring]]
        return found

    def vanished(self) -> bool:
        return bool(lib.rway_guest_vanished(self._guest))

    def leave_to_parent(self) -> None:
        """In a forked child, where the jobs' loops do not run."""
        guest, self._guest = self._guest, None
        self._jobs.clear()
        if guest is not None:
            lib.rway_guest_leave_to_parent(guest)

    def close(self) -> None:
        """When the loops are closed, and the jobs with them. Safe to call twice."""
        guest, self._guest = self._guest, None
        self._jobs.clear()
        if guest is not None:
            lib.rway_guest_free(guest)

    def _receives(self, index: int, enabled: bool) -> None:
        """Frames go by the pairs that the guest uses, and those of other queues beside them. While it is paused."""
        pair, ring = divmod(index, 2)
        before = self._receiving
        if ring == lib.RWAY_VRING_RECEIVE:
            self._receiving = before | 1 << pair if enabled else before & ~(1 << pair)
        if self._receiving != before:
            self._share_out([number for number in range(self.count) if self._receiving >> number & 1])
            self._serve(self._receiving)

    def _share_out(self, receiving: Sequence[int]) -> None:
        """Each of the link's queues to a pair that receives; to its own where that does, or none."""
        sources: list[list[Any]] = [[] for _ in self._jobs]
        for queue, consumer in enumerate(self._consumers):
            own = queue in receiving or not receiving
            sources[queue if own else receiving[queue % len(receiving)]].append(consumer)
        for job, consumers in zip(self._jobs, sources, strict=True):
            lib.rway_pair_set_sources(job, ffi.new("struct rway_consumer *[]", consumers), len(consumers))

    def _ring(self, index: int) -> tuple[Any, int]:
        return self._jobs[index // 2], index % 2

    def _set(self, guest: Any) -> None:
        for job in self._jobs:
            lib.rway_pair_set_guest(job, guest)

    def _new_guest(self) -> Any:
        guest = lib.rway_guest_new()
        if guest == ffi.NULL:
            raise MemoryError("no memory for a guest's regions")
        return guest

    def _map(self, guest: Any, region: MemoryRegion, fd: int) -> None:
        native = ffi.new("struct rway_guest_region *", [region.guest, region.size, region.user, region.offset])
        error = ffi.new("struct rway_error *")
        if lib.rway_guest_add(guest, fd, native, self._sealed, error) != 0:
            raise _refused(error)

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        for job in self._jobs:
            lib.rway_pair_pause(job)
        try:
            yield
        finally:
            for job in self._jobs:
                lib.rway_pair_resume(job)


def _refused(error: Any) -> RefusedError:
    what = ffi.string(error.what).decode("ascii", "replace")
    if error.cause == lib.RWAY_REFUSED_SYSTEM:
        return RefusedError(f"{what}: {os.strerror(error.sys_errno)}")
    return RefusedError(f"{what}: {error.found:#x}, expected {error.expected:#x}")
