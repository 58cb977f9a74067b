"""One contestant of the race: the processes of a way from end to end, stopped and continued together."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from namespaces import start

from bench.race import ROOT

_BOOKS = ("sent", "delivered", "bytes", "lost", "reordered", "duplicated", "damaged")  # as in race.h
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_DRAIN_S = 0.05  # at most, for what is under way when the sender is stopped


class End:
    """A process that sends or takes, and the books it keeps. Started when it has said so."""

    def __init__(self, kind: str, place: str, namespace: str) -> None:
        fd = os.memfd_create("books", 0)
        os.ftruncate(fd, mmap.PAGESIZE)
        self._books = memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("Q")
        command = (sys.executable, "-m", "bench.race.end", kind, place, str(fd))
        self.process = start(*command, namespace=namespace, keep_fds=[fd], folder=ROOT)
        os.close(fd)
        assert self.process.stdout is not None
        if (said := self.process.stdout.readline()) != "ready\n":
            raise RuntimeError(f"{kind} at {place} did not start: {said}{self.process.stdout.read()}")

    def books(self) -> dict[str, int]:
        return dict(zip(_BOOKS, self._books, strict=False))

    def check_alive(self) -> None:
        if self.process.poll() is not None:
            assert self.process.stdout is not None
            raise RuntimeError(f"an end of the race ended: {self.process.stdout.read()}")


def machine_busy_ns() -> int:
    """CPU time of all cores since boot, all but idle: what routers and taps do in soft interrupts is no process's."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) * _TICK_NS


class Racer:
    """`carriers`: the agents between and beside the ends, by process id."""

    def __init__(self, name: str, sender: End, sink: End, carriers: Sequence[int] = ()) -> None:
        self.name = name
        self._sender, self._sink, self._carriers = sender, sink, carriers

    def resume(self) -> None:
        for pid in (*self._carriers, self._sink.process.pid, self._sender.process.pid):
            os.kill(pid, signal.SIGCONT)

    def pause(self) -> None:
        """The sender first: what is under way arrives, and is not lost to a time-out of TCP or a full queue."""
        os.kill(self._sender.process.pid, signal.SIGSTOP)
        deadline = time.monotonic() + _DRAIN_S
        before = None
        while (now := self._sink.books()) != before and time.monotonic() < deadline:
            before = now
            time.sleep(0.002)
        for pid in (self._sink.process.pid, *self._carriers):
            os.kill(pid, signal.SIGSTOP)
