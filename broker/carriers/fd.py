"""The carrier "fd": descriptors over the handover socket; the bells are pipes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ringway.broker.carriers import Bell, EndBells
from ringway.control.carriers import Fd
from ringway.control.runtime import handover_path
from ringway.shm import make_bell

PER_QUEUE: Final = 4  # descriptors of an end's two bells


def offer(runtime: Path) -> Fd:
    return Fd(str(handover_path(runtime)))


def descriptor_count(queues: int) -> int:
    return PER_QUEUE * queues


def make_bells(queues: int, owned: list[int]) -> list[EndBells]:
    return [EndBells(_make_bell(owned), _make_bell(owned)) for _ in range(queues)]


def _make_bell(owned: list[int]) -> Bell:
    bell = Bell(*make_bell())
    owned += bell
    return bell


def adopt(descriptors: Sequence[int]) -> list[EndBells]:
    queues = (descriptors[at : at + PER_QUEUE] for at in range(0, len(descriptors), PER_QUEUE))
    return [EndBells(Bell(*queue[:2]), Bell(*queue[2:])) for queue in queues]


def descriptors(region_fd: int, own: Sequence[EndBells], others: Sequence[EndBells]) -> list[int]:
    """In the order of control/handover.py."""
    handed = [region_fd]
    for mine, other in zip(own, others, strict=True):
        handed += [mine.room.wait, other.frames.ring, mine.frames.wait, other.room.ring]
    return handed
