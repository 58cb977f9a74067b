"""Huge pages for DPDK: reserved if root may, said aloud, and given back at the end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.form import BenchError
from bench.machine import huge_pages

_COUNT = Path("/proc/sys/vm/nr_hugepages")


@contextlib.contextmanager
def reserved(pages: int) -> Iterator[None]:
    """So many free ones of 2 MiB. BenchError when there are not, and cannot be."""
    total, free = huge_pages()
    if free >= pages:
        yield
        return
    wanted = total + pages - free
    remedy = f"as root: echo {wanted} > {_COUNT}"
    try:
        _COUNT.write_text(str(wanted), encoding="ascii")
    except OSError as error:
        missing = f"DPDK needs {pages} free huge pages and there are {free}"
        raise BenchError(f"{missing} ({error.strerror}); {remedy}") from None
    print(f"bench: {_COUNT} set from {total} to {wanted} for DPDK, and set back at the end", file=sys.stderr)
    try:
        found = huge_pages()[1]
        if found < pages:
            raise BenchError(f"the kernel found memory for only {found} huge pages of {pages}: free some memory")
        yield
    finally:
        _COUNT.write_text(str(total), encoding="ascii")
