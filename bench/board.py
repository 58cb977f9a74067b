"""Boards: counters and samples in shared memory that a worker writes and the bench reads at any moment."""

from __future__ import annotations

import mmap
import os
from typing import Any

from bench.native import ffi


class _Shared:
    """A struct in a memfd; `fd` goes to the worker."""

    STRUCT: str

    def __init__(self, fd: int | None = None) -> None:
        size = ffi.sizeof(self.STRUCT)
        if fd is None:
            fd = os.memfd_create(self.STRUCT, 0)
            os.truncate(fd, size)
        self.fd = fd
        self._memory = ffi.from_buffer(mmap.mmap(fd, size))  # mapped for as long as this object is there
        self.native: Any = ffi.cast(f"{self.STRUCT} *", self._memory)


class Board(_Shared):
    STRUCT = "struct bench_board"


class Samples(_Shared):
    STRUCT = "struct bench_samples"

    def between(self, first: int, last: int) -> list[int]:
        """Round trips number first to last, in ns; the newest of them, if they are more than there is room for."""
        room = len(self.native.ns)
        return [self.native.ns[number % room] for number in range(max(first, last - room), last)]
