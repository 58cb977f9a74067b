"""How an offered end is attached: CARRIER.py for each carrier, found by that name."""

from __future__ import annotations

import importlib
from typing import NamedTuple, Protocol, cast

from ringway.agent.lifeline import Lifeline
from ringway.control.carriers import carrier_of
from ringway.control.messages import Offer
from ringway.shm import Region


class Attached(NamedTuple):
    """An end that was taken; the caller detaches the region and then closes the lifeline."""

    region: Region
    lifeline: Lifeline
    incarnation: int


class CarrierFile(Protocol):
    """What CARRIER.py holds."""

    def attach(self, vm: str, offer: Offer) -> Attached:
        """Take the end and map its memory; what fails leaves nothing behind. ControlError, RegionError."""


def attach(vm: str, offer: Offer) -> Attached:
    carrier = cast("CarrierFile", importlib.import_module(f"{__name__}.{carrier_of(offer.carrier)}"))
    return carrier.attach(vm, offer)
