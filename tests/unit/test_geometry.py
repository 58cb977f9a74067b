"""A geometry is in range or refused by the name of its member, and its sizes follow from it."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.shm import Geometry, RefusalCause, RegionError

GEOMETRIES = st.builds(
    Geometry,
    queues=st.integers(1, 16),
    slot_count=st.integers(6, 15).map(lambda log2: 2**log2),
    slot_payload=st.integers(4, 256).map(lambda lines: 64 * lines),
    headroom=st.integers(1, 8).map(lambda lines: 64 * lines),
)


@given(GEOMETRIES)
def test_the_sizes_of_every_geometry_in_range_hold_together(geometry: Geometry) -> None:
    shape = geometry.shape()
    assert shape.slot_stride >= geometry.headroom + geometry.slot_payload
    assert shape.slot_stride % 64 == 0
    assert shape.slot_stride // 64 % 2 == 1, "a stride of an even number of lines crowds few cache sets"
    assert shape.queue_size >= 1536 + geometry.slot_count * (16 + shape.slot_stride)
    assert shape.queue_size % 4096 == 0
    assert shape.rings_size == geometry.queues * shape.queue_size
    assert shape.region_size % 2**21 == 0
    assert 2**21 + 2 * shape.rings_size <= shape.region_size < 2**21 + 2 * shape.rings_size + 2**22
    assert shape.memory == 3 * 4096 + 2 * shape.rings_size


@given(GEOMETRIES)
def test_the_longest_frame_is_64_kib_and_headers_or_half_a_ring(geometry: Geometry) -> None:
    assert geometry.shape().frame_max == min(65664, geometry.slot_count // 2 * geometry.slot_payload)


def test_the_default_carries_a_64_kib_segment_with_its_headers() -> None:
    geometry = Geometry()
    assert (geometry.queues, geometry.slot_count, geometry.slot_payload, geometry.headroom) == (1, 1024, 2048, 64)
    assert geometry.shape().frame_max == 65664


@pytest.mark.parametrize(
    ("geometry", "what", "expected"),
    [
        (Geometry(queues=0), "queues", 1),
        (Geometry(queues=17), "queues", 16),
        (Geometry(queues=-1), "queues", 1),
        (Geometry(slot_count=32), "slot_count", 64),
        (Geometry(slot_count=1000), "slot_count", 1024),
        (Geometry(slot_count=65536), "slot_count", 32768),
        (Geometry(slot_count=2**32 + 1024), "slot_count", 32768),
        (Geometry(slot_payload=192), "slot_payload", 256),
        (Geometry(slot_payload=1500), "slot_payload", 1536),
        (Geometry(slot_payload=16448), "slot_payload", 16384),
        (Geometry(headroom=0), "headroom", 64),
        (Geometry(headroom=100), "headroom", 128),
        (Geometry(headroom=576), "headroom", 512),
    ],
)
def test_a_member_out_of_range_is_refused_with_the_nearest_good_value(
    geometry: Geometry, what: str, expected: int
) -> None:
    with pytest.raises(RegionError) as caught:
        geometry.shape()
    error = caught.value
    assert (error.cause, error.what, error.expected) == (RefusalCause.GEOMETRY, what, expected)
    assert str(error).startswith(f"{what} is {error.found}; use ")


@given(st.builds(Geometry, *[st.integers(-(2**40), 2**40)] * 4))
def test_any_numbers_at_all_are_computed_or_refused(geometry: Geometry) -> None:
    refused = None
    try:
        geometry.shape()
    except RegionError as error:
        refused = (error.cause, error.what)
    members = [field.name for field in dataclasses.fields(Geometry)]
    assert refused is None or refused in [(RefusalCause.GEOMETRY, member) for member in members]


@given(GEOMETRIES)
def test_a_geometry_comes_back_from_c_as_it_went(geometry: Geometry) -> None:
    assert Geometry.of(geometry.native()) == geometry
