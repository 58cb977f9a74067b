"""What a process, and all of them together, have of the system: descriptors, threads, memory, names."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

RSS_GROWTH = 16 << 20  # bytes: allocators keep some, and buffers are made when they are first used


@dataclass(frozen=True)
class Possessions:
    descriptors: int
    threads: int
    rss: int  # bytes

    def more_than(self, base: Possessions) -> str:
        """What there is too much or too little of; empty when it is as it was."""
        found = []
        if self.descriptors != base.descriptors:
            found.append(f"{self.descriptors} descriptors instead of {base.descriptors}")
        if self.threads != base.threads:
            found.append(f"{self.threads} threads instead of {base.threads}")
        if self.rss > base.rss + RSS_GROWTH:
            found.append(f"{self.rss >> 20} MiB instead of {base.rss >> 20}")
        return ", ".join(found)


def possessions(pid: int) -> Possessions:
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Possessions(
        descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        threads=int(status["Threads"]),
        rss=int(status["RssAnon"].split()[0]) << 10,
    )


def is_stopped(pid: int) -> bool:
    """All its threads, by a signal."""
    states = (path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat"))
    return all(state == "T" for state in states)


def keeper_pid(runtime: Path) -> int | None:
    """The process of the keeper there, if one runs; found from outside, because it serves one client, its broker."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "comm").read_text() == "ringway-keeper\n":
                words = (process / "cmdline").read_bytes().split(b"\0")
                if str(runtime).encode() in words and state(int(process.name)) != "Z":
                    return int(process.name)
    return None


def await_idle(pid: int) -> None:
    """Returns when a process of one thread sleeps: it has dealt with all that had been sent to it before."""
    while state(pid) not in "ST":
        os.sched_yield()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def descriptors(pid: int) -> list[str]:
    """What they are, for whoever has to find out which one is left over."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(f"{entry.name} {entry.readlink()}")
        except FileNotFoundError:
            continue
    return sorted(found)


def entries_of(runtime: Path) -> list[str]:
    """What brokers that ran in that directory left in /dev/shm; of another's that is just leaving, nobody is told."""
    found = []
    for path in Path("/dev/shm").glob("ringway-*"):
        with contextlib.suppress(OSError):
            if str(runtime).encode() in path.read_bytes():
                found.append(path.name)
    return found
