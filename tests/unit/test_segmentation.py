"""A whole frame becomes the frames that a wire would have carried; scapy is the judge of each and of them together."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from ringway.agent import Frame, GsoType, Offload
from ringway.shm import DropCause, Geometry
from ringway.shm._native import ffi, lib
from ringway.shm.frame import packed
from tests.support.open_link import Link, opened

WIDE = Geometry(queues=2, slot_count=256, slot_payload=2048, headroom=64)
MAC = {"src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:02"}
TAGS: tuple[list[Packet], ...] = ([], [Dot1Q(vlan=5)], [Dot1AD(vlan=7), Dot1Q(vlan=5)])
OPTIONS_4: tuple[list[Packet], ...] = ([], [IPOption(b"\x94\x04\x00\x00")])
ROUTE = IPv6ExtHdrRouting(addresses=["fd00::77"], segleft=1)
EXTENSIONS: tuple[list[Packet], ...] = (
    [],
    [IPv6ExtHdrHopByHop()],
    [ROUTE],
    [IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), ROUTE],
)


def stacked(layers: list[Packet]) -> Packet:
    made = layers[0]
    for layer in layers[1:]:
        made = made / layer
    return made


def left_to_do(packet: Packet, gso_size: int) -> Frame:
    """As a kernel leaves it: the checksum field holds the pseudo header's sum, not complemented."""
    layer = TCP if TCP in packet else UDP
    place = 16 if layer is TCP else 6
    complete = bytes(packet)
    start = len(complete) - len(bytes(Ether(complete)[layer]))
    words = complete[start:] + b"\0"
    words = words[:place] + b"\0\0" + words[place + 2 :]
    rest = sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, len(words) - 1, 2))
    total = 0xFFFF - int.from_bytes(complete[start + place : start + place + 2], "big") - rest
    pseudo = total % 0xFFFF
    data = complete[: start + place] + pseudo.to_bytes(2, "big") + complete[start + place + 2 :]
    kind = GsoType.UDP if layer is UDP else GsoType.TCP4 if IP in packet else GsoType.TCP6
    return Frame(data, Offload(start, place, kind, gso_size))


def cut(frame: Frame) -> list[bytes] | None:
    """By the component itself; None when it refuses."""
    data, lens, offloads = packed([frame])
    kept = ffi.new("uint8_t[]", data)
    segmenter = ffi.new("struct rway_segmenter *")
    if lib.rway_segmenter_begin(segmenter, kept, lens[0], offloads) != 0:
        assert lib.rway_segmenter_next_len(segmenter) == 0
        return None
    segments = []
    while length := lib.rway_segmenter_next_len(segmenter):
        to = ffi.new("uint8_t[]", length)
        assert lib.rway_segmenter_next(segmenter, to) == length
        segments.append(bytes(to))
    assert lib.rway_segmenter_next(segmenter, ffi.NULL) == 0
    return segments


def assert_lengths_and_checksums_are_right(segment: bytes) -> None:
    again = Ether(segment)
    for layer in (IP, TCP, UDP):
        if layer in again:
            del again[layer].chksum
    if IP in again:
        del again[IP].len
    if UDP in again:
        del again[UDP].len
    if IPv6 in again:
        del again[IPv6].plen
    assert bytes(again) == segment


packets = st.builds(
    lambda tags, network, transport, payload: stacked([Ether(**MAC), *tags, *network, transport, Raw(payload)]),
    st.sampled_from(TAGS),
    st.one_of(
        st.builds(
            lambda options, number: [IP(src="10.0.0.1", dst="10.0.0.2", id=number, options=options)],
            st.sampled_from(OPTIONS_4),
            st.integers(0, 0xFFFF),
        ),
        st.builds(lambda headers: [IPv6(src="fd00::1", dst="fd00::2"), *headers], st.sampled_from(EXTENSIONS)),
    ),
    st.one_of(
        st.builds(lambda port: UDP(sport=port, dport=53), st.integers(1, 0xFFFF)),
        st.builds(
            lambda seq, flags, options: TCP(sport=9, dport=80, seq=seq, flags=flags, options=options),
            st.integers(0, 0xFFFFFFFF),
            st.integers(0, 0xFF).filter(lambda flags: not flags & 0x06),
            st.sampled_from(([], [("Timestamp", (1, 2))])),
        ),
    ),
    st.binary(min_size=1, max_size=600),
)


@settings(deadline=None, max_examples=300)
@given(packet=packets, gso_size=st.integers(5, 700))
def test_segments_are_right_one_by_one_and_are_the_frame_together(packet: Packet, gso_size: int) -> None:
    whole = Ether(bytes(packet))
    segments = cut(left_to_do(packet, gso_size))
    assert segments is not None
    payload = bytes(whole[Raw].load)
    taken = b""
    for number, segment in enumerate(segments):
        assert_lengths_and_checksums_are_right(segment)
        got, last = Ether(segment), number == len(segments) - 1
        if IP in whole:
            assert got[IP].id == (whole[IP].id + number) & 0xFFFF
            got[IP].id = whole[IP].id
        if TCP in whole:
            flags = int(whole[TCP].flags) & ~(0 if last else 0x09) & ~(0 if number == 0 else 0x80)
            assert (got[TCP].seq, int(got[TCP].flags)) == ((whole[TCP].seq + len(taken)) & 0xFFFFFFFF, flags)
            got[TCP].seq, got[TCP].flags = whole[TCP].seq, whole[TCP].flags
        assert len(got[Raw].load) == min(gso_size, len(payload) - len(taken))
        taken += bytes(got[Raw].load)
        header, wanted = got.copy(), whole.copy()
        for one in (header, wanted):
            for layer, field in (
                (IP, "len"),
                (IP, "chksum"),
                (IPv6, "plen"),
                (UDP, "len"),
                (UDP, "chksum"),
                (TCP, "chksum"),
            ):
                if layer in one:
                    setattr(one[layer], field, 0)
            one[Raw].load = b""
        assert bytes(header) == bytes(wanted)
    assert taken == payload


def udp(size: int, gso_size: int, port: int = 9) -> Frame:
    packet = Ether(**MAC) / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=port, dport=9) / Raw(random.randbytes(size))
    return left_to_do(packet, gso_size)


def tcp(size: int, gso_size: int) -> Frame:
    packet = Ether(**MAC) / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=9, dport=9, flags="A") / Raw(bytes(size))
    return left_to_do(packet, gso_size)


UNCUTTABLE = {
    "a fragment": Ether(**MAC) / IP(flags="MF") / UDP() / Raw(bytes(300)),
    "an IPv6 fragment": Ether(**MAC) / IPv6() / IPv6ExtHdrFragment() / UDP() / Raw(bytes(300)),
    "shorter than it says": Ether(**MAC) / IP(len=400) / UDP() / Raw(bytes(300)),
    "of no length": Ether(**MAC) / IP(len=0) / UDP() / Raw(bytes(300)),
    "nothing but headers": Ether(**MAC) / IP(len=28) / UDP() / Raw(bytes(300)),
    "of another protocol": Ether(**MAC) / IP(proto=6) / UDP() / Raw(bytes(300)),
    "not IP": Ether(**MAC, type=0x88B5) / IP() / UDP() / Raw(bytes(300)),
    "a version of its own": Ether(**MAC) / IP(version=5) / UDP() / Raw(bytes(300)),
    "too many headers": stacked(
        [Ether(**MAC), IPv6(), *[IPv6ExtHdrRouting(addresses=["::1"] * 20)] * 2, UDP(), Raw(bytes(300))]
    ),
}


@pytest.mark.parametrize("packet", UNCUTTABLE.values(), ids=UNCUTTABLE)
def test_what_cannot_be_cut_is_refused(packet: Packet) -> None:
    data = bytes(packet)
    start = len(data) - 308
    assert cut(Frame(data, Offload(start, 6, GsoType.UDP, 100))) is None


def test_a_tunnels_inner_packet_is_not_cut() -> None:
    outer = Ether(**MAC) / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=9, dport=4789) / Raw(bytes(8))
    inner = Ether(**MAC) / IP() / UDP() / Raw(bytes(300))
    data = bytes(outer / Raw(bytes(inner)))
    assert cut(Frame(data, Offload(len(data) - 308, 6, GsoType.UDP, 100))) is None


def test_padding_behind_the_packet_is_in_no_segment() -> None:
    frame = udp(300, 200)
    assert cut(Frame(frame.data + bytes(7), frame.offload)) == cut(frame)


@pytest.fixture
def link() -> Iterator[Link]:
    with opened(WIDE) as made:
        yield made


def test_an_application_gets_segments_and_the_books_one_frame(link: Link) -> None:
    whole = udp(10_300, 1000)
    plain = bytes(60)
    assert link.a.producers[0].send([plain, whole, plain]) == 3
    assert link.b.consumers[0].receive() == [plain, *(cut(whole) or []), plain]
    ring = link.ring()
    assert (ring.consumed.frames, ring.delivered, ring.in_flight, ring.balanced) == (3, 3, 0, True)


def test_segments_that_were_not_asked_for_are_the_next_calls(link: Link) -> None:
    whole = tcp(60_000, 1448)
    segments = cut(whole)
    assert segments is not None
    assert len(segments) == 42
    link.a.producers[0].send([whole, bytes(60)])
    consumer, got = link.b.consumers[0], []
    while frames := consumer.receive(5):
        assert len(frames) <= 5
        got += frames
        assert consumer.wait(0) is (len(got) < 43), "a sleeper is told of what waits for it"
    assert got == [*segments, bytes(60)]


def test_segments_beyond_the_buffer_are_the_next_calls(link: Link) -> None:
    link.a.producers[0].send([udp(64, 1), udp(64_000, 500), tcp(65_000, 8)])
    got: list[bytes] = []
    while frames := link.b.consumers[0].receive(100_000):
        got += frames
    assert len(got) == 64 + 128 + 8125
    assert link.ring().delivered == 3


def test_segments_that_wait_are_no_longer_in_the_ring(link: Link) -> None:
    """A peer that breaks its link, or rewrites the slots, does not reach them; a detach ends them."""
    whole = udp(4000, 1000)
    link.a.producers[0].send([whole])
    segments = cut(whole) or []
    assert link.b.consumers[0].receive(1) == segments[:1]
    assert (link.ring().in_flight, link.ring().delivered) == (0, 1)
    lib.rway_consumer_vanished(link.b.consumers[0].native)
    assert link.b.consumers[0].receive(2) == segments[1:3]


def test_segments_that_wait_come_before_later_frames_of_their_flow_that_are_in_another_queue(link: Link) -> None:
    first, later = udp(3000, 1000), udp(100, 50)
    link.a.producers[1].send([first])
    receiver = link.b.all_consumers
    got = receiver.receive(1)
    link.a.producers[0].send([later])  # all of the queue that it leaves is released
    while frames := receiver.receive(1):
        got += frames
    assert got == [*(cut(first) or []), *(cut(later) or [])]


def test_segments_that_found_no_room_end_the_call_before_the_next_queue_is_looked_into(link: Link) -> None:
    long = [udp(64_000, 500), udp(64_000, 500), udp(64_000, 500), udp(64_000, 500), udp(64_000, 500)]
    link.a.producers[0].send(long)
    link.a.producers[1].send([bytes(60)])
    got: list[bytes] = []
    while frames := link.b.all_consumers.receive(100_000):
        got += frames
    assert got == [*(segment for frame in long for segment in cut(frame) or []), bytes(60)]


def test_whole_frames_are_passed_on_as_they_came(link: Link) -> None:
    frames = [
        udp(10_300, 1000),
        tcp(3000, 7),
        Frame(bytes(60)),
        Frame(bytes(100), Offload(34, 16)),
        Frame(tcp(100, 50).data, Offload(34, 16, GsoType.TCP4, 50, 54, ecn=True)),
    ]
    assert link.a.producers[0].send(frames) == len(frames)
    assert link.b.consumers[0].receive(whole=True) == frames


def test_segments_that_wait_come_before_whole_frames(link: Link) -> None:
    whole = udp(3000, 1000)
    link.a.producers[0].send([whole, whole])
    segments = [Frame(segment) for segment in cut(whole) or []]
    assert link.b.consumers[0].receive(1) == [segments[0].data]
    assert link.b.all_consumers.receive(whole=True) == [*segments[1:], whole]


def test_offload_data_of_an_applications_own_that_does_not_fit_is_dropped_by_name(link: Link) -> None:
    bad = [Frame(bytes(60), Offload(59, 16)), Frame(bytes(200), Offload(34, 6, GsoType.UDP, 1))]
    assert link.a.producers[0].send([*bad, bytes(60)]) == 3
    assert link.ring().produced.drops == {DropCause.OFFLOAD.name.lower(): 2}
    assert link.b.consumers[0].receive() == [bytes(60)]


def test_offload_data_beyond_16_bits_is_refused_by_the_fields_name() -> None:
    with pytest.raises(ValueError, match="csum_start is 65536"):
        Offload(65536, 6)


def test_a_tag_that_was_taken_off_is_in_every_segment(link: Link) -> None:
    whole = udp(3000, 1000)
    tagged = Ether(**MAC) / Dot1Q(vlan=77) / Ether(whole.data)[IP]
    claimed: Any = ffi.new("struct rway_frame[1]", [{"len": len(whole.data)}])
    producer = link.a.producers[0].native
    _, _, offloads = packed([whole])
    assert lib.rway_ring_claim(producer, claimed, 1) == 1
    pieces = ffi.new("struct rway_piece[]", lib.RWAY_PIECES_MAX)
    at = 0
    for piece in pieces[0 : lib.rway_producer_pieces(producer, claimed, pieces)]:
        ffi.memmove(piece.data, whole.data[at : at + piece.len], piece.len)
        at += piece.len
    claimed[0].flags, claimed[0].vlan = lib.RWAY_FLAG_VLAN, 77
    assert lib.rway_frame_set_offload(producer, claimed, offloads) == 0
    lib.rway_ring_publish(producer, claimed, 1)
    got = link.b.consumers[0].receive()
    assert got == cut(Frame(bytes(tagged), Offload(38, 6, GsoType.UDP, 1000)))
