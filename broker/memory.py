"""How much memory new links can have here: what the host has left, and what this process's control groups leave of it.

A link's memory is allocated and zeroed at once. Without a look before, a fabric that is too large would be found out by
the kernel's OOM killer, which takes the broker first, or a VM.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Final

from ringway.broker.config.tables import MIB

RESERVE_SHARE: Final = 16  # one part in so many of what there is in all is kept back, for everything else that grows
RESERVE_MIN, RESERVE_MAX = 16 * MIB, 1024 * MIB
HUGE_POOL: Final = "sys/kernel/mm/hugepages/hugepages-2048kB"
UNLIMITED: Final = 1 << 62  # version 1 says so with a number, rounded to pages


@dataclass(frozen=True)
class Available:
    """The least that anything leaves for new memory, after a reserve."""

    bytes: int
    reserve: int
    bound: str  # what leaves no more, with the sizes that it has
    remedy: str

    def __str__(self) -> str:
        kept_back = f"{self.reserve / MIB:.1f} MiB are kept back"
        return f"{self.bytes / MIB:.1f} MiB can be had now: {self.bound}, and {kept_back}"


@dataclass(frozen=True)
class Group:
    """How a version of control groups writes its limits down."""

    limits: tuple[str, ...]
    used: str
    reclaimable: tuple[str, ...]  # of memory.stat: the page cache, without shared memory


GROUPS: Final[Mapping[str, Group]] = {
    "cgroup2": Group(("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file")),
    "cgroup": Group(("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
}


def available(root: Path = Path("/")) -> Available | None:
    """None where nothing says how much there is."""
    found = [*_host(root), *_groups(root)]
    return min(found, key=lambda one: one.bytes, default=None)


def huge_available(root: Path = Path("/")) -> int:
    """Bytes of huge pages of 2 MiB that are free and promised to nobody."""
    free, promised = (_number(root / HUGE_POOL / name) or 0 for name in ("free_hugepages", "resv_hugepages"))
    return max(free - promised, 0) * 2 * MIB


def _host(root: Path) -> Iterator[Available]:
    sizes = _table(root / "proc/meminfo")
    total, left = sizes.get("MemTotal:"), sizes.get("MemAvailable:")
    if total is not None and left is not None:
        bound = f"the host has {left / 1024:.1f} MiB available of {total / 1024:.1f}"
        yield _after_reserve(total * 1024, left * 1024, bound, "free memory on the host")


def _groups(root: Path) -> Iterator[Available]:
    """Every limit that counts for this process: its control group's own, and those of all above it."""
    for kind, directory, top in _group_directories(root):
        group = GROUPS[kind]
        above = takewhile(top.parent.__ne__, directory.parents)
        for place in (directory, *above):
            for name in group.limits:
                yield from _limit(place, group, name)


def _limit(directory: Path, group: Group, name: str) -> Iterator[Available]:
    limit, used = _number(directory / name), _number(directory / group.used)
    if limit is None or used is None or limit >= UNLIMITED:
        return
    stat = _table(directory / "memory.stat")
    used -= min(used, sum(stat.get(key, 0) for key in group.reclaimable))
    bound = f"{directory / name} is {limit / MIB:.1f} MiB, of which {used / MIB:.1f} are in use"
    yield _after_reserve(limit, max(limit - used, 0), bound, "raise that limit (MemoryMax= of the broker's unit)")


def _after_reserve(total: int, left: int, bound: str, remedy: str) -> Available:
    reserve = min(max(total // RESERVE_SHARE, RESERVE_MIN), RESERVE_MAX)
    return Available(max(left - reserve, 0), reserve, bound, remedy)


def _group_directories(root: Path) -> Iterator[tuple[str, Path, Path]]:
    """Kind, this process's directory, and the topmost one that is seen from here; for each hierarchy with memory."""
    paths = dict(_own_paths(root))
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, (kind, *rest) = before.split(" "), after.split(" ")
        if kind not in paths or (kind == "cgroup" and "memory" not in rest[-1].split(",")):
            continue
        top = root / fields[4].lstrip("/")
        path, mounted = Path(paths[kind]), Path(fields[3])
        inside = path.relative_to(mounted) if path.is_relative_to(mounted) else Path()
        # A container sees only its own part; what a path says of the rest leads nowhere here.
        directory = top / inside
        yield kind, directory if ".." not in inside.parts and directory.is_dir() else top, top


def _own_paths(root: Path) -> Iterator[tuple[str, str]]:
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            yield "cgroup2", path
        elif "memory" in controllers.split(","):
            yield "cgroup", path


def _table(path: Path) -> dict[str, int]:
    """The first number after each word that begins a line."""
    rows = [line.split() for line in _lines(path)]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _number(path: Path) -> int | None:
    """None for "max", and for a file that is not there."""
    words = " ".join(_lines(path)).split()
    return int(words[0]) if words and words[0].isdigit() else None


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text().splitlines()
    return []
