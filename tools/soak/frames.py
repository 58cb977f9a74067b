"""Numbered frames: each says of which direction and incarnation of a sender it is, and as the how-manieth."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

_HEAD = struct.Struct("!12sHBBHHHBBH4s4sHHHHIIQ")  # Ethernet, IPv4, UDP; then direction, incarnation, number
_NAME = struct.Struct("!IIQ")
_NAME_AT = _HEAD.size - _NAME.size
_TAIL = struct.Struct("!Q")
_OURS = bytes.fromhex("0200000000")  # how the source addresses of all begin
_EVERYBODY = b"\xff" * 6
_CLIENT, _SERVER = bytes((10, 66, 0, 1)), bytes((10, 66, 0, 2))

FLOWS = 8
LEN_MIN = _HEAD.size + _TAIL.size
DENIED_EVERY = 5  # prime to FLOWS, so that each flow has denied frames
BROADCAST_EVERY = 7  # likewise
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


@dataclass(frozen=True)
class Stream:
    """What the frames of a direction look like.

    `lengths`: bytes of frame n are lengths[n % len(lengths)], each LEN_MIN at least. `denied`: some are as the
    firewall's rule is; they are of flows of their own, because their port is another. `broadcasts`: some are for
    everybody.
    """

    direction: int
    lengths: tuple[int, ...]
    source: int = 0x0A  # the last byte of the Ethernet address
    target: int = 0x0B
    denied: bool = False
    broadcasts: bool = False

    def length(self, number: int) -> int:
        return self.lengths[number % len(self.lengths)]

    def addresses(self, number: int) -> bytes:
        to_all = self.broadcasts and number % BROADCAST_EVERY == 0
        target = _EVERYBODY if to_all else _OURS + bytes([self.target])
        return target + _OURS + bytes([self.source])


class Maker:
    def __init__(self, stream: Stream, incarnation: int) -> None:
        self.stream = stream
        self.incarnation = incarnation

    def make(self, number: int) -> bytes:
        stream = self.stream
        length = stream.length(number)
        port = DENIED_PORT if stream.denied and is_denied(number) else 80
        # Flows of one direction only: a kernel moves a flow to another queue of a tap when its answers come by that.
        flow = 1000 + 100 * stream.direction + flow_of(number)
        head = _HEAD.pack(
            *(stream.addresses(number), 0x0800),
            *(0x45, 0, length - 14, 0, 0, 64, 17, 0, _CLIENT, _SERVER),
            *(flow, port, length - 34, 0),
            *(stream.direction, self.incarnation, number),
        )
        return head + bytes(length - LEN_MIN) + _TAIL.pack(number)


def read(frame: bytes, streams: Iterable[Stream]) -> Seen | None:
    """Whose frame it is, of those that may come; None when it is nobody's here, such as the kernel's own.

    DamagedFrameError.
    """
    if frame[6:11] != _OURS or len(frame) < LEN_MIN:
        return None
    seen = Seen(*_NAME.unpack_from(frame, _NAME_AT))
    (number,) = _TAIL.unpack_from(frame, len(frame) - _TAIL.size)
    for stream in streams:
        whole = len(frame) == stream.length(seen.number) and frame[:12] == stream.addresses(seen.number)
        if stream.direction == seen.direction and number == seen.number and whole:
            return seen
    raise DamagedFrameError(f"{seen}: {len(frame)} bytes that end with {number}, where {list(streams)} are expected")
