"""A region whose header, sections or counters are damaged is refused with its cause and leaves nothing behind."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ringway.shm import Geometry, RefusalCause, Region, RegionError, SideState, create_region, read_region
from ringway.shm._native import lib
from tests.hostile.carrier import LINK, SMALL, WORD, Carrier, carrier, left_behind, place

SIDE_A, RINGS_A, SIDE_B, RINGS_B = range(4)  # in the order in which the broker writes the sections
SECTIONS = {"side a": SIDE_A, "rings a": RINGS_A, "side b": SIDE_B, "rings b": RINGS_B}
MEMORY = SMALL.shape().memory
REGION = SMALL.shape().region_size


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    before = left_behind()
    yield
    assert left_behind() == before


def refused(call: Callable[[], object]) -> RegionError:
    """The refusal. It must leave neither descriptor nor mapping behind."""
    before = left_behind()
    with pytest.raises(RegionError) as caught:
        call()
    assert left_behind() == before
    return caught.value


def check_message(error: RegionError, cause: RefusalCause, what: str, found: int | None = None) -> None:
    message = str(error)
    assert (error.cause, error.what) == (cause, what), message
    assert found is None or error.found == found
    number = f"{error.found:#x}" if cause is RefusalCause.MAGIC or "features" in what else str(error.found)
    assert message.startswith(f"{what} is {number}, expected "), message
    assert len(message.partition("; ")[2]) > 20, f"no remedy in: {message}"


def refuses_attach(made: Carrier, cause: RefusalCause, what: str, found: int | None = None) -> None:
    for side in (0, 1):
        check_message(refused(functools.partial(made.attach, side)), cause, what, found)


def refuses_both(made: Carrier, cause: RefusalCause, what: str, found: int | None = None) -> None:
    refuses_attach(made, cause, what, found)
    check_message(refused(lambda: read_region(made.fd)), cause, what, found)


def carries_a_frame(made: Carrier) -> None:
    frame = bytes(range(60))
    with made.attach(0) as a, made.attach(1) as b:
        for queue in range(made.geometry.queues):
            assert a.producers[queue].send([frame]) == 1
            assert b.consumers[queue].receive() == [frame]
    assert read_region(made.fd).geometry == made.geometry


HEADER_FIELDS = [
    ("magic", 0, RefusalCause.MAGIC, "magic"),
    ("magic", 0x3159415700000000, RefusalCause.MAGIC, "magic"),
    ("magic", WORD - 1, RefusalCause.MAGIC, "magic"),
    *[("major", value, RefusalCause.VERSION, "major version") for value in (0, 2, 0x100, 0xFFFF)],
    *[("header_size", value, RefusalCause.SIZE, "header_size") for value in (0, 4095, 8192, 2**32 - 1)],
    *[
        ("region_size", value, RefusalCause.SIZE, "region_size")
        for value in (0, 1, MEMORY - 1, REGION + 1, 2**40 + 1, 2**63, WORD - 1)
    ],
    *[("features_required", 1 << bit, RefusalCause.FEATURE, "features_required") for bit in (0, 1, 16, 31)],
    *[("section_count", value, RefusalCause.SECTION, "section_count") for value in (33, 255, 2**31, 2**32 - 1)],
    *[("slot_stride", value, RefusalCause.GEOMETRY, "slot_stride") for value in (0, 1, 64, 512, 2**32 - 1)],
    *[("frame_max", value, RefusalCause.GEOMETRY, "frame_max") for value in (0, 13, 65664, 2**32 - 1)],
]


@pytest.mark.parametrize(("field", "value", "cause", "what"), HEADER_FIELDS)
def test_a_damaged_header_field_is_refused_by_name(field: str, value: int, cause: RefusalCause, what: str) -> None:
    with carrier() as made:
        made.write(value, 0, "rway_header", field)
        refuses_both(made, cause, what, value)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        *[("queues", value) for value in (0, 17, 2**32 - 1)],
        *[("slot_count", value) for value in (0, 1, 32, 63, 65, 96, 32769, 65536, 2**31, 2**32 - 1)],
        *[("slot_payload", value) for value in (0, 64, 192, 255, 257, 300, 16385, 16448, 2**32 - 1)],
        *[("headroom", value) for value in (0, 1, 63, 65, 100, 513, 576, 2**32 - 64)],
    ],
)
def test_a_geometry_out_of_range_in_the_header_is_refused_by_member(member: str, value: int) -> None:
    with carrier() as made:
        made.write(value, 0, "rway_header", "geometry", member)
        refuses_both(made, RefusalCause.GEOMETRY, member, value)


@pytest.mark.parametrize(
    ("member", "value"), [("queues", 1), ("slot_count", 128), ("slot_payload", 512), ("headroom", 64)]
)
def test_a_possible_geometry_that_is_not_the_sections_is_refused(member: str, value: int) -> None:
    with carrier() as made:
        made.write(value, 0, "rway_header", "geometry", member)
        for call in (made.attach, lambda: read_region(made.fd)):
            assert refused(call).cause in {RefusalCause.GEOMETRY, RefusalCause.SECTION, RefusalCause.SIZE}


@pytest.mark.parametrize(
    ("offer", "what"),
    [
        (Geometry(1, 64, 256, 128), "queues"),
        (Geometry(2, 64, 256, 64), "headroom"),
        (Geometry(1, 128, 256, 128), "queues"),
    ],
)
def test_a_region_that_is_not_what_the_broker_offered_is_refused(offer: Geometry, what: str) -> None:
    with carrier() as made:
        error = refused(lambda: Region.attach(made.fd, offer, LINK, 0))
        check_message(error, RefusalCause.GEOMETRY, what)


@pytest.mark.parametrize(
    "offer",
    [
        Geometry(3, 64, 256, 128),
        Geometry(2, 32, 256, 128),
        Geometry(2, 128, 256, 128),
        Geometry(2, 64, 300, 128),
        Geometry(2, 64, 320, 128),
        Geometry(2, 64, 192, 128),
        Geometry(2, 64, 256, 192),
        Geometry(2, 64, 256, 1024),
        Geometry(0, 64, 256, 128),
        Geometry(17, 32768, 16384, 512),
        Geometry(2**32 + 2, 64, 256, 128),
        Geometry(-2, 64, 256, 128),
    ],
)
def test_any_member_of_an_offer_that_differs_or_is_out_of_range_is_refused(offer: Geometry) -> None:
    with carrier() as made:
        error = refused(lambda: Region.attach(made.fd, offer, LINK, 0))
        # A region that is too short for the offer is found out by its size.
        assert error.cause in {RefusalCause.GEOMETRY, RefusalCause.SIZE}
        carries_a_frame(made)


@pytest.mark.parametrize("link", [0, 8, WORD - 1])
def test_another_links_region_is_refused_by_ends_and_read_by_tools(link: int) -> None:
    with carrier() as made:
        made.write(link, 0, "rway_header", "link_id")
        refuses_attach(made, RefusalCause.LINK, "link_id", link)
        assert read_region(made.fd).link_id == link


@pytest.mark.parametrize("bit", [0, 7, 31])
def test_an_unknown_readable_feature_keeps_ends_out_and_lets_tools_read(bit: int) -> None:
    with carrier() as made:
        made.write(1 << bit, 0, "rway_header", "features_readable")
        refuses_attach(made, RefusalCause.FEATURE, "features_readable", 1 << bit)
        assert read_region(made.fd).geometry == SMALL


@pytest.mark.parametrize(
    ("field", "value"), [("minor", 1), ("minor", 0xFFFF), ("features_optional", 1), ("features_optional", 2**32 - 1)]
)
def test_a_later_minor_and_unknown_optional_features_are_accepted(field: str, value: int) -> None:
    with carrier() as made:
        made.write(value, 0, "rway_header", field)
        carries_a_frame(made)


def test_bytes_that_this_layout_reserves_are_ignored() -> None:
    with carrier() as made:
        offset, size = place("rway_header", "reserved")
        os.pwrite(made.fd, b"\xff" * size, offset)
        carries_a_frame(made)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_missing_section_is_refused_by_name(count: int) -> None:
    first_missing = ["section of side a", "rings of side a", "section of side b", "rings of side b"][count]
    if first_missing == "rings of side a":
        first_missing = "section of side b"  # sides are looked for before rings
    with carrier() as made:
        made.write(count, 0, "rway_header", "section_count")
        expected = first_missing if count != 2 else "section of side b"
        refuses_both(made, RefusalCause.SECTION, expected)


@pytest.mark.parametrize("at", SECTIONS.values(), ids=SECTIONS)
@pytest.mark.parametrize("kind", [0, 3, 77, 2**32 - 1])
def test_a_section_of_an_unknown_kind_is_skipped_and_then_missing(at: int, kind: int) -> None:
    missing = {
        SIDE_A: "section of side a",
        SIDE_B: "section of side b",
        RINGS_A: "rings of side a",
        RINGS_B: "rings of side b",
    }
    with carrier() as made:
        made.write(kind, 0, "rway_header", "sections", at, "kind")
        refuses_both(made, RefusalCause.SECTION, missing[at])


@pytest.mark.parametrize("at", SECTIONS.values(), ids=SECTIONS)
def test_a_section_that_says_it_is_the_other_kind_is_refused(at: int) -> None:
    with carrier() as made:
        kind = made.read(0, "rway_header", "sections", at, "kind")
        made.write(3 - kind, 0, "rway_header", "sections", at, "kind")
        refuses_both(made, RefusalCause.SECTION, "reader of a section")


@pytest.mark.parametrize("at", SECTIONS.values(), ids=SECTIONS)
@pytest.mark.parametrize("flags", [1, 2**31, 2**32 - 1])
def test_a_known_section_with_flags_is_refused(at: int, flags: int) -> None:
    with carrier() as made:
        made.write(flags, 0, "rway_header", "sections", at, "flags")
        refuses_both(made, RefusalCause.SECTION, "flags of a section", flags)


@pytest.mark.parametrize("at", SECTIONS.values(), ids=SECTIONS)
@pytest.mark.parametrize("offset", [0, 1, 4095, 4097, 4096 + 64, WORD - 1])
def test_a_section_over_the_header_or_off_its_page_is_refused(at: int, offset: int) -> None:
    with carrier() as made:
        made.write(offset, 0, "rway_header", "sections", at, "offset")
        refuses_both(made, RefusalCause.SECTION, "offset of a section", offset)


@pytest.mark.parametrize("at", SECTIONS.values(), ids=SECTIONS)
@pytest.mark.parametrize("offset", [REGION, REGION + 4096, 2**40, 2**63, WORD - 4096])
def test_R22_a_section_that_ends_outside_or_wraps_is_refused(at: int, offset: int) -> None:
    with carrier() as made:
        made.write(offset, 0, "rway_header", "sections", at, "offset")
        refuses_both(made, RefusalCause.SECTION, "end of a section")


@pytest.mark.parametrize("at", SECTIONS.values(), ids=SECTIONS)
@pytest.mark.parametrize("other", SECTIONS.values(), ids=SECTIONS)
def test_a_section_that_lies_on_another_is_refused(at: int, other: int) -> None:
    if at == other:
        return
    with carrier() as made:
        offset = made.read(0, "rway_header", "sections", other, "offset")
        made.write(offset, 0, "rway_header", "sections", at, "offset")
        refuses_both(made, RefusalCause.SECTION, "sections that overlap")


@pytest.mark.parametrize("at", SECTIONS.values(), ids=SECTIONS)
@pytest.mark.parametrize("length", [0, REGION + 1, 2**63, WORD - 1])
def test_a_section_of_no_length_or_past_the_end_is_refused(at: int, length: int) -> None:
    with carrier() as made:
        made.write(length, 0, "rway_header", "sections", at, "length")
        refuses_both(made, RefusalCause.SECTION, "end of a section")


@pytest.mark.parametrize("at", SECTIONS.values(), ids=SECTIONS)
@pytest.mark.parametrize("by", [-4096, -1, -64])
def test_a_section_that_is_shorter_than_its_kind_is_refused(at: int, by: int) -> None:
    with carrier() as made:
        length = made.read(0, "rway_header", "sections", at, "length") + by
        made.write(length, 0, "rway_header", "sections", at, "length")
        what = "end of a section" if length == 0 else "length of a section"
        refuses_both(made, RefusalCause.SECTION, what)


@pytest.mark.parametrize("at", SECTIONS.values(), ids=SECTIONS)
@pytest.mark.parametrize("writer", [2, 3, 4, 2**31, 2**32 - 1])
def test_a_section_that_neither_side_writes_is_refused(at: int, writer: int) -> None:
    with carrier() as made:
        made.write(writer, 0, "rway_header", "sections", at, "writer")
        refuses_both(made, RefusalCause.SECTION, "writer of a section", writer)


@pytest.mark.parametrize("at", SECTIONS.values(), ids=SECTIONS)
def test_a_section_that_the_other_side_writes_as_well_is_refused(at: int) -> None:
    with carrier() as made:
        writer = made.read(0, "rway_header", "sections", at, "writer")
        made.write(1 - writer, 0, "rway_header", "sections", at, "writer")
        if made.read(0, "rway_header", "sections", at, "kind") == lib.RWAY_SECTION_RINGS:
            refuses_both(made, RefusalCause.SECTION, "reader of a section")
            made.write(writer, 0, "rway_header", "sections", at, "reader")
        refuses_both(made, RefusalCause.SECTION, "a section that is there twice")


@pytest.mark.parametrize("at", SECTIONS.values(), ids=SECTIONS)
@pytest.mark.parametrize("step", [1, 2, 3, 2**31])
def test_a_section_with_another_reader_is_refused(at: int, step: int) -> None:
    with carrier() as made:
        reader = made.read(0, "rway_header", "sections", at, "reader") ^ step
        made.write(reader, 0, "rway_header", "sections", at, "reader")
        refuses_both(made, RefusalCause.SECTION, "reader of a section", reader)


def add_section(made: Carrier, **fields: int) -> None:
    count = made.read(0, "rway_header", "section_count")
    for field, value in fields.items():
        made.write(value, 0, "rway_header", "sections", count, field)
    made.write(count + 1, 0, "rway_header", "section_count")


def test_unknown_sections_are_skipped_until_the_table_is_full() -> None:
    with carrier() as made:
        for at in range(4, lib.RWAY_SECTIONS_MAX):
            add_section(made, kind=100 + at, flags=5, offset=16384 + 4096 * at, length=4096, writer=9, reader=9)
            carries_a_frame(made)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"kind": 99, "offset": 0, "length": 4096}, "offset of a section"),
        ({"kind": 0, "offset": 16384, "length": 0}, "end of a section"),
        ({"kind": 99, "offset": 4096, "length": 4096}, "sections that overlap"),
        ({"kind": 99, "offset": 12288, "length": REGION - 12288}, "sections that overlap"),
        ({"kind": 99, "offset": 12288, "length": WORD - 4096}, "end of a section"),
        ({"kind": 1, "offset": 12288, "length": 4096, "writer": 0, "reader": 3}, "a section that is there twice"),
        ({"kind": 1, "offset": 12288, "length": 4096, "writer": 1, "reader": 3}, "a section that is there twice"),
    ],
)
def test_a_fifth_section_that_is_damaged_or_doubled_is_refused(fields: dict[str, int], what: str) -> None:
    with carrier() as made:
        add_section(made, **fields)
        refuses_both(made, RefusalCause.SECTION, what)


COUNTERS = [(65, 0), (0, 1), (2**63, 0), (0, WORD - 65), (10, 11), (WORD - 1, 0), (0, 2**63)]


@pytest.mark.parametrize("queue", [0, 1])
@pytest.mark.parametrize("producing_side", [0, 1])
@pytest.mark.parametrize(("head", "tail"), COUNTERS)
def test_R23_counters_that_cannot_be_continued_from_are_refused(
    producing_side: int, queue: int, head: int, tail: int
) -> None:
    with carrier() as made:
        ring = made.ring(producing_side, queue)
        made.set_head(ring, head)
        made.set_tail(ring, tail)
        own, peers = (RefusalCause.COUNTERS, "head of an own ring"), (RefusalCause.COUNTERS, "tail of the peer's ring")
        check_message(refused(lambda: made.attach(producing_side)), *own, (head - tail) % WORD)
        check_message(refused(lambda: made.attach(1 - producing_side)), *peers, (head - tail) % WORD)
        check_message(refused(lambda: read_region(made.fd)), RefusalCause.COUNTERS, "head minus tail")
        sides = [made.read(made.side(side), "rway_side", "state") for side in (0, 1)]
        assert sides == [SideState.DETACHED] * 2, "a refused end must not say that it is attached"


@pytest.mark.parametrize(("head", "tail"), [(2, WORD - 2), (WORD - 1, WORD - 1), (2**63, 2**63), (64, 0)])
def test_counters_anywhere_in_their_range_are_continued_from(head: int, tail: int) -> None:
    with carrier() as made:
        ring = made.ring(0)
        made.set_head(ring, head)
        made.set_tail(ring, tail)
        for number in range((head - tail) % WORD):
            made.describe(ring, tail + number)
        with made.attach(0) as a, made.attach(1) as b:
            assert len(b.consumers[0].receive()) == (head - tail) % WORD
            for number in range(200):
                frame = bytes([number]) * 60
                assert a.producers[0].send([frame]) == 1
                assert b.consumers[0].receive() == [frame]


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


def test_R26_a_header_rewritten_after_the_attach_changes_nothing() -> None:
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


def test_F12_memory_is_allocated_when_a_region_is_made() -> None:
    with carrier() as made:
        assert os.fstat(made.fd).st_blocks * 512 >= MEMORY
        assert os.fstat(made.fd).st_size == REGION


def test_F13_a_region_is_sealed_against_shrinking_and_growing() -> None:
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


HEADER_BYTES = 128 + 5 * 32
VALUES = st.one_of(
    st.integers(0, 2**32 - 1),
    st.integers(0, 40),
    st.sampled_from([2**31, 2**32 - 1, 4096, 8192, 12288, 0x200000, 0x400000, 64, 128, 256, 2048, 65664]),
)
DAMAGE = st.one_of(
    st.lists(st.tuples(st.integers(0, HEADER_BYTES // 4 - 1).map(lambda word: word * 4), VALUES), max_size=4).map(
        lambda words: [(offset, value.to_bytes(4, "little")) for offset, value in words]
    ),
    st.lists(st.tuples(st.integers(0, 4090), st.binary(min_size=1, max_size=40)), max_size=4),
)


@pytest.fixture(scope="module")
def whole() -> Iterator[Carrier]:
    with carrier() as made:
        yield made


@settings(deadline=None, max_examples=400)
@given(damage=DAMAGE)
@example(damage=[])
def test_random_bytes_over_the_header_are_refused_or_carry_frames_as_offered(
    whole: Carrier, damage: list[tuple[int, bytes]]
) -> None:
    header = os.pread(whole.fd, 4096, 0)
    try:
        for offset, junk in damage:
            os.pwrite(whole.fd, junk[: 4096 - offset], offset)
        before, refusal = left_behind(), None
        try:
            carries_a_frame(whole)
        except RegionError as error:
            refusal = str(error)
        assert refusal is None or "expected" in refusal
        assert left_behind() == before
    finally:
        os.pwrite(whole.fd, header, 0)


def test_creation_refuses_a_geometry_out_of_range_and_leaves_nothing() -> None:
    for geometry in (Geometry(queues=0), Geometry(slot_count=100), Geometry(slot_payload=128), Geometry(headroom=0)):
        error = refused(functools.partial(create_region, geometry, LINK))
        check_message(error, RefusalCause.GEOMETRY, error.what)
