"""A peer that publishes descriptors that cannot be breaks its own link, by name; what it rewrites later is not seen."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringway.shm import BreakCause, RegionBrokenError
from ringway.shm._native import ffi, lib
from tests.support.carrier import SMALL, WORD, carrier, peek
from tests.support.victim import Victim

SLOTS = SMALL.slot_count
FRAME_MAX = SMALL.shape().frame_max


CONTINUATION = {"kind": lib.RWAY_DESC_CONTINUATION, "slots": 0, "len": 0}
THREE = {"len": 700, "slots": 3}
BAD_DESCRIPTORS = {
    "no kind": ([{"kind": 0}], BreakCause.KIND),
    "unknown kind": ([{"kind": 3}], BreakCause.KIND),
    "unknown kind inside a frame": ([THREE, CONTINUATION, {"kind": 3}], BreakCause.KIND),
    "kind 255": ([{"kind": 255}], BreakCause.KIND),
    "continuation at the head": ([CONTINUATION], BreakCause.KIND),
    "frame inside a frame": ([THREE, {}, CONTINUATION], BreakCause.KIND),
    "nothing inside a frame": ([THREE, CONTINUATION, {"kind": 0}], BreakCause.KIND),
    "unknown flag": ([{"flags": 16}], BreakCause.FLAGS),
    "all flags": ([{"flags": 255}], BreakCause.FLAGS),
    "length 0": ([{"len": 0}], BreakCause.LENGTH),
    "length 13": ([{"len": 13}], BreakCause.LENGTH),
    "length 0, no slots": ([{"len": 0, "slots": 0}], BreakCause.LENGTH),
    "longer than the link carries": ([{"len": FRAME_MAX + 1, "slots": 33}], BreakCause.LENGTH),
    "length 2**31": ([{"len": 2**31}], BreakCause.LENGTH),
    "length 2**32 - 1": ([{"len": 2**32 - 1, "slots": 2**16 - 1}], BreakCause.LENGTH),
    "length 2**32 - 1 and pushed": ([{"len": 2**32 - 1, "pushed": 2**16 - 1}], BreakCause.LENGTH),
    "no slots": ([{"slots": 0}], BreakCause.SLOTS),
    "too many slots": ([{"slots": 2}, CONTINUATION], BreakCause.SLOTS),
    "all slots": ([{"slots": 2**16 - 1}], BreakCause.SLOTS),
    "too few slots": ([{"len": 257, "slots": 1}], BreakCause.SLOTS),
    "one slot too many at the edge": ([{"len": 256, "slots": 2}, CONTINUATION], BreakCause.SLOTS),
    "slots that forget what is pushed": ([{"len": 300, "pushed": 64, "slots": 2}, CONTINUATION], BreakCause.SLOTS),
    "pushed past the headroom": ([{"len": 200, "pushed": 65}], BreakCause.PUSHED),
    "pushed over the extension line": ([{"len": 200, "pushed": 128}], BreakCause.PUSHED),
    "pushed 2**16 - 1": ([{"len": 300, "pushed": 2**16 - 1}], BreakCause.PUSHED),
    "more pushed than frame": ([{"len": 20, "pushed": 21}], BreakCause.PUSHED),
    "incomplete at the head": ([THREE, CONTINUATION], BreakCause.INCOMPLETE),
    "longest and incomplete": ([{"len": FRAME_MAX, "slots": SLOTS // 2}], BreakCause.INCOMPLETE),
}


@pytest.mark.parametrize("before", [0, 3, SLOTS - 1], ids=["first", "fourth", "last slot"])
@pytest.mark.parametrize(("descriptors", "cause"), BAD_DESCRIPTORS.values(), ids=BAD_DESCRIPTORS)
def test_a_bad_descriptor_breaks_the_link_and_what_came_before_it_arrives(
    victim: Victim, descriptors: list[dict[str, int]], cause: BreakCause, before: int
) -> None:
    victim.publish(*[{}] * before)
    if before + len(descriptors) > SLOTS:  # they go over the end of the ring, so its start must be free
        assert len(victim.receive()) == before
        before = 0
    victim.publish(*descriptors)
    if before:
        assert len(victim.receive()) == before
    with pytest.raises(RegionBrokenError):
        victim.receive()
    victim.breaks_with(cause)


def test_a_frame_that_never_ends_is_not_waited_for(victim: Victim) -> None:
    victim.publish({"len": FRAME_MAX, "slots": SLOTS // 2}, *[CONTINUATION] * (SLOTS // 2 - 2))
    with pytest.raises(RegionBrokenError):
        victim.receive()
    victim.breaks_with(BreakCause.INCOMPLETE)


@pytest.mark.parametrize("length", [14, 60, 256, 257, 320, FRAME_MAX - 1, FRAME_MAX])
@pytest.mark.parametrize("pushed", [0, 1, 14, 64])
def test_descriptors_at_the_edge_of_what_is_allowed_are_frames(victim: Victim, length: int, pushed: int) -> None:
    pushed = min(pushed, length)
    slots = max(1, -(-(length - pushed) // SMALL.slot_payload))
    for flags in range(lib.RWAY_FLAGS_KNOWN + 1):
        tag = 4 if flags & lib.RWAY_FLAG_VLAN else 0
        fields = {"len": length, "slots": slots, "pushed": pushed, "flags": flags, "vlan": 5, "hash": 2**32 - 1}
        victim.publish(fields, *[CONTINUATION] * (slots - 1))
        assert [len(frame) for frame in victim.receive()] == [length + tag]


DESCRIPTOR_BYTES = st.one_of(
    st.binary(min_size=16, max_size=16),
    st.builds(
        lambda kind, flags, slots, length, vlan, pushed: b"".join(
            (
                bytes([kind, flags]),
                slots.to_bytes(2, "little"),
                length.to_bytes(4, "little"),
                vlan.to_bytes(2, "little"),
                pushed.to_bytes(2, "little"),
                b"hash",
            )
        ),
        st.integers(0, 4),
        st.integers(0, 17),
        st.integers(0, 4),
        st.one_of(st.integers(0, 800), st.sampled_from([FRAME_MAX, FRAME_MAX + 1, 2**32 - 1])),
        st.integers(0, 65535),
        st.one_of(st.just(0), st.integers(0, 70)),
    ),
)


@settings(deadline=None, max_examples=300)
@given(descriptors=st.lists(DESCRIPTOR_BYTES, min_size=1, max_size=SLOTS), start=st.integers(0, WORD - 1))
def test_random_descriptors_are_frames_or_break_the_link(descriptors: list[bytes], start: int) -> None:
    with carrier() as made:
        ring = made.ring(1)
        made.set_head(ring, start)
        made.set_tail(ring, start)
        with made.attach(0) as region:
            for number, descriptor in enumerate(descriptors):
                os.pwrite(made.fd, descriptor, made.descriptor(ring, start + number))
            made.set_head(ring, start + len(descriptors))
            frames: list[bytes] = []
            cause = BreakCause.WHOLE
            try:
                while more := region.consumers[0].receive(7):
                    frames += more
            except RegionBrokenError as error:
                cause = error.cause
            assert region.broken is cause
            assert len(frames) <= len(descriptors)
            assert all(lib.RWAY_FRAME_MIN <= len(frame) <= FRAME_MAX + 4 for frame in frames)


def test_a_descriptor_rewritten_after_the_peek_changes_nothing(victim: Victim) -> None:
    victim.publish(THREE, CONTINUATION, CONTINUATION)
    (frame,) = peek(victim.region)
    os.pwrite(victim.carrier.fd, b"\xff" * 16 * SLOTS, victim.carrier.descriptor(victim.inward, 0))
    pieces = ffi.new("struct rway_piece[]", lib.RWAY_PIECES_MAX)
    consumer = victim.region.consumers[0].native
    count = lib.rway_consumer_pieces(consumer, ffi.addressof(frame), pieces)
    assert [pieces[number].len for number in range(count)] == [256, 256, 188]
    lib.rway_ring_release(consumer)
    assert victim.carrier.read(victim.inward, "rway_ring_control", "tail") == 3
    assert not victim.region.broken


def test_bytes_rewritten_after_publishing_are_received_as_some_frame(victim: Victim) -> None:
    victim.publish({})
    (frame,) = peek(victim.region)
    first = victim.carrier.slot(victim.inward, 0)
    os.pwrite(victim.carrier.fd, b"\xaa" * 60, first + SMALL.headroom)
    assert bytes(ffi.buffer(frame.data, frame.len)) == b"\xaa" * 60
    lib.rway_ring_release(victim.region.consumers[0].native)
    assert not victim.region.broken
