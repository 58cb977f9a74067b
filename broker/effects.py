"""Carries a plan's effects out and holds what they make: memory and bells, by link."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from ringway.broker.config import MIB, LinkConfig
from ringway.broker.fabric import Effect, MakeLink, RemoveLink
from ringway.control.errors import ControlError
from ringway.control.messages import Cause
from ringway.shm import RefusalCause, RegionError, create_region, make_bell

RESERVE: Final = 256  # descriptors for sockets, agents and the interpreter
CONNECTIONS: Final = 2  # descriptors by which a link's ends are held


@dataclass
class RingBells:
    """The two pipes of one ring, as (read end, write end)."""

    wake_consumer: tuple[int, int]
    wake_producer: tuple[int, int]


@dataclass
class Held:
    """What exists of one link. Descriptors are the broker's own; agents get duplicates."""

    config: LinkConfig
    region_fd: int = -1
    huge: bool = False
    note: str = ""
    bells: tuple[list[RingBells], list[RingBells]] = field(default_factory=lambda: ([], []))  # by producing side, queue
    owned: list[int] = field(default_factory=list)

    def statement(self) -> str:
        """What the link's users have to know of its size."""
        frame_max = self.config.geometry.shape().frame_max
        pages = "huge" if self.huge else "ordinary"
        memory = f"{self.memory / MIB:.1f} MiB"
        return f"link {self.config.name!r}: frames up to {frame_max} bytes, {memory} of {pages} pages"

    @property
    def memory(self) -> int:
        """Bytes taken."""
        shape = self.config.geometry.shape()
        return shape.region_size if self.huge else shape.memory

    def descriptors(self, side: int) -> list[int]:
        """What the end on `side` is handed, in the order of control/handover.py."""
        handed = [self.region_fd]
        for ours, theirs in zip(self.bells[side], self.bells[1 - side], strict=True):
            handed += [ours.wake_producer[0], ours.wake_consumer[1], theirs.wake_consumer[0], theirs.wake_producer[1]]
        return handed


def descriptors_of(link: LinkConfig) -> int:
    return 1 + 8 * link.geometry.queues + CONNECTIONS


def raise_descriptor_limit() -> int:
    """Soft limit to the hard one. How many descriptors this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else sys.maxsize


class Resources:
    def __init__(self, descriptors_max: int) -> None:
        self._descriptors_max = descriptors_max
        self.links: dict[int, Held] = {}  # by link id

    def carry_out(self, effects: Sequence[Effect]) -> list[str]:
        """All effects in order, or ControlError and everything as before. Returns notes for the user."""
        self._check_descriptors(effects)
        made: list[int] = []
        notes: list[str] = []
        for effect in effects:
            match effect:
                case MakeLink(link_id, config):
                    try:
                        held = self._make(link_id, config)
                    except ControlError:
                        for undone in reversed(made):
                            self._drop(undone)
                        raise
                    made.append(link_id)
                    notes += [held.note] if held.note else []
                    notes.append(held.statement())
                case RemoveLink(link_id):  # cannot fail, and comes after all that can: nothing to undo
                    self._drop(link_id)
        return notes

    def close(self) -> None:
        for link_id in list(self.links):
            self._drop(link_id)

    def _make(self, link_id: int, config: LinkConfig) -> Held:
        held = Held(config)
        try:
            self._allocate(held, link_id)
            for direction in held.bells:
                for _ in range(config.geometry.queues):
                    pipes = []
                    for _ in range(2):
                        pipes.append(make_bell())
                        held.owned += pipes[-1]
                    direction.append(RingBells(*pipes))
        except (RegionError, OSError) as error:
            _close(held)
            message = f"link {config.name!r} cannot be made: {error}; nothing has been changed"
            raise ControlError(Cause.SYSTEM, message) from None
        self.links[link_id] = held
        return held

    def _allocate(self, held: Held, link_id: int) -> None:
        config = held.config
        if config.huge_pages:
            try:
                held.region_fd = create_region(config.geometry, link_id, huge=True)
                held.huge = True
            except RegionError as error:
                if error.cause is not RefusalCause.NO_HUGE:
                    raise
                held.note = (
                    f"link {config.name!r} has ordinary pages: huge pages were asked for and there are not enough; "
                    "raise /proc/sys/vm/nr_hugepages, remove the link and apply again"
                )
        if not held.huge:
            held.region_fd = create_region(config.geometry, link_id)
        held.owned.append(held.region_fd)

    def _drop(self, link_id: int) -> None:
        _close(self.links.pop(link_id))

    def _check_descriptors(self, effects: Sequence[Effect]) -> None:
        wanted = sum(descriptors_of(effect.config) for effect in effects if isinstance(effect, MakeLink))
        taken = sum(descriptors_of(held.config) for held in self.links.values())
        if wanted and wanted + taken + RESERVE > self._descriptors_max:
            message = (
                f"the links need {wanted} more descriptors, {taken} are taken, {RESERVE} are kept back, and the broker "
                f"may have {self._descriptors_max}: raise its hard limit (ulimit -Hn, LimitNOFILE) or make fewer links"
            )
            raise ControlError(Cause.LIMIT, message)


def _close(held: Held) -> None:
    for fd in held.owned:
        os.close(fd)
    held.owned.clear()
