"""A region whose section table or counters are damaged is refused, at both ends and by tools."""

from __future__ import annotations

import itertools

import pytest

from ringway.shm import RefusalCause, SideState, read_region
from ringway.shm._native import lib
from tests.support.carrier import SMALL, WORD, Carrier, carrier
from tests.support.refusals import carries_a_frame, check_message, refused, refuses_both

SIDE_A, RINGS_A, SIDE_B, RINGS_B = range(4)  # in the order in which the broker writes the sections
SECTIONS = {"side a": SIDE_A, "rings a": RINGS_A, "side b": SIDE_B, "rings b": RINGS_B}
REGION = SMALL.shape().region_size


@pytest.mark.parametrize(
    ("count", "missing"),
    [(0, "section of side a"), (1, "section of side b"), (2, "section of side b"), (3, "rings of side b")],
)
def test_a_missing_section_is_refused_by_name(count: int, missing: str) -> None:
    with carrier() as made:
        made.write(count, 0, "rway_header", "section_count")
        refuses_both(made, RefusalCause.SECTION, missing)


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
def test_a_section_that_ends_outside_or_wraps_is_refused(at: int, offset: int) -> None:
    with carrier() as made:
        made.write(offset, 0, "rway_header", "sections", at, "offset")
        refuses_both(made, RefusalCause.SECTION, "end of a section")


@pytest.mark.parametrize(("at", "other"), list(itertools.permutations(SECTIONS.values(), 2)))
def test_a_section_that_lies_on_another_is_refused(at: int, other: int) -> None:
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
def test_counters_that_cannot_be_continued_from_are_refused(
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
