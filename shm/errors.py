"""What can go wrong with a region, by name; the names follow the C enumerations."""

from __future__ import annotations

import enum
import os
from collections.abc import Sequence
from typing import Any

from ringway.shm._native import ffi, lib


class RefusalCause(enum.IntEnum):
    """Why a region was not created, attached or read."""

    SYSTEM = lib.RWAY_REFUSED_SYSTEM
    SIZE = lib.RWAY_REFUSED_SIZE
    MAGIC = lib.RWAY_REFUSED_MAGIC
    VERSION = lib.RWAY_REFUSED_VERSION
    FEATURE = lib.RWAY_REFUSED_FEATURE
    GEOMETRY = lib.RWAY_REFUSED_GEOMETRY
    LINK = lib.RWAY_REFUSED_LINK
    SECTION = lib.RWAY_REFUSED_SECTION
    COUNTERS = lib.RWAY_REFUSED_COUNTERS
    ARGUMENT = lib.RWAY_REFUSED_ARGUMENT
    NO_HUGE = lib.RWAY_REFUSED_NO_HUGE


class BreakCause(enum.IntEnum):
    """Why the rings of an attached region are no longer used."""

    WHOLE = lib.RWAY_WHOLE
    HEAD = lib.RWAY_BROKEN_HEAD
    TAIL = lib.RWAY_BROKEN_TAIL
    KIND = lib.RWAY_BROKEN_KIND
    FLAGS = lib.RWAY_BROKEN_FLAGS
    LENGTH = lib.RWAY_BROKEN_LENGTH
    SLOTS = lib.RWAY_BROKEN_SLOTS
    INCOMPLETE = lib.RWAY_BROKEN_INCOMPLETE
    PUSHED = lib.RWAY_BROKEN_PUSHED
    VANISHED = lib.RWAY_BROKEN_VANISHED


class DropCause(enum.IntEnum):
    """Why a frame went no further."""

    FULL = lib.RWAY_DROP_FULL
    OVERSIZE = lib.RWAY_DROP_OVERSIZE
    RUNT = lib.RWAY_DROP_RUNT
    OFFLOAD = lib.RWAY_DROP_OFFLOAD
    POLICY = lib.RWAY_DROP_POLICY
    MALFORMED = lib.RWAY_DROP_MALFORMED
    SINK = lib.RWAY_DROP_SINK
    DOWN = lib.RWAY_DROP_DOWN
    RESTART = lib.RWAY_DROP_RESTART
    CONNECTIONS = lib.RWAY_DROP_CONNECTIONS


_REMEDIES = {
    RefusalCause.SIZE: "the memory is not the one the broker made; ask the broker for a fresh offer",
    RefusalCause.MAGIC: "this is not a ringway region, or its making was interrupted; ask the broker for a fresh offer",
    RefusalCause.VERSION: "use the same release of ringway at both ends",
    RefusalCause.FEATURE: "this end is older than the region; update ringway here",
    RefusalCause.GEOMETRY: "the memory is not the one that was offered; ask the broker for a fresh offer",
    RefusalCause.LINK: "the descriptor belongs to another link; ask the broker for a fresh offer",
    RefusalCause.SECTION: "the section table is damaged; apply the fabric again, which replaces the link",
    RefusalCause.COUNTERS: "the rings cannot be continued; apply the fabric again, which replaces the link",
    RefusalCause.ARGUMENT: "the caller passed what the function does not take; shm/api.h says what it does",
    RefusalCause.NO_HUGE: "free huge pages (/proc/sys/vm/nr_hugepages), or set huge_pages = false",
}


class RegionError(Exception):
    """A region was refused. `cause` says why, `what` which field or call, `found` and `expected` the values."""

    def __init__(
        self,
        cause: RefusalCause,
        what: str,
        found: int = 0,
        expected: int = 0,
        errno: int = 0,
        allowed: str | None = None,
    ) -> None:
        """`allowed`: the values that are, in words, where there is more than one."""
        self.cause = cause
        self.allowed = allowed
        self.what = what
        self.found = found
        self.expected = expected
        self.errno = errno
        if cause is RefusalCause.SYSTEM:
            detail = f"{what}: {os.strerror(errno)}"
        elif cause is RefusalCause.MAGIC or "features" in what:
            detail = f"{what} is {found:#x}, expected {expected:#x}"
        elif allowed:
            detail = f"{what} is {found}"
        else:
            detail = f"{what} is {found}, expected {expected}"
        remedy = f"use {allowed}" if allowed else _REMEDIES.get(cause)
        super().__init__(f"{detail}; {remedy}" if remedy else detail)


class RegionHeldError(Exception):
    """A region was not detached, because somebody still uses it: `holders` names them."""

    def __init__(self, holders: Sequence[str], timeout: float) -> None:
        self.holders = tuple(holders)
        names = ", ".join(self.holders)
        super().__init__(f"the region is still used by {names} after {timeout:g} seconds: stop that first, then detach")


class RegionBrokenError(Exception):
    """The other end (or the host) did something that its link cannot survive; the link carries nothing more."""

    def __init__(self, cause: BreakCause) -> None:
        self.cause = cause
        super().__init__(f"the link is broken ({cause.name.lower()}): apply the fabric again, which replaces it")


def error_of(error: Any) -> RegionError:
    """Turn a filled `struct rway_error` into the exception it stands for."""
    what = ffi.string(error.what).decode("ascii", "replace")
    return RegionError(RefusalCause(error.cause), what, error.found, error.expected, error.sys_errno)
