"""Checksum and segmentation data that does not fit costs its frame, by name, and the ring goes on."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringway.shm import read_region
from ringway.shm._native import ffi, lib
from tests.support.carrier import SMALL, carrier, peek
from tests.support.victim import Victim

CONTINUATION = {"kind": lib.RWAY_DESC_CONTINUATION, "slots": 0, "len": 0}
CSUM, GSO = lib.RWAY_EXT_CSUM, lib.RWAY_EXT_GSO
TCP4, TCP6, UDP = lib.RWAY_GSO_TCP4, lib.RWAY_GSO_TCP6, lib.RWAY_GSO_UDP
GOOD_TCP = {"flags": CSUM | GSO, "gso_type": TCP4, "gso_size": 100, "hdr_len": 54, "csum_start": 34, "csum_offset": 16}
GOOD_UDP = {"flags": CSUM | GSO, "gso_type": UDP, "gso_size": 100, "hdr_len": 42, "csum_start": 34, "csum_offset": 6}
LENGTH = 200
BAD_OFFLOADS = {
    "checksum place past the end": {**GOOD_TCP, "flags": CSUM, "csum_start": LENGTH - 17},
    "checksum offset past the end": {**GOOD_TCP, "flags": CSUM, "csum_offset": LENGTH - 35},
    "sum of both wraps 16 bits": {**GOOD_TCP, "flags": CSUM, "csum_start": 65535, "csum_offset": 65535},
    "start wraps with its offset": {**GOOD_TCP, "flags": CSUM, "csum_start": 34, "csum_offset": 65504},
    "start at the end": {**GOOD_TCP, "flags": CSUM, "csum_start": LENGTH, "csum_offset": 0},
    "start in the Ethernet header": {**GOOD_TCP, "flags": CSUM, "csum_start": 13},
    "start 0": {**GOOD_TCP, "flags": CSUM, "csum_start": 0},
    "segments of 0 bytes": {**GOOD_TCP, "gso_size": 0},
    "more than 128 segments of UDP": {**GOOD_UDP, "gso_size": 1},
    "segmentation without checksum": {**GOOD_TCP, "flags": GSO},
    "no type": {**GOOD_TCP, "gso_type": 0},
    "unknown type": {**GOOD_TCP, "gso_type": 2},
    "UFO": {**GOOD_TCP, "gso_type": 3},
    "type 255": {**GOOD_TCP, "gso_type": 255},
    "type with high bits": {**GOOD_TCP, "gso_type": 0x100 | TCP4},
    "ECN alone": {**GOOD_TCP, "gso_type": lib.RWAY_GSO_ECN},
    "ECN with UDP": {**GOOD_UDP, "gso_type": UDP | lib.RWAY_GSO_ECN},
    "headers longer than the frame": {**GOOD_TCP, "hdr_len": LENGTH + 1},
    "headers of 65535 bytes": {**GOOD_TCP, "hdr_len": 65535},
    "headers that end before TCP's": {**GOOD_TCP, "hdr_len": 53},
    "no room for a TCP header": {**GOOD_TCP, "csum_start": LENGTH - 19, "hdr_len": 0},
    "TCP with UDP's checksum place": {**GOOD_TCP, "csum_offset": 6},
    "UDP with TCP's checksum place": {**GOOD_UDP, "csum_offset": 16},
}
GOOD_OFFLOADS = {
    "none": {"flags": 0, "csum_start": 65535, "gso_type": 255},
    "checksum alone": {**GOOD_TCP, "flags": CSUM, "gso_type": 99, "gso_size": 0},
    "checksum in the last two bytes": {**GOOD_TCP, "flags": CSUM, "csum_start": LENGTH - 18},
    "TCP over IPv4": GOOD_TCP,
    "TCP over IPv6 with ECN": {**GOOD_TCP, "gso_type": TCP6 | lib.RWAY_GSO_ECN},
    "UDP": GOOD_UDP,
    "TCP segments of 1 byte": {**GOOD_TCP, "gso_size": 1},
    "as many segments of UDP as can be": {**GOOD_UDP, "gso_size": 2},
    "no header length": {**GOOD_TCP, "hdr_len": 0},
    "flags that another release may know": {**GOOD_TCP, "flags": CSUM | GSO | 0xFFFC},
    "none but such flags": {"flags": 0xFFFC},
}


def publish_with_offload(victim: Victim, number: int, fields: dict[str, int]) -> None:
    line = victim.carrier.slot(victim.inward, number)
    os.pwrite(victim.carrier.fd, b"\0" * 64, line)
    for field, value in fields.items():
        victim.carrier.write(value, line, "rway_extension", field)
    victim.publish({"len": LENGTH, "flags": lib.RWAY_FLAG_EXTENSION})


def offload_drops(victim: Victim) -> int:
    for ring in read_region(victim.carrier.fd).rings:
        if (ring.producing_side, ring.queue) == (1, 0):
            assert set(ring.consumed.drops) <= {"offload"}
            return ring.consumed.drops.get("offload", 0)
    raise LookupError("ring")


@pytest.mark.parametrize("fields", BAD_OFFLOADS.values(), ids=BAD_OFFLOADS)
def test_offload_data_that_does_not_fit_drops_the_frame_by_name_and_the_ring_goes_on(
    victim: Victim, fields: dict[str, int]
) -> None:
    for number in range(3):
        publish_with_offload(victim, number, fields)
        assert victim.receive() == []
        assert offload_drops(victim) == number + 1
    victim.publish({})
    assert len(victim.receive()) == 1
    assert not victim.region.broken
    (ring,) = [r for r in read_region(victim.carrier.fd).rings if (r.producing_side, r.queue) == (1, 0)]
    assert (ring.consumed.frames, ring.delivered, ring.in_flight) == (4, 1, 0)


@pytest.mark.parametrize("fields", GOOD_OFFLOADS.values(), ids=GOOD_OFFLOADS)
def test_offload_data_at_the_edge_of_what_fits_is_accepted(victim: Victim, fields: dict[str, int]) -> None:
    publish_with_offload(victim, 0, fields)
    (got,) = victim.region.consumers[0].receive(whole=True)
    assert (len(got.data), got.offload is None) == (LENGTH, not fields["flags"] & CSUM)
    assert offload_drops(victim) == 0


@pytest.mark.parametrize("fields", [GOOD_TCP, GOOD_UDP], ids=["TCP", "UDP"])
def test_a_frame_without_the_headers_that_its_segments_would_repeat_is_dropped_by_name(
    victim: Victim, fields: dict[str, int]
) -> None:
    publish_with_offload(victim, 0, fields)
    assert victim.receive() == []
    assert offload_drops(victim) == 1


def test_the_number_of_segments_is_bounded_and_not_their_size() -> None:
    def fits(kind: int, csum_offset: int, size: int, payload: int) -> bool:
        header = 20 if kind == TCP4 else 8
        offload = ffi.new("struct rway_offload *", [CSUM | GSO, kind, size, 0, 34, csum_offset])
        return bool(lib.rway_offload_check(offload, 34 + header + payload) == 0)

    for size in (1, 2, 7, 8, 500):
        assert fits(UDP, 6, size, 128 * size)
        assert not fits(UDP, 6, size, 128 * size + 1)
    for size in (1, 2, 7):
        assert fits(TCP4, 16, size, lib.RWAY_SEGMENTS_TCP_MAX * size)
        assert not fits(TCP4, 16, size, lib.RWAY_SEGMENTS_TCP_MAX * size + 1)
    assert fits(TCP4, 16, 8, lib.RWAY_FRAME_MAX - 54)


def test_offload_data_flipped_after_it_was_read_changes_nothing(victim: Victim) -> None:
    publish_with_offload(victim, 0, GOOD_TCP)
    (frame,) = peek(victim.region)
    offload = ffi.new("struct rway_offload *")
    assert lib.rway_frame_offload(victim.region.consumers[0].native, ffi.addressof(frame), offload) == 0
    os.pwrite(victim.carrier.fd, b"\xff" * 64, victim.carrier.slot(victim.inward, 0))
    assert (offload.csum_start, offload.csum_offset, offload.gso_size) == (34, 16, 100)
    assert lib.rway_offload_check(offload, frame.len) == 0


@settings(deadline=None, max_examples=300)
@given(line=st.binary(min_size=64, max_size=64), length=st.integers(14, 600), vlan=st.booleans())
def test_random_extension_lines_never_cost_more_than_their_frame(line: bytes, length: int, vlan: bool) -> None:
    with carrier() as made, made.attach(0) as region:
        ring = made.ring(1)
        slots = -(-length // SMALL.slot_payload)
        os.pwrite(made.fd, line, made.slot(ring, 0))
        flags = lib.RWAY_FLAG_EXTENSION | (lib.RWAY_FLAG_VLAN if vlan else 0)
        made.describe(ring, 0, len=length, slots=slots, flags=flags)
        for number in range(1, slots):
            made.describe(ring, number, **CONTINUATION)
        made.describe(ring, slots)
        made.set_head(ring, slots + 1)
        assert [len(frame) for frame in region.consumers[0].receive()] in ([60], [length + 4 * vlan, 60])
        assert not region.broken
