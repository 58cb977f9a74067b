"""Numbered frames: each says of which direction and incarnation of a sender it is, and as the how-manieth."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

_HEAD = struct.Struct("!12sHBBHHHBBH4s4sHHHHIIQ")  # Ethernet, IPv4, UDP; then direction, incarnation, number
_NAME = struct.Struct("!IIQ")
_NAME_AT = _HEAD.size - _NAME.size
_TAIL = struct.Struct("!Q")
_ADDRESSES = bytes.fromhex("02000000000b02000000000a")
_CLIENT, _SERVER = bytes((10, 66, 0, 1)), bytes((10, 66, 0, 2))

FLOWS = 8
LEN_MIN = _HEAD.size + _TAIL.size
DENIED_EVERY = 5  # prime to FLOWS, so that each flow has denied frames
DENIED_PORT = 81


class DamagedFrameError(Exception):
    """A frame of ours whose bytes are not those that were sent."""


class Seen(NamedTuple):
    direction: int
    incarnation: int
    number: int


def is_denied(number: int) -> bool:
    """Will the firewall's rule drop it? Only where a firewall is on the way."""
    return number % DENIED_EVERY == 0


def flow_of(number: int) -> int:
    return number % FLOWS


class Maker:
    """`lengths`: bytes of frame n are lengths[n % len(lengths)], each LEN_MIN at least.

    `denied`: some are as the firewall's rule is; they are of flows of their own, because their port is another.
    """

    def __init__(self, direction: int, incarnation: int, lengths: Sequence[int], denied: bool) -> None:
        self._direction = direction
        self._incarnation = incarnation
        self._lengths = lengths
        self._denied = denied

    def make(self, number: int) -> bytes:
        length = self._lengths[number % len(self._lengths)]
        port = DENIED_PORT if self._denied and is_denied(number) else 80
        # Flows of one direction only: a kernel moves a flow to another queue of a tap when its answers come by that.
        flow = 1000 + 100 * self._direction + flow_of(number)
        head = _HEAD.pack(
            *(_ADDRESSES, 0x0800),
            *(0x45, 0, length - 14, 0, 0, 64, 17, 0, _CLIENT, _SERVER),
            *(flow, port, length - 34, 0),
            *(self._direction, self._incarnation, number),
        )
        return head + bytes(length - LEN_MIN) + _TAIL.pack(number)


def read(frame: bytes, direction: int, lengths: Sequence[int]) -> Seen | None:
    """Whose frame it is; None when it is nobody's here, such as the kernel's own. DamagedFrameError."""
    if frame[:12] != _ADDRESSES or len(frame) < LEN_MIN:
        return None
    seen = Seen(*_NAME.unpack_from(frame, _NAME_AT))
    expected = lengths[seen.number % len(lengths)]
    (number,) = _TAIL.unpack_from(frame, len(frame) - _TAIL.size)
    if len(frame) != expected or number != seen.number or seen.direction != direction:
        raise DamagedFrameError(
            f"{seen}: {len(frame)} bytes that end with {number}, where direction {direction} has {expected}"
        )
    return seen
