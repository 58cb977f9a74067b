"""The carrier "fd": memory and bells come as descriptors over the broker's handover socket."""

from __future__ import annotations

import os
from pathlib import Path

from ringway.agent.carriers import Attached
from ringway.agent.lifeline import Lifeline
from ringway.control.carriers import Fd
from ringway.control.handover import take
from ringway.control.messages import Claim, Offer
from ringway.shm import Geometry, QueueBells, Region


def attach(vm: str, offer: Offer) -> Attached:
    assert isinstance(offer.carrier, Fd)
    claim = Claim(vm=vm, link=offer.link, side=offer.side, ticket=offer.ticket)
    handover = take(Path(offer.carrier.handover), claim)
    lifeline = Lifeline(handover)
    granted = handover.geometry
    geometry = Geometry(granted.queues, granted.slot_count, granted.slot_payload, granted.headroom)
    bells = [QueueBells(*queue) for queue in handover.bells]
    try:
        region = Region.attach(
            *(handover.region_fd, geometry, handover.link_id, offer.side, handover.incarnation, bells)
        )
    except BaseException:
        lifeline.close()
        raise
    finally:
        os.close(handover.region_fd)
    return Attached(region, lifeline, handover.incarnation)
