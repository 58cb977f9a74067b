"""A contestant of the race: the processes of a way from end to end, stopped and continued together."""

from __future__ import annotations

import mmap
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from namespaces import start

from bench.form import BenchError, Snapshot, go_on, stop

_ROOT = Path(__file__).resolve().parents[2]
_BOOKS = ("sent", "delivered", "bytes", "lost", "reordered", "duplicated", "damaged")  # as in race.h
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_DRAIN_S = 0.05  # at most, for what is under way when the sender is stopped


class End:
    """A process that sends or takes, and the books it keeps in memory that is shared with it."""

    def __init__(self, kind: str, place: str, namespace: str | None) -> None:
        self._what = f"{kind} at {place}"
        fd = os.memfd_create("books", 0)
        os.ftruncate(fd, mmap.PAGESIZE)
        self._books = memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("Q")
        command = (sys.executable, "-m", "bench.race.end", kind, place, str(fd))
        self._process = start(*command, namespace=namespace, folder=_ROOT, keep_fds=[fd])
        self.pid = self._process.pid
        os.close(fd)

    def await_ready(self) -> None:
        assert self._process.stdout is not None
        if (said := self._process.stdout.readline()) != "ready\n":
            raise BenchError(f"{self._what} did not start: {said}{self._process.stdout.read()}")

    def books(self) -> dict[str, int]:
        return dict(zip(_BOOKS, self._books, strict=False))

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def check(self) -> None:
        """BenchError when it has ended, or got something that nobody sent."""
        if self._process.poll() is not None:
            assert self._process.stdout is not None
            raise BenchError(f"{self._what} ended: {self._process.stdout.read()}")
        if damaged := self.books()["damaged"]:
            raise BenchError(f"{self._what} got {damaged} damaged datagrams: the chain or the bench is wrong")


class Racer:
    """`carriers`: the agents between and beside the ends, by process id. `counts`: which of the books is raced for."""

    def __init__(self, name: str, sender: End, sink: End, carriers: Sequence[int] = (), counts: str = "delivered"):
        self.name = name
        self.sender, self.sink = sender, sink
        self._carriers = carriers
        self._counts = counts

    def resume(self) -> None:
        go_on(*self._carriers, self.sink.pid, self.sender.pid)

    def pause(self) -> None:
        """The sender first: what is under way arrives, and is not lost to a time-out of TCP or a full queue."""
        stop(self.sender.pid)
        deadline = time.monotonic() + _DRAIN_S
        before = None
        while (now := self.sink.books()) != before and time.monotonic() < deadline:
            before = now
            time.sleep(0.002)
        stop(self.sink.pid, *self._carriers)

    def read(self) -> Snapshot:
        self.sender.check()
        self.sink.check()
        books = self.sink.books()
        return Snapshot(time.monotonic_ns(), books[self._counts], books["lost"], machine_busy_ns())


def machine_busy_ns() -> int:
    """CPU time of all cores since boot, all but idle: what routers and taps do in soft interrupts is no process's."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) * _TICK_NS


def pin(pid: int, cpu: int) -> None:
    """All threads of a process onto one core."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {cpu})
