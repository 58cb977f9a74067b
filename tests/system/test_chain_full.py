"""A firewall whose way out is full: it waits while the receiver moves, and so does who sends through it."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest

from ringway.agent import Port
from ringway.control.messages import RingShown
from tests.support.fabric import Fabric
from tests.support.fabrics import applications_and_firewall
from tests.support.waiting import until

SLOTS = 64
FRAMES = 20 * SLOTS


def fabric_text(queues: tuple[int, int], second: str = "") -> str:
    """`second`: more keys of the second link."""
    one, two = (f"slots = {SLOTS}\nqueues = {count}\n" for count in queues)
    return applications_and_firewall(one=one, two=two + second)


def numbered(count: int) -> list[bytes]:
    return [bytes(12) + b"\x88\xb5" + number.to_bytes(4, "big") + bytes(42) for number in range(count)]


def receive_few_by_few(port: Port, count: int, queue: int) -> list[bytes]:
    got: list[bytes] = []
    for size in itertools.cycle(range(1, 8)):
        if len(got) == count:
            return got
        frames = port.receive(min(size, count - len(got)), queue=queue, timeout=30)
        assert frames, f"{len(got)} of {count} frames came"
        got += frames
    raise AssertionError


def dropped_as_full(fabric: Fabric, link: str) -> list[int]:
    rings: list[RingShown] = fabric.quiet(link).rings
    return [ring.drops_produced.get("full", 0) for ring in rings if ring.producing_side == 0]


@pytest.mark.parametrize("queues", [1, 4])
def test_nothing_is_dropped_between_links_of_equal_queues_when_the_receiver_is_slow(
    fabric: Fabric, queues: int
) -> None:
    fabric.apply(fabric_text((queues, queues)))
    fabric.agent("firewall")
    left, right = fabric.port("left"), fabric.port("right")
    frames = numbered(FRAMES)
    with ThreadPoolExecutor(2 * queues) as threads:
        receiving = [threads.submit(receive_few_by_few, right, FRAMES, queue) for queue in range(queues)]
        sending = [threads.submit(left.send, frames, queue=queue, timeout=60) for queue in range(queues)]
        assert [sent.result() for sent in sending] == [FRAMES] * queues
        assert all(received.result() == frames for received in receiving)
    assert dropped_as_full(fabric, "one") == dropped_as_full(fabric, "two") == [0] * queues


def test_a_receiver_that_stands_still_stops_neither_sender_nor_the_other_direction(fabric: Fabric) -> None:
    fabric.apply(fabric_text((1, 1)))
    fabric.agent("firewall")
    left, right = fabric.port("left"), fabric.port("right")
    assert left.send(numbered(FRAMES), timeout=60) == FRAMES, "the firewall waits without end"
    frames = numbered(SLOTS)
    assert right.send(frames, timeout=60) == SLOTS
    assert receive_few_by_few(left, SLOTS, 0) == frames
    assert right.receive(SLOTS, timeout=30) == numbered(FRAMES)[:SLOTS], "what was there first"
    left.send(frames, timeout=60)
    assert receive_few_by_few(right, SLOTS, 0) == frames
    assert dropped_as_full(fabric, "two") == [FRAMES - SLOTS]


def test_links_of_different_queues_drop_so_that_one_queue_does_not_hold_up_the_others(fabric: Fabric) -> None:
    fabric.apply(fabric_text((4, 1)))
    fabric.agent("firewall")
    left = fabric.port("left")
    fabric.port("right")
    for queue in range(4):
        assert left.send(numbered(SLOTS), queue=queue, timeout=60) == SLOTS
    fabric.quiet("one")


def what_it_does(fabric: Fabric) -> dict[str, str | None]:
    """When full, port by port of the firewall."""
    return {port.port: port.full for port in fabric.broker.vm("firewall").ports}


def test_a_link_that_is_to_drop_drops_at_once_and_may_say_otherwise_while_frames_wait(fabric: Fabric) -> None:
    fabric.apply(fabric_text((1, 1), 'full = "drop"'))
    fabric.agent("firewall")
    left, right = fabric.port("left"), fabric.port("right")
    assert what_it_does(fabric) == {"inside": "wait", "outside": "drop"}
    assert left.send(numbered(FRAMES), timeout=60) == FRAMES
    until(lambda: fabric.ring("two").offered == FRAMES, "the firewall does not wait")
    link_id = fabric.broker.link("two").link_id
    assert fabric.ring("two").drops_produced == {"full": FRAMES - SLOTS}
    fabric.apply(fabric_text((1, 1), 'full = "wait"'))
    assert what_it_does(fabric) == {"inside": "wait", "outside": "wait"}
    assert fabric.broker.link("two").link_id == link_id, "the link stays"
    assert right.receive(SLOTS, timeout=30) == numbered(SLOTS)
    with ThreadPoolExecutor(1) as thread:
        sending = thread.submit(left.send, numbered(FRAMES), timeout=60)
        assert receive_few_by_few(right, FRAMES, 0) == numbered(FRAMES)
        assert sending.result() == FRAMES
    assert dropped_as_full(fabric, "two") == [FRAMES - SLOTS], "none more"


def test_a_forwarder_with_fewer_loops_than_queues_says_that_it_does_not_wait(fabric: Fabric) -> None:
    fabric.apply(fabric_text((4, 4), 'full = "wait"'))
    fabric.agent("firewall", None, "--loops", "2")
    fabric.port("left")
    ports = {port.port: port for port in fabric.broker.vm("firewall").ports}
    assert {port.full for port in ports.values()} == {"drop"}
    assert "its queues share loops (--loops)" in ports["outside"].cause
    assert ports["inside"].cause == "", "it was not asked to"
