"""Boards: a few counters in shared memory that a worker writes and the bench reads at any moment."""

from __future__ import annotations

import mmap
import os
from typing import Any

from bench.native import ffi


class Board:
    """One `struct bench_board` in a memfd; `fd` goes to the worker."""

    def __init__(self, fd: int | None = None) -> None:
        size = ffi.sizeof("struct bench_board")
        if fd is None:
            fd = os.memfd_create("bench board", 0)
            os.truncate(fd, size)
        self.fd = fd
        self._memory = mmap.mmap(fd, size)
        self.native: Any = ffi.cast("struct bench_board *", ffi.from_buffer(self._memory))
