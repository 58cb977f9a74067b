"""Huge pages, when the host has some: taken when asked for, and said plainly when there are none."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.shm import Geometry, RefusalCause, Region, RegionError, create_region, read_region
from tests.conftest import require

PAGES = Path("/proc/sys/vm/nr_hugepages")
FREE = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
GEOMETRY = Geometry(slot_count=64)
NEEDED = GEOMETRY.shape().region_size >> 21


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """As many as a small region needs; on CI's own machine they are made, and the setting is put back."""
    before = PAGES.read_text()
    free = int(FREE.read_text()) if FREE.exists() else 0
    if free < NEEDED:
        # A sysctl of the host, which no namespace covers: only where the whole machine is for the tests.
        if os.environ.get("RINGWAY_REQUIRE") is None:
            pytest.skip(f"there are {free} free huge pages, {NEEDED} are needed: set {PAGES}, or RINGWAY_REQUIRE=1")
        try:
            PAGES.write_text(str(int(before) + NEEDED - free))
        except OSError as error:
            require(False, f"there are {free} free huge pages, {NEEDED} are needed, and {PAGES} says {error.strerror}")
    require(int(FREE.read_text()) >= NEEDED, f"the host has not {NEEDED} huge pages to give")
    try:
        yield
    finally:
        if free < NEEDED:
            PAGES.write_text(before)


@pytest.mark.needs_root
def test_a_region_in_huge_pages_carries_frames(huge_pages: None) -> None:
    fd = create_region(GEOMETRY, 7, huge=True)
    assert os.fstat(fd).st_blksize == 2 << 20
    with Region.attach(fd, GEOMETRY, 7, 0) as a, Region.attach(fd, GEOMETRY, 7, 1) as b:
        frames = [bytes([number]) * 3000 for number in range(20)]
        assert a.producers[0].send(frames) == len(frames)
        assert b.consumers[0].receive() == frames
    assert all(ring.balanced for ring in read_region(fd).rings)
    os.close(fd)


def test_without_enough_huge_pages_a_region_is_refused_with_the_remedy() -> None:
    geometry = Geometry(queues=16, slot_count=32768)  # more than any host of ours sets aside
    with pytest.raises(RegionError, match=r"huge_pages = false") as refused:
        create_region(geometry, 7, huge=True)
    assert refused.value.cause is RefusalCause.NO_HUGE
