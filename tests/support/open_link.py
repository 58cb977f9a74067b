"""A link whose two ends are in one process: no broker, no agent, only its region."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ringway.shm import Geometry, QueueBells, Region, RingSnapshot, create_region, make_bell, read_region

LINK = 5  # its id


class Link:
    """Both ends of a link in one process."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.fd = create_region(geometry, LINK)
        bells = {side: [(make_bell(), make_bell()) for _ in range(geometry.queues)] for side in (0, 1)}
        self.a = Region.attach(self.fd, geometry, LINK, 0, 1, self._bells(bells, 0))
        self.b = Region.attach(self.fd, geometry, LINK, 1, 1, self._bells(bells, 1))

    def _bells(self, bells: dict[int, list[Any]], side: int) -> list[QueueBells]:
        """bells[side][queue]: of the ring that side produces, its producer's bell and its consumer's."""
        made = []
        for queue in range(self.geometry.queues):
            own, peers = bells[side][queue], bells[1 - side][queue]
            made.append(QueueBells(own[0][0], own[1][1], peers[1][0], peers[0][1]))
        return made

    def ring(self, side: int = 0, queue: int = 0) -> RingSnapshot:
        (found,) = [r for r in read_region(self.fd).rings if (r.producing_side, r.queue) == (side, queue)]
        return found

    def close(self) -> None:
        self.a.detach()
        self.b.detach()
        os.close(self.fd)


@contextmanager
def opened(geometry: Geometry) -> Iterator[Link]:
    made = Link(geometry)
    try:
        yield made
    finally:
        made.close()
