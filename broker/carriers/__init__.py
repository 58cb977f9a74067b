"""What the broker makes and hands out for an end: CARRIER.py for each carrier, found by that name.

Bells belong to the end that sleeps on them, and so to its carrier; the memory belongs to none.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from ringway.control.carriers import Carriers


class Bell(NamedTuple):
    """Descriptors: what the sleeper waits on, and what the other end rings it by."""

    wait: int
    ring: int


class EndBells(NamedTuple):
    """What wakes one end, for one queue."""

    frames: Bell
    room: Bell


class CarrierFile(Protocol):
    """What CARRIER.py holds. Descriptors stay the broker's."""

    def offer(self, runtime: Path) -> Carriers:
        """What an offer says of how the end is to be had."""

    def descriptor_count(self, queues: int) -> int:
        """How many the broker has for one end's bells."""

    def make_bells(self, queues: int, owned: list[int]) -> list[EndBells]:
        """One end's bells; each descriptor is added to `owned` as soon as it is there. OSError, RegionError."""

    def adopt(self, descriptors: Sequence[int]) -> list[EndBells]:
        """The bells whose `descriptor_count` descriptors, in their order, a broker before this one had."""

    def descriptors(self, region_fd: int, own: Sequence[EndBells], others: Sequence[EndBells]) -> list[int]:
        """What the end is handed, with the other end's bells to ring."""


def carrier(name: str) -> CarrierFile:
    return cast("CarrierFile", importlib.import_module(f"{__name__}.{name}"))
