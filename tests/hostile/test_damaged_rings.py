"""A peer that writes what it must not into the rings breaks its own link, by name, and nothing else."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringway.shm import BreakCause, Region, RegionBrokenError, SideState, read_region
from ringway.shm._native import ffi, lib
from tests.hostile.carrier import SMALL, WORD, Carrier, carrier, peek

SLOTS = SMALL.slot_count
FRAME_MAX = SMALL.shape().frame_max
FRAME = bytes(range(60))


class Victim:
    """Side a, attached; side b is whoever writes through the carrier. A second, honest link goes on beside it."""

    def __init__(self, made: Carrier, region: Region, others: tuple[Region, Region]) -> None:
        self.carrier = made
        self.region = region
        self.others = others
        self.inward = made.ring(1)
        self.outward = made.ring(0)

    def receive(self) -> list[bytes]:
        return self.region.consumers[0].receive()

    def publish(self, *descriptors: dict[str, int], head: int | None = None) -> None:
        """Write descriptors behind the head as it stands, then move it."""
        start = self.carrier.read(self.inward, "rway_ring_control", "head")
        for number, fields in enumerate(descriptors):
            self.carrier.describe(self.inward, start + number, **fields)
        self.carrier.set_head(self.inward, start + len(descriptors) if head is None else head)

    def breaks_with(self, cause: BreakCause) -> None:
        """The link is broken for good, says so to whoever reads it, and is alone in that."""
        region, (near, far) = self.region, self.others
        assert region.broken is cause
        for call in (region.consumers[0].receive, region.consumers[1].receive, lambda: region.consumers[0].wait(1)):
            with pytest.raises(RegionBrokenError) as caught:
                call()
            assert caught.value.cause is cause
            assert cause.name.lower() in str(caught.value)
        for producer in region.producers:
            with pytest.raises(RegionBrokenError):
                producer.send([FRAME])
            with pytest.raises(RegionBrokenError):
                producer.wait(1)
        assert self.carrier.read(self.carrier.side(0), "rway_side", "state") == SideState.BROKEN
        assert self.carrier.read(self.carrier.side(0), "rway_side", "cause") == cause
        assert near.producers[0].send([FRAME]) == 1
        assert far.consumers[0].receive() == [FRAME]
        assert not near.broken


@pytest.fixture
def victim() -> Iterator[Victim]:
    with (
        carrier() as made,
        carrier() as other,
        made.attach(0) as region,
        other.attach(0) as near,
        other.attach(1) as far,
    ):
        yield Victim(made, region, (near, far))


def after_ten_frames(victim: Victim) -> None:
    victim.publish(*[{}] * 10)
    assert len(victim.receive()) == 10


BAD_HEADS = [9, 0, 10 + SLOTS + 1, 10 + 2 * SLOTS, 2**32 + 10, 2**63, WORD - 1]


@pytest.mark.parametrize("head", BAD_HEADS)
def test_R23_a_head_that_goes_back_or_too_far_breaks_the_link(victim: Victim, head: int) -> None:
    after_ten_frames(victim)
    victim.carrier.set_head(victim.inward, head)
    assert victim.region.consumers[0].wait(1)
    with pytest.raises(RegionBrokenError):
        victim.receive()
    victim.breaks_with(BreakCause.HEAD)


def test_R1_R2_the_reading_of_a_broken_link_names_side_and_cause(victim: Victim) -> None:
    after_ten_frames(victim)
    victim.carrier.set_head(victim.inward, 10 + SLOTS)
    victim.carrier.describe(victim.inward, 10, kind=9)
    with pytest.raises(RegionBrokenError):
        victim.receive()
    side = read_region(victim.carrier.fd).sides[0]
    assert (side.state, side.cause) == (SideState.BROKEN, BreakCause.KIND)
    assert read_region(victim.carrier.fd).sides[1].state is SideState.DETACHED


def test_R1_a_whole_ring_of_frames_is_the_most_that_a_head_may_announce(victim: Victim) -> None:
    after_ten_frames(victim)
    victim.publish(*[{}] * SLOTS)
    assert len(victim.receive()) == SLOTS
    assert not victim.region.broken


def test_R23_frames_still_held_count_against_what_a_head_may_announce(victim: Victim) -> None:
    victim.publish(*[{}] * SLOTS)
    assert len(peek(victim.region, count=SLOTS)) == SLOTS
    victim.carrier.set_head(victim.inward, SLOTS + 1)
    assert len(peek(victim.region)) == 0
    victim.breaks_with(BreakCause.HEAD)


def test_R23_a_head_that_went_back_over_frames_still_held_breaks_the_link(victim: Victim) -> None:
    victim.publish(*[{}] * 10)
    assert len(peek(victim.region, count=10)) == 10
    victim.carrier.set_head(victim.inward, 9)
    assert len(peek(victim.region)) == 0
    victim.breaks_with(BreakCause.HEAD)


@pytest.mark.parametrize("tail", [SLOTS + 1, 2 * SLOTS, 2**32, 2**63, WORD - 1])
def test_R23_a_tail_past_our_head_breaks_the_link(victim: Victim, tail: int) -> None:
    assert victim.region.producers[0].send([FRAME] * SLOTS) == SLOTS
    victim.carrier.set_tail(victim.outward, tail)
    with pytest.raises(RegionBrokenError):
        victim.region.producers[0].send([FRAME])
    victim.breaks_with(BreakCause.TAIL)


@pytest.mark.parametrize("tail", [0, 9, WORD - 1])
def test_R23_a_tail_that_goes_back_breaks_the_link(victim: Victim, tail: int) -> None:
    producer = victim.region.producers[0]
    assert producer.send([FRAME] * SLOTS) == SLOTS
    victim.carrier.set_tail(victim.outward, 10)
    assert producer.send([FRAME] * SLOTS) == 10
    victim.carrier.set_tail(victim.outward, tail)
    with pytest.raises(RegionBrokenError):
        producer.send([FRAME])
    victim.breaks_with(BreakCause.TAIL)


def test_a_tail_that_stays_fills_the_ring_and_no_more(victim: Victim) -> None:
    assert victim.region.producers[0].send([FRAME] * 200) == SLOTS
    assert victim.region.producers[0].send([FRAME]) == 0
    assert not victim.region.broken


MARK = {"kind": lib.RWAY_DESC_MARK, "len": 0}
CONTINUATION = {"kind": lib.RWAY_DESC_CONTINUATION, "slots": 0, "len": 0}
THREE = {"len": 700, "slots": 3}
BAD_DESCRIPTORS = {
    "no kind": ([{"kind": 0}], BreakCause.KIND),
    "unknown kind": ([{"kind": 4}], BreakCause.KIND),
    "kind 255": ([{"kind": 255}], BreakCause.KIND),
    "continuation at the head": ([CONTINUATION], BreakCause.KIND),
    "frame inside a frame": ([THREE, {}, CONTINUATION], BreakCause.KIND),
    "mark inside a frame": ([THREE, CONTINUATION, MARK], BreakCause.KIND),
    "nothing inside a frame": ([THREE, CONTINUATION, {"kind": 0}], BreakCause.KIND),
    "unknown flag": ([{"flags": 16}], BreakCause.FLAGS),
    "all flags": ([{"flags": 255}], BreakCause.FLAGS),
    "unknown flag on a mark": ([{**MARK, "flags": 128}], BreakCause.FLAGS),
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
    "mark of no slots": ([{**MARK, "slots": 0}], BreakCause.SLOTS),
    "mark of two slots": ([{**MARK, "slots": 2}, CONTINUATION], BreakCause.SLOTS),
    "mark of some length": ([{**MARK, "len": 60}], BreakCause.LENGTH),
    "mark that is pushed": ([{**MARK, "pushed": 1}], BreakCause.PUSHED),
}


@pytest.mark.parametrize("before", [0, 3, SLOTS - 1], ids=["first", "fourth", "last slot"])
@pytest.mark.parametrize(("descriptors", "cause"), BAD_DESCRIPTORS.values(), ids=BAD_DESCRIPTORS)
def test_R22_a_bad_descriptor_breaks_the_link_and_what_came_before_it_arrives(
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


def test_R24_a_frame_that_never_ends_is_not_waited_for(victim: Victim) -> None:
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


def test_R25_a_descriptor_rewritten_after_the_peek_changes_nothing(victim: Victim) -> None:
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


def test_R25_bytes_rewritten_after_publishing_are_received_as_some_frame(victim: Victim) -> None:
    victim.publish({})
    (frame,) = peek(victim.region)
    first = victim.carrier.slot(victim.inward, 0)
    os.pwrite(victim.carrier.fd, b"\xaa" * 60, first + SMALL.headroom)
    assert bytes(ffi.buffer(frame.data, frame.len)) == b"\xaa" * 60
    lib.rway_ring_release(victim.region.consumers[0].native)
    assert not victim.region.broken


@pytest.mark.parametrize("junk", [0, 1, 2**63, WORD - 1])
def test_R21_what_we_publish_is_never_read_back(victim: Victim, junk: int) -> None:
    made, producer = victim.carrier, victim.region.producers[0]
    for turn in range(100):
        made.set_head(victim.outward, junk)
        made.set_tail(victim.inward, junk)
        for struct, at in (("produced", victim.outward), ("consumed", victim.inward)):
            made.write(junk, at, "rway_ring_control", struct, "frames")
        made.write(junk, made.side(0), "rway_side", "state")
        assert producer.send([FRAME]) == 1
        made.set_tail(victim.outward, turn + 1)
        victim.publish({})
        assert len(victim.receive()) == 1
    assert made.read(victim.outward, "rway_ring_control", "head") == 100
    assert made.read(victim.inward, "rway_ring_control", "tail") == 100
    assert made.read(victim.outward, "rway_ring_control", "produced", "frames") == 100
    assert made.read(victim.inward, "rway_ring_control", "consumed", "frames") == 100
    assert not victim.region.broken


@pytest.mark.parametrize("junk", [0, 1, 2**63, WORD - 1])
def test_R19_wake_words_of_any_value_change_only_who_is_woken(victim: Victim, junk: int) -> None:
    made = victim.carrier
    for turn in range(100):
        made.write(junk, victim.outward, "rway_ring_control", "wake_consumer")
        made.write(junk, victim.inward, "rway_ring_control", "wake_producer")
        assert victim.region.producers[0].send([FRAME]) == 1
        made.set_tail(victim.outward, turn + 1)
        victim.publish({})
        assert len(victim.receive()) == 1
    assert not victim.region.broken


@pytest.mark.parametrize("junk", [b"\xff", b"\x7f", b"\x02"])
def test_a_peers_word_about_itself_is_only_shown(victim: Victim, junk: bytes) -> None:
    os.pwrite(victim.carrier.fd, junk * 4096, victim.carrier.side(1))
    peer = victim.region.peer()
    assert peer.state in SideState
    assert peer.cause in BreakCause
    reading = read_region(victim.carrier.fd)
    assert reading.sides[1] == peer
    victim.publish({})
    assert len(victim.receive()) == 1


CSUM, GSO = lib.RWAY_EXT_CSUM, lib.RWAY_EXT_GSO
TCP4, TCP6, UDP = lib.RWAY_GSO_TCP4, lib.RWAY_GSO_TCP6, lib.RWAY_GSO_UDP
GOOD_TCP = {"flags": CSUM | GSO, "gso_type": TCP4, "gso_size": 100, "hdr_len": 54, "csum_start": 34, "csum_offset": 16}
GOOD_UDP = {"flags": CSUM | GSO, "gso_type": UDP, "gso_size": 100, "hdr_len": 42, "csum_start": 34, "csum_offset": 6}
LENGTH = 200
BAD_OFFLOADS = {
    "P1 checksum place past the end": {**GOOD_TCP, "flags": CSUM, "csum_start": LENGTH - 17},
    "P1 checksum offset past the end": {**GOOD_TCP, "flags": CSUM, "csum_offset": LENGTH - 35},
    "P1 sum of both wraps 16 bits": {**GOOD_TCP, "flags": CSUM, "csum_start": 65535, "csum_offset": 65535},
    "P1 start wraps with its offset": {**GOOD_TCP, "flags": CSUM, "csum_start": 34, "csum_offset": 65504},
    "P1 start at the end": {**GOOD_TCP, "flags": CSUM, "csum_start": LENGTH, "csum_offset": 0},
    "P1 start in the Ethernet header": {**GOOD_TCP, "flags": CSUM, "csum_start": 13},
    "P1 start 0": {**GOOD_TCP, "flags": CSUM, "csum_start": 0},
    "P2 segments of 0 bytes": {**GOOD_TCP, "gso_size": 0},
    "P2 segments of 1 byte": {**GOOD_TCP, "gso_size": 1},
    "P2 segments of 7 bytes": {**GOOD_TCP, "gso_size": 7},
    "P2 segmentation without checksum": {**GOOD_TCP, "flags": GSO},
    "P2 no type": {**GOOD_TCP, "gso_type": 0},
    "P2 unknown type": {**GOOD_TCP, "gso_type": 2},
    "P2 UFO": {**GOOD_TCP, "gso_type": 3},
    "P2 type 255": {**GOOD_TCP, "gso_type": 255},
    "P2 type with high bits": {**GOOD_TCP, "gso_type": 0x100 | TCP4},
    "P2 ECN alone": {**GOOD_TCP, "gso_type": lib.RWAY_GSO_ECN},
    "P2 ECN with UDP": {**GOOD_UDP, "gso_type": UDP | lib.RWAY_GSO_ECN},
    "P2 headers longer than the frame": {**GOOD_TCP, "hdr_len": LENGTH + 1},
    "P2 headers of 65535 bytes": {**GOOD_TCP, "hdr_len": 65535},
    "P2 headers that end before TCP's": {**GOOD_TCP, "hdr_len": 53},
    "P2 no room for a TCP header": {**GOOD_TCP, "csum_start": LENGTH - 19, "hdr_len": 0},
    "P2 TCP with UDP's checksum place": {**GOOD_TCP, "csum_offset": 6},
    "P2 UDP with TCP's checksum place": {**GOOD_UDP, "csum_offset": 16},
}
GOOD_OFFLOADS = {
    "none": {"flags": 0, "csum_start": 65535, "gso_type": 255},
    "checksum alone": {**GOOD_TCP, "flags": CSUM, "gso_type": 99, "gso_size": 0},
    "checksum in the last two bytes": {**GOOD_TCP, "flags": CSUM, "csum_start": LENGTH - 18},
    "TCP over IPv4": GOOD_TCP,
    "TCP over IPv6 with ECN": {**GOOD_TCP, "gso_type": TCP6 | lib.RWAY_GSO_ECN},
    "UDP": GOOD_UDP,
    "no header length": {**GOOD_TCP, "hdr_len": 0},
    "flags that another release may know": {**GOOD_TCP, "flags": CSUM | GSO | 0xFFF0},
    "tunnel and timestamp": {"flags": lib.RWAY_EXT_TUNNEL | lib.RWAY_EXT_TIMESTAMP, "inner_l3": 65535, "clock": 2**31},
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
    assert [len(frame) for frame in victim.receive()] == [LENGTH]
    assert offload_drops(victim) == 0


def test_P1_offload_data_flipped_after_it_was_read_changes_nothing(victim: Victim) -> None:
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


def test_F5_a_peer_that_dies_between_claim_and_publish_leaves_nothing_to_clean_up() -> None:
    with carrier() as made, made.attach(0) as a:
        claimed, saying = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                b = made.attach(1)
                frames = ffi.new("struct rway_frame[]", 4)
                for frame in frames:
                    frame.kind, frame.len = lib.RWAY_DESC_FRAME, 1000
                b.producers[0].send([FRAME])
                os.write(saying, bytes([lib.rway_ring_claim(b.producers[0].native, frames, 4)]))
                signal.pause()
            finally:
                os._exit(1)
        assert os.read(claimed, 1) == b"\x04"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(claimed)
        os.close(saying)
        assert a.consumers[0].receive() == [FRAME]
        assert a.consumers[0].receive() == []
        with made.attach(1, incarnation=2) as b:
            assert a.peer().incarnation == 2
            assert b.producers[0].send([FRAME] * SLOTS) == SLOTS
            assert a.consumers[0].receive() == [FRAME] * SLOTS
        assert all(ring.balanced for ring in read_region(made.fd).rings)


def test_F7_a_peer_that_stops_consuming_fills_its_ring_and_costs_nothing_else(victim: Victim) -> None:
    producer = victim.region.producers[0]
    assert producer.send([FRAME] * SLOTS) == SLOTS
    for _ in range(1000):
        assert producer.send([FRAME]) == 0
    assert not producer.wait(0)
    near, far = victim.others
    assert near.producers[0].send([FRAME]) == 1
    assert far.consumers[0].receive() == [FRAME]


@pytest.mark.parametrize("target", ["descriptors", "slots", "header", "own side", "peer's side"])
def test_F13_holes_punched_into_a_live_region_break_the_link_or_read_as_zeros(victim: Victim, target: str) -> None:
    made = victim.carrier
    after_ten_frames(victim)
    victim.publish(*[{}] * 10)
    places = {
        "descriptors": (victim.inward, 8192),
        "slots": (victim.inward + 4096, SMALL.shape().queue_size - 4096),
        "header": (0, 4096),
        "own side": (made.side(0), 4096),
        "peer's side": (made.side(1), 4096),
    }
    start, length = places[target]
    punch_hole(made.fd, start, length)
    if target == "descriptors":  # the head is on the same page
        with pytest.raises(RegionBrokenError):
            victim.receive()
        victim.breaks_with(BreakCause.HEAD)
        return
    frames = victim.receive()
    assert len(frames) == 10
    assert target != "slots" or frames[-1] == bytes(60)
    assert not victim.region.broken


def punch_hole(fd: int, offset: int, length: int) -> None:
    """fallocate(2) with PUNCH_HOLE and KEEP_SIZE, which Python does not offer. Seals do not forbid it."""
    libc = ctypes.CDLL(None, use_errno=True)
    kept = libc.fallocate(fd, 3, ctypes.c_int64(offset), ctypes.c_int64(length))
    assert kept == 0, os.strerror(ctypes.get_errno())
