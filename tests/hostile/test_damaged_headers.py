"""A region whose header is damaged is refused with its cause and leaves nothing behind."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ringway.shm import Geometry, RefusalCause, Region, RegionError, create_region, read_region
from tests.support.carrier import LINK, SMALL, WORD, Carrier, carrier, left_behind, place
from tests.support.refusals import carries_a_frame, check_message, refused, refuses_attach, refuses_both

MEMORY = SMALL.shape().memory
REGION = SMALL.shape().region_size


HEADER_FIELDS = [
    ("magic", 0, RefusalCause.MAGIC, "magic"),
    ("magic", 0x3159415700000000, RefusalCause.MAGIC, "magic"),
    ("magic", WORD - 1, RefusalCause.MAGIC, "magic"),
    *[("major", value, RefusalCause.VERSION, "major version") for value in (0, 2, 0x100, 0xFFFF)],
    *[("minor", value, RefusalCause.VERSION, "minor version") for value in (1, 0x100, 0xFFFF)],
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


@pytest.mark.parametrize("value", [1, 2**32 - 1])
def test_unknown_optional_features_are_accepted(value: int) -> None:
    with carrier() as made:
        made.write(value, 0, "rway_header", "features_optional")
        carries_a_frame(made)


def test_bytes_that_this_layout_reserves_are_ignored() -> None:
    with carrier() as made:
        offset, size = place("rway_header", "reserved")
        os.pwrite(made.fd, b"\xff" * size, offset)
        carries_a_frame(made)


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
