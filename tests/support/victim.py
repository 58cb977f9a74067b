"""One honest end of a link whose other end is whoever writes into its carrier."""

from __future__ import annotations

import pytest

from ringway.shm import BreakCause, Region, RegionBrokenError, SideState
from tests.support.carrier import Carrier

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


def after_ten_frames(victim: Victim) -> None:
    victim.publish(*[{}] * 10)
    assert len(victim.receive()) == 10
