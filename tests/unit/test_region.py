"""A region is made, attached, read, detached and attached again; who holds nothing any more is told so."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

import pytest

from ringway.shm import (
    BreakCause,
    Geometry,
    QueueBells,
    RefusalCause,
    Region,
    RegionError,
    SideState,
    create_region,
    make_bell,
    read_region,
)

LINK = 5
GEOMETRY = Geometry(queues=2, slot_count=64, slot_payload=256, headroom=64)
FRAME = bytes(range(60))


@pytest.fixture
def fd() -> Iterator[int]:
    made = create_region(GEOMETRY, LINK)
    yield made
    os.close(made)


def attach(fd: int, side: int, incarnation: int = 1) -> Region:
    return Region.attach(fd, GEOMETRY, LINK, side, incarnation)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_a_fresh_region_reads_as_detached_and_empty(fd: int) -> None:
    snapshot = read_region(fd)
    assert (snapshot.geometry, snapshot.link_id) == (GEOMETRY, LINK)
    for side in snapshot.sides:
        assert (side.state, side.cause, side.queues_served) == (SideState.DETACHED, BreakCause.WHOLE, 0)
    assert len(snapshot.rings) == 4
    for ring in snapshot.rings:
        assert (ring.head, ring.tail, ring.in_flight, ring.offered, ring.delivered) == (0, 0, 0, 0, 0)
        assert ring.balanced


def test_each_side_says_of_itself_what_the_other_and_a_tool_read(fd: int) -> None:
    with attach(fd, 0, incarnation=3) as a:
        with attach(fd, 1, incarnation=2**32 - 1) as b:
            assert a.peer() == read_region(fd).sides[1]
            assert b.peer() == read_region(fd).sides[0]
            assert (a.peer().state, a.peer().incarnation) == (SideState.ATTACHED, 2**32 - 1)
            assert (b.peer().state, b.peer().incarnation, b.peer().queues_served) == (SideState.ATTACHED, 3, 0b11)
        assert (a.peer().state, a.peer().queues_served) == (SideState.DETACHED, 0)


def test_a_detached_region_refuses_everything_and_detaching_twice_is_harmless(fd: int) -> None:
    region = attach(fd, 0)
    region.detach()
    region.detach()
    assert not region.attached
    producer, consumer = region.producers[0], region.consumers[0]
    for call in (
        lambda: producer.send([FRAME]),
        lambda: producer.wait(0),
        consumer.receive,
        lambda: consumer.wait(0),
        region.peer,
        lambda: region.broken,
        lambda: region.native,
    ):
        with pytest.raises(ValueError, match="detached"):
            call()


def test_leaving_the_with_block_detaches_and_leaves_no_mapping(fd: int) -> None:
    with attach(fd, 0) as region:
        assert read_region(fd).sides[0].state is SideState.ATTACHED
    assert not region.attached
    assert read_region(fd).sides[0].state is SideState.DETACHED
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:  # noqa: PTH123
        assert "memfd:ringway" not in maps.read()


def test_an_end_that_comes_back_continues_with_the_frames_still_in_the_ring(fd: int) -> None:
    with attach(fd, 1) as b:
        with attach(fd, 0) as a:
            assert a.producers[1].send([bytes([number]) * 600 for number in range(10)]) == 10
            assert len(b.consumers[1].receive(4)) == 4
        assert read_region(fd).rings[1].in_flight == 6
        with attach(fd, 0, incarnation=2) as a:
            assert b.peer().incarnation == 2
            assert a.producers[1].send([bytes([number]) * 600 for number in range(10, 13)]) == 3
    with attach(fd, 1, incarnation=2) as b:
        assert b.consumers[1].receive() == [bytes([number]) * 600 for number in range(4, 13)]
    ring = read_region(fd).rings[1]
    assert (ring.produced.frames, ring.consumed.frames, ring.in_flight) == (13, 13, 0)
    assert ring.produced.bytes == ring.consumed.bytes == 13 * 600


def test_a_restart_keeps_the_counts_of_what_was_dropped(fd: int) -> None:
    for _ in range(3):
        with attach(fd, 0) as a:
            assert a.producers[0].send([b"short", bytes(20000)]) == 2
    ring = read_region(fd).rings[0]
    assert ring.produced.drops == {"runt": 3, "oversize": 3}
    assert (ring.offered, ring.produced.frames) == (6, 0)


def test_a_hundred_attachments_leave_nothing_behind(fd: int) -> None:
    before = open_descriptors()
    for incarnation in range(100):
        with attach(fd, 0, incarnation) as a, attach(fd, 1, incarnation) as b:
            assert a.producers[0].send([FRAME]) == 1
            assert b.consumers[0].receive() == [FRAME]
    assert open_descriptors() == before


def bells_of_a_side() -> tuple[list[QueueBells], list[int]]:
    """Bells for both queues, and the ends of the pipes that stay here."""
    queues, kept = [], []
    for _ in range(GEOMETRY.queues):
        producer_wait, ring_producer = make_bell()
        consumer_wait, ring_consumer = make_bell()
        peers_consumer, producer_ring = make_bell()
        peers_producer, consumer_ring = make_bell()
        queues.append(QueueBells(producer_wait, producer_ring, consumer_wait, consumer_ring))
        kept += [ring_producer, ring_consumer, peers_consumer, peers_producer]
    return queues, kept


def test_bells_belong_to_the_region_until_it_is_detached(fd: int) -> None:
    before = open_descriptors()
    queues, kept = bells_of_a_side()
    region = Region.attach(fd, GEOMETRY, LINK, 0, 1, queues)
    assert open_descriptors() == before + 16
    region.detach()
    assert open_descriptors() == before + 8
    for descriptor in kept:
        os.close(descriptor)


@pytest.mark.parametrize("fault", ["another link", "too few", "a file"])
def test_bells_are_closed_also_when_the_attach_fails(fd: int, fault: str) -> None:
    before = open_descriptors()
    queues, kept = bells_of_a_side()
    if fault == "too few":
        for bell in dataclasses.astuple(queues.pop()):
            os.close(bell)
    elif fault == "a file":
        os.dup2(fd, queues[1].consumer_wait)
    with pytest.raises(RegionError) as caught:
        Region.attach(fd, GEOMETRY, 99 if fault == "another link" else LINK, 0, 1, queues)
    error = caught.value
    assert (error.cause, error.what) == {
        "another link": (RefusalCause.LINK, "link_id"),
        "too few": (RefusalCause.ARGUMENT, "number of bells"),
        "a file": (RefusalCause.ARGUMENT, "kind of a bell"),
    }[fault]
    for descriptor in kept:
        os.close(descriptor)
    assert open_descriptors() == before
    assert read_region(fd).sides[0].state is SideState.DETACHED


def test_regions_beside_each_other_do_not_mix() -> None:
    made = [create_region(GEOMETRY, link) for link in range(20)]
    ends = [
        (Region.attach(fd, GEOMETRY, link, 0), Region.attach(fd, GEOMETRY, link, 1)) for link, fd in enumerate(made)
    ]
    for link, (a, _) in enumerate(ends):
        assert a.producers[0].send([bytes([link]) * 60]) == 1
    for link, (a, b) in enumerate(ends):
        assert b.consumers[0].receive() == [bytes([link]) * 60]
        a.detach()
        b.detach()
        assert read_region(made[link]).link_id == link
        os.close(made[link])
