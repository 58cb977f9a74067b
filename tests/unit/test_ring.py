"""Frames of every size go in at one end and come out at the other, in order, and every one is accounted for."""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringway.shm import DropCause, Geometry, QueueBells, Region, create_region, make_bell
from ringway.shm._native import ffi, lib
from tests.support.open_link import Link, opened

LINK = 5
SMALL = Geometry(queues=3, slot_count=64, slot_payload=256, headroom=128)
FRAME = bytes(range(60))


@pytest.fixture
def link() -> Iterator[Link]:
    with opened(SMALL) as made:
        yield made


def content(number: int, length: int) -> bytes:
    return (number.to_bytes(4, "little") + bytes(range(1, 252))) * (length // 255 + 1)


def frame(number: int, length: int) -> bytes:
    return content(number, length)[:length]


def in_place(**fields: int) -> Any:
    made = ffi.new("struct rway_frame[1]")
    for name, value in fields.items():
        setattr(made[0], name, value)
    return made


@pytest.mark.parametrize("length", [14, 59, 60, 1514, 2047, 2048, 2049, 4096, 4097, 9014, 65535, 65550, 65663, 65664])
def test_a_frame_of_any_length_up_to_65664_arrives_as_it_was(length: int) -> None:
    with opened(Geometry()) as link:
        for number in range(50):
            assert link.a.producers[0].send([frame(number, length)]) == 1
            assert link.b.consumers[0].receive() == [frame(number, length)]
        ring = link.ring()
        assert (ring.produced.frames, ring.produced.bytes) == (50, 50 * length)
        assert (ring.consumed.frames, ring.consumed.bytes, ring.in_flight) == (50, 50 * length, 0)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(14, 8192), min_size=1, max_size=40), st.integers(1, 40))
def test_bursts_of_mixed_lengths_keep_their_order(lengths: list[int], burst: int) -> None:
    with opened(SMALL) as link:
        frames = [frame(number, length) for number, length in enumerate(lengths)]
        left, got = frames, list[bytes]()
        while left or len(got) < len(frames):
            sent = link.a.producers[0].send(left[:burst]) if left else 0
            left = left[sent:]
            received = link.b.consumers[0].receive(burst)
            assert sent or received, "neither end got on"
            got += received
        assert got == frames


def test_queues_and_directions_do_not_mix(link: Link) -> None:
    for queue in range(3):
        for side, region in enumerate((link.a, link.b)):
            assert region.producers[queue].send([frame(10 * queue + side, 700)]) == 1
    for queue in range(3):
        assert link.b.consumers[queue].receive() == [frame(10 * queue, 700)]
        assert link.a.consumers[queue].receive() == [frame(10 * queue + 1, 700)]
        assert link.a.consumers[queue].receive() == []


@pytest.mark.parametrize("length", [0, 1, 13])
def test_a_frame_shorter_than_its_header_is_dropped_as_a_runt(link: Link, length: int) -> None:
    assert link.a.producers[0].send([FRAME, bytes(length), FRAME]) == 3
    assert link.b.consumers[0].receive() == [FRAME, FRAME]
    assert link.ring().produced.drops == {"runt": 1}
    assert (link.ring().offered, link.ring().delivered) == (3, 2)


@pytest.mark.parametrize("over", [1, 1000, 10**6])
def test_a_frame_longer_than_the_link_carries_is_dropped_as_oversize(link: Link, over: int) -> None:
    longest = SMALL.shape().frame_max
    assert link.a.producers[0].send([frame(1, longest + over), frame(2, longest)]) == 2
    assert link.b.consumers[0].receive() == [frame(2, longest)]
    assert link.ring().produced.drops == {"oversize": 1}


def test_a_full_ring_takes_what_fits_and_says_how_much(link: Link) -> None:
    frames = [frame(number, 60) for number in range(100)]
    assert link.a.producers[0].send(frames) == 64
    assert link.a.producers[0].send(frames[64:]) == 0
    assert link.b.consumers[0].receive(10) == frames[:10]
    assert link.a.producers[0].send(frames[64:]) == 10
    assert link.b.consumers[0].receive() == frames[10:74]
    assert link.ring().produced.drops == {}, "waiting is the caller's choice, and nothing was dropped"


def test_a_frame_of_many_slots_waits_for_all_of_them(link: Link) -> None:
    longest = frame(1, SMALL.shape().frame_max)
    assert link.a.producers[0].send([longest, longest, FRAME]) == 2
    assert link.b.consumers[0].receive(1) == [longest]
    assert link.a.producers[0].send([FRAME, longest]) == 1
    assert link.b.consumers[0].receive() == [longest, FRAME]


def test_what_a_caller_gives_up_is_counted_with_the_next_send(link: Link) -> None:
    link.a.producers[0].drop(DropCause.FULL, 7)
    link.a.producers[0].drop(DropCause.SINK, 2)
    assert link.a.producers[0].send([FRAME]) == 1
    assert link.ring().produced.drops == {"full": 7, "sink": 2}
    assert link.ring().offered == 10


def test_an_empty_send_and_an_empty_ring_are_nothing(link: Link) -> None:
    assert link.a.producers[0].send([]) == 0
    assert link.b.consumers[0].receive() == []
    assert link.b.consumers[0].receive(0) == []


def publish(link: Link, made: Any, data: bytes) -> None:
    """Claim one frame in place, fill it piece by piece, publish it: as C code does."""
    producer = link.a.producers[0].native
    assert lib.rway_ring_claim(producer, made, 1) == 1
    pieces = ffi.new("struct rway_piece[]", lib.RWAY_PIECES_MAX)
    at = 0
    for number in range(lib.rway_producer_pieces(producer, made, pieces)):
        ffi.memmove(pieces[number].data, data[at : at + pieces[number].len], pieces[number].len)
        at += pieces[number].len
    assert at == len(data)
    lib.rway_ring_publish(producer, made, 1)


@pytest.mark.parametrize("length", [14, 60, 256, 300, 8188])
def test_a_vlan_tag_that_was_taken_off_is_put_back(link: Link, length: int) -> None:
    data = frame(3, length)
    publish(link, in_place(len=length, flags=lib.RWAY_FLAG_VLAN, vlan=0xA123), data)
    assert link.b.consumers[0].receive() == [data[:12] + b"\x81\x00\xa1\x23" + data[12:]]
    assert link.ring().consumed.bytes == length


@pytest.mark.parametrize("pushed", [0, 1, 4, 14, 63, 64])
@pytest.mark.parametrize("length", [64, 300, 320, 321, 8192])
def test_headers_pushed_into_the_headroom_arrive_before_the_rest(link: Link, length: int, pushed: int) -> None:
    data = frame(4, length)
    made = in_place(len=length, pushed=pushed)
    publish(link, made, data)
    assert made[0].slots == max(1, -(-(length - pushed) // 256))
    assert link.b.consumers[0].receive() == [data]


def test_more_pushed_than_there_is_headroom_is_not_claimed(link: Link) -> None:
    producer = link.a.producers[0].native
    assert lib.rway_ring_claim(producer, in_place(len=300, pushed=65), 1) == 0
    assert lib.rway_producer_fits(producer, 300, 65) == lib.RWAY_DROP_OVERSIZE + 1
    assert lib.rway_producer_fits(producer, 13, 0) == lib.RWAY_DROP_RUNT + 1
    assert lib.rway_producer_fits(producer, 300, 64) == 0


def test_a_checksum_left_to_the_receiver_is_finished_with_and_without_a_tag(link: Link) -> None:
    offload = ffi.new("struct rway_offload *", {"flags": lib.RWAY_EXT_CSUM, "csum_start": 34, "csum_offset": 6})
    for flags in (0, lib.RWAY_FLAG_VLAN):
        data = bytearray(frame(5, 201))
        data[40:42] = b"\0\0"
        made = in_place(len=201, flags=flags)
        producer = link.a.producers[0].native
        assert lib.rway_ring_claim(producer, made, 1) == 1
        ffi.memmove(made[0].data, bytes(data), 201)
        assert lib.rway_frame_set_offload(producer, made, offload) == 0
        lib.rway_ring_publish(producer, made, 1)
        (got,) = link.b.consumers[0].receive()
        segment = got[34 + (4 if flags else 0) :] + b"\0"
        total = sum(int.from_bytes(segment[at : at + 2], "big") for at in range(0, 167, 2))
        assert total % 0xFFFF == 0


def test_what_is_claimed_and_not_published_is_given_back(link: Link) -> None:
    producer = link.a.producers[0].native
    frames = ffi.new("struct rway_frame[4]")
    for made in frames:
        made.len = 1000
    assert lib.rway_ring_claim(producer, frames, 4) == 4
    assert lib.rway_producer_room(producer) == 64 - 16
    lib.rway_ring_publish(producer, frames, 1)
    assert lib.rway_producer_room(producer) == 64 - 4
    assert [len(got) for got in link.b.consumers[0].receive()] == [1000]


def test_a_claim_can_be_shortened_or_given_back_whole(link: Link) -> None:
    producer = link.a.producers[0].native
    made = in_place(len=8000)
    assert lib.rway_ring_claim(producer, made, 1) == 1
    lib.rway_ring_trim(producer, made, 300)
    assert (made[0].len, made[0].slots, lib.rway_producer_room(producer)) == (300, 2, 62)
    lib.rway_ring_publish(producer, made, 1)
    other = in_place(len=8000)
    assert lib.rway_ring_claim(producer, other, 1) == 1
    lib.rway_ring_trim(producer, other, 0)
    assert lib.rway_producer_room(producer) == 62
    assert [len(got) for got in link.b.consumers[0].receive()] == [300]


def test_frames_that_do_not_fit_the_callers_buffer_stay_in_the_ring(link: Link) -> None:
    assert link.a.producers[0].send([frame(number, 1000) for number in range(3)]) == 3
    bytes_, lens = ffi.new("uint8_t[2500]"), ffi.new("uint32_t[8]")
    assert lib.rway_frames_copy_out(link.b.consumers[0].native, bytes_, 2500, lens, 8) == 2
    assert bytes(ffi.buffer(bytes_, 2000)) == frame(0, 1000) + frame(1, 1000)
    assert (link.ring().in_flight, link.ring().consumed.frames) == (1, 2)
    assert link.b.consumers[0].receive() == [frame(2, 1000)]


def test_a_wait_ends_by_its_timeout_when_nothing_comes(link: Link) -> None:
    assert link.b.consumers[0].wait(0) is False
    started = time.monotonic()
    assert link.b.consumers[0].wait(0.05) is False
    assert time.monotonic() - started >= 0.05


def test_a_wait_returns_at_once_when_there_is_something_to_do(link: Link) -> None:
    assert link.a.producers[0].wait(0) is True
    link.a.producers[0].send([FRAME])
    assert link.b.consumers[0].wait(0) is True
    assert link.b.consumers[0].wait() is True


def test_a_bell_is_rung_only_for_who_sleeps(link: Link) -> None:
    for _ in range(10):
        link.a.producers[0].send([FRAME])
        assert len(link.b.consumers[0].receive()) == 1
    link.a.producers[0].drop(DropCause.FULL, 0)  # the next send publishes all counts
    link.a.producers[0].send([FRAME])
    assert link.ring().produced.bells == 0, "a bell for a consumer that did not sleep"
    link.b.consumers[0].receive()
    assert link.b.consumers[0].wait(0) is False
    link.a.producers[0].send([FRAME])
    link.a.producers[0].send([FRAME])
    link.a.producers[0].drop(DropCause.FULL, 0)
    link.a.producers[0].send([FRAME])
    assert link.ring().produced.bells == 1, "one for the first frame, none for those behind it"


def test_a_sleeping_consumer_is_woken_by_the_bell_and_a_sleeping_producer_by_room(link: Link) -> None:
    """Both ends sleep without a bound of their own; 2000 frames through a ring of 64 slots need many a bell."""
    frames = [frame(number, 60 + number % 700) for number in range(2000)]
    got: list[bytes] = []

    def consume() -> None:
        while len(got) < len(frames):
            link.b.consumers[0].wait()
            got.extend(link.b.consumers[0].receive())

    consumer = threading.Thread(target=consume)
    consumer.start()
    left = frames
    while left:
        left = left[link.a.producers[0].send(left) :]
        if left:
            link.a.producers[0].wait()
    consumer.join()
    assert got == frames
    assert link.ring().balanced


def test_a_bell_makes_the_read_end_of_its_pipe_ready() -> None:
    fd = create_region(SMALL, LINK)
    wait_fd, ring_fd = make_bell()
    spare = [make_bell() for _ in range(11)]
    first = QueueBells(spare[0][0], ring_fd, spare[1][0], spare[1][1])
    queues = [first, *(QueueBells(*spare[at], *spare[at + 1]) for at in (2, 6))]
    used = {descriptor for bells in queues for descriptor in vars(bells).values()}
    a = Region.attach(fd, SMALL, LINK, 0, 1, queues)
    b = Region.attach(fd, SMALL, LINK, 1, 1)
    assert b.consumers[0].wait(0) is False, "it is armed now"
    with selectors.DefaultSelector() as selector:
        selector.register(wait_fd, selectors.EVENT_READ)
        assert selector.select(0) == []
        a.producers[0].send([FRAME])
        assert len(selector.select(10)) == 1
    a.detach()
    b.detach()
    for descriptor in [fd, wait_fd, *(end for bell in spare for end in bell if end not in used)]:
        os.close(descriptor)
