"""What is not the memory that the broker made is refused; what it made stays as it is."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from ringway.shm import RefusalCause, Region, RegionError, read_region
from tests.support.carrier import LINK, SMALL, carrier, left_behind
from tests.support.refusals import check_message, refused

MEMORY = SMALL.shape().memory
REGION = SMALL.shape().region_size


@pytest.mark.parametrize("left", [0, 1, 4095, 4096, 8192, 12288, MEMORY, REGION - 1])
def test_a_carrier_that_is_too_short_is_refused(left: int) -> None:
    with carrier() as made:
        short = os.memfd_create("short")
        try:
            os.pwrite(short, os.pread(made.fd, min(left, 12288), 0), 0)
            os.ftruncate(short, left)
            error = refused(lambda: Region.attach(short, SMALL, LINK, 0))
            check_message(error, RefusalCause.SIZE, "size of the carrier", left)
            assert refused(lambda: read_region(short)).cause is RefusalCause.SIZE
        finally:
            os.close(short)


def test_a_carrier_that_is_longer_than_the_region_is_accepted_and_not_mapped_whole() -> None:
    with carrier() as made:
        longer = os.memfd_create("longer")
        try:
            os.pwrite(longer, os.pread(made.fd, 12288, 0), 0)
            os.ftruncate(longer, 2**40)
            with Region.attach(longer, SMALL, LINK, 0):
                (line,) = [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:longer" in line]
                start, _, end = line.split()[0].partition("-")
                assert int(end, 16) - int(start, 16) == REGION
        finally:
            os.close(longer)


def test_a_section_of_a_later_release_may_lie_behind_the_rings() -> None:
    with carrier() as made:
        later = os.memfd_create("later")
        try:
            os.ftruncate(later, REGION + 8192)
            os.pwrite(later, os.pread(made.fd, REGION, 0), 0)
            made.fd, fd = later, made.fd
            made.write(REGION + 8192, 0, "rway_header", "region_size")
            for field, value in {"kind": 99, "offset": REGION, "length": 8192}.items():
                made.write(value, 0, "rway_header", "sections", 4, field)
            made.write(5, 0, "rway_header", "section_count")
            with made.attach(0) as a, made.attach(1) as b:
                assert a.producers[0].send([bytes(60)]) == 1
                assert b.consumers[0].receive() == [bytes(60)]
            made.fd = fd
        finally:
            os.close(later)


def test_known_sections_are_not_taken_from_where_nothing_is_mapped() -> None:
    with carrier() as made:
        later = os.memfd_create("later")
        try:
            os.ftruncate(later, REGION + 4096)
            os.pwrite(later, os.pread(made.fd, REGION, 0), 0)
            made.fd, fd = later, made.fd
            made.write(REGION + 4096, 0, "rway_header", "region_size")
            made.write(REGION, 0, "rway_header", "sections", 0, "offset")
            with pytest.raises(RegionError, match="end of a section") as refused_by:
                made.attach(0)
            assert refused_by.value.cause is RefusalCause.SECTION
            made.fd = fd
        finally:
            os.close(later)


def opened(kind: str, folder: Path) -> int:
    if kind == "pipe":
        fd, other = os.pipe()
        os.close(other)
        return fd
    if kind == "directory":
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    return os.open("/dev/zero", os.O_RDWR)


@pytest.mark.parametrize("kind", ["pipe", "directory", "device"])
def test_a_descriptor_that_is_no_memory_is_refused(kind: str, tmp_path: Path) -> None:
    fd = opened(kind, tmp_path)
    try:
        error = refused(lambda: Region.attach(fd, SMALL, LINK, 0))
        assert (error.cause, error.what) == (RefusalCause.ARGUMENT, "kind of descriptor")
        assert refused(lambda: read_region(fd)).cause in {RefusalCause.SYSTEM, RefusalCause.MAGIC}
    finally:
        os.close(fd)


def test_a_closed_descriptor_is_refused() -> None:
    for call in (lambda: Region.attach(-1, SMALL, LINK, 0), lambda: read_region(-1)):
        error = refused(call)
        assert error.cause is RefusalCause.SYSTEM
        assert "Bad file descriptor" in str(error)


def test_a_descriptor_that_may_only_be_read_can_be_read_and_not_attached() -> None:
    with carrier() as made:
        fd = os.open(f"/proc/self/fd/{made.fd}", os.O_RDONLY)
        try:
            error = refused(lambda: Region.attach(fd, SMALL, LINK, 0))
            assert (error.cause, error.what) == (RefusalCause.SYSTEM, "mmap")
            assert read_region(fd).geometry == SMALL
        finally:
            os.close(fd)


@pytest.mark.parametrize("side", [2, 3, 2**32 - 1])
def test_a_side_that_no_link_has_is_refused(side: int) -> None:
    with carrier() as made:
        error = refused(lambda: made.attach(side))
        assert (error.cause, error.what, error.found) == (RefusalCause.ARGUMENT, "side", side)


def test_a_header_rewritten_after_the_attach_changes_nothing() -> None:
    with carrier() as made, made.attach(0) as a, made.attach(1) as b:
        for junk in (b"\0", b"\xff", b"\x55"):
            os.pwrite(made.fd, junk * 4096, 0)
            for number in range(200):
                frame = bytes([number]) * (60 + number)
                assert a.producers[1].send([frame]) == 1
                assert b.consumers[1].receive() == [frame]
            assert a.geometry == SMALL
        assert not a.broken
        assert not b.broken


def test_memory_is_allocated_when_a_region_is_made() -> None:
    with carrier() as made:
        assert os.fstat(made.fd).st_blocks * 512 >= MEMORY
        assert os.fstat(made.fd).st_size == REGION


def test_a_region_is_sealed_against_shrinking_and_growing() -> None:
    with carrier() as made:
        seals = fcntl.fcntl(made.fd, fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        for size in (0, REGION - 1, REGION + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(made.fd, size)


def test_refusals_leave_descriptors_and_mappings_flat_over_many_repeats() -> None:
    with carrier() as made:
        made.write(1, 0, "rway_header", "features_required")
        before = left_behind()
        for _ in range(2000):
            with pytest.raises(RegionError):
                made.attach()
            with pytest.raises(RegionError):
                read_region(made.fd)
        assert left_behind() == before
