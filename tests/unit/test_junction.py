"""What a killed forwarder held is counted by the next one, and only by one between the same links."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from ringway.shm import Geometry, Region, create_region, read_region

GEOMETRY = Geometry(queues=1, slot_count=64, slot_payload=256, headroom=64)
FRAMES = [bytes([number]) * 60 for number in range(10)]
IN, OUT, OTHER = 1, 2, 3


class Links:
    """A sender at IN; the ends of a forwarder from there to OUT, or to OTHER, each time anew."""

    def __init__(self) -> None:
        self.fds = {link: create_region(GEOMETRY, link) for link in (IN, OUT, OTHER)}
        self.sender = self._attach(IN, 0)
        self._stack = contextlib.ExitStack()

    def _attach(self, link: int, side: int) -> Region:
        return Region.attach(self.fds[link], GEOMETRY, link, side)

    def forwarder(self, out: int = OUT) -> tuple[Region, Region]:
        """It leaves as after a kill: detaching says nothing of a junction."""
        self._stack.close()
        return self._stack.enter_context(self._attach(IN, 1)), self._stack.enter_context(self._attach(out, 0))

    def restarts(self, link: int = OUT) -> int:
        return read_region(self.fds[link]).rings[0].produced.drops.get("restart", 0)

    def close(self) -> None:
        self._stack.close()
        self.sender.detach()
        for fd in self.fds.values():
            os.close(fd)


@pytest.fixture
def links() -> Iterator[Links]:
    with contextlib.closing(Links()) as made:
        yield made


def test_what_was_released_and_not_published_is_counted_once(links: Links) -> None:
    source, target = links.forwarder()
    assert source.join(target) == 0
    links.sender.producers[0].send(FRAMES)
    taken = source.consumers[0].receive()
    target.producers[0].send(taken[:4])
    source, target = links.forwarder()
    assert source.join(target) == 6
    assert links.restarts() == 6
    source, target = links.forwarder()
    assert source.join(target) == 0
    assert links.restarts() == 6


def test_a_forwarder_that_has_parted_leaves_nothing_to_be_counted(links: Links) -> None:
    source, target = links.forwarder()
    assert source.join(target) == 0
    source.part()
    links.sender.producers[0].send(FRAMES)
    source.consumers[0].receive()  # by an application, say
    source, target = links.forwarder()
    assert source.join(target) == 0
    assert links.restarts() == 0


def test_a_forwarder_to_another_link_counts_nothing(links: Links) -> None:
    source, target = links.forwarder()
    assert source.join(target) == 0
    links.sender.producers[0].send(FRAMES)
    source.consumers[0].receive()
    source, target = links.forwarder(OTHER)
    assert source.join(target) == 0
    assert links.restarts(OTHER) == 0


def test_more_than_a_kill_can_lose_is_not_counted(links: Links) -> None:
    source, target = links.forwarder()
    assert source.join(target) == 0
    for _ in range(10):
        links.sender.producers[0].send(FRAMES)
        source.consumers[0].receive()
    source, target = links.forwarder()
    assert source.join(target) is None
    assert links.restarts() == 0
