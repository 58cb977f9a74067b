"""Carries a plan's effects out and holds what they make: memory and bells, by link."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from ringway.broker.carriers import EndBells, carrier
from ringway.broker.config.tables import MIB, LinkConfig
from ringway.broker.fabric import Effect, MakeLink, RemoveLink
from ringway.broker.keeper_entries import KeeperEntries, close_all, link_key
from ringway.broker.memory import available, huge_available
from ringway.control.errors import ControlError
from ringway.control.messages import Cause
from ringway.shm import RefusalCause, RegionError, carried_from, create_region

HUGE_PAGE: Final = 2 << 20  # bytes; st_blksize of memory that has them
RESERVE: Final = 512  # descriptors for sockets, agents, the interpreter; a keeper needs some 290 of its own
CONNECTIONS: Final = 2  # descriptors by which a link's ends are held
LIFELINES: Final = 2
HANDOVER: Final = 1  # descriptor of the keeper's, besides those of links
DESCRIPTORS_LEAST: Final = RESERVE + 1 + 8 + CONNECTIONS + LIFELINES


@dataclass
class Held:
    """What exists of one link. Descriptors are the broker's own; agents get duplicates."""

    config: LinkConfig
    region_fd: int = -1
    huge: bool = False
    bells: list[list[EndBells]] = field(default_factory=list)  # by side, queue
    owned: list[int] = field(default_factory=list)  # region, then what the carriers have for each side

    @property
    def note(self) -> str:
        if self.huge or not self.config.huge_pages:
            return ""
        return (
            f"link {self.config.name!r} has ordinary pages: huge pages were asked for and there are not enough; "
            "raise /proc/sys/vm/nr_hugepages, remove the link and apply again"
        )

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
        """What the end on `side` is handed."""
        return carrier(self.config.carriers[side]).descriptors(self.region_fd, self.bells[side], self.bells[1 - side])


def descriptors_of(link: LinkConfig) -> int:
    return 1 + sum(_bells_of(link)) + CONNECTIONS + LIFELINES


def _bells_of(link: LinkConfig) -> list[int]:
    """Descriptors of each side's bells."""
    return [carrier(name).descriptor_count(link.geometry.queues) for name in link.carriers]


def ordinary_memory(links: Sequence[LinkConfig]) -> int:
    """What they take that does not come out of the pool of huge pages. In their order, as they are made."""
    pool, wanted = huge_available(), 0
    for link in links:
        shape = link.shape()
        if link.huge_pages and shape.region_size <= pool:
            pool -= shape.region_size
        else:
            wanted += shape.memory
    return wanted


def check_memory(wanted: int) -> None:
    """ControlError when there is less. What replaced links give back does not count: new ones are made first."""
    there = available() if wanted else None
    if there is not None and wanted > there.bytes:
        message = (
            f"the links to be made need {wanted / MIB:.1f} MiB of memory, and {there}. Make fewer or smaller links "
            f"(queues, slots, slot_payload), remove others in an apply before, or {there.remedy}; "
            "nothing has been changed"
        )
        raise ControlError(Cause.LIMIT, message)


def memory_notes(links: Sequence[LinkConfig]) -> list[str]:
    """What this host says to a fabric with these links, for a process in this one's control groups."""
    wanted = ordinary_memory(links)
    there = available()
    if there is None:
        return []
    notes = [f"memory: {wanted / MIB:.1f} MiB for all links; here {there}"]
    try:
        check_memory(wanted)
    except ControlError as refusal:
        notes.append(f"note: a broker here would refuse it now: {refusal.message}")
    return notes


def raise_descriptor_limit() -> int:
    """Soft limit to the hard one. How many descriptors this process may have; ControlError for too few for any link."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if 0 <= hard < DESCRIPTORS_LEAST:
        message = (
            f"the broker and its keeper may have {hard} open files each, and need {DESCRIPTORS_LEAST} for one link: "
            "raise the hard limit (ulimit -Hn, LimitNOFILE)"
        )
        raise ControlError(Cause.LIMIT, message)
    return hard if hard != resource.RLIM_INFINITY else sys.maxsize


class Resources:
    """What it makes is put into the keeper too, before anybody can be handed it."""

    def __init__(self, descriptors_max: int, keeping: KeeperEntries) -> None:
        self._descriptors_max = descriptors_max
        self._keeping = keeping
        self.links: dict[int, Held] = {}  # by link id; lost ones are not there

    def carry_out(self, effects: Sequence[Effect], settle: Callable[[], None]) -> list[str]:
        """Make, `settle`, and only then remove. ControlError and everything as before when one of the first two fails.

        Returns notes for the user.
        """
        self.check(effects)
        made: list[int] = []
        notes: list[str] = []
        try:
            for effect in effects:
                if isinstance(effect, MakeLink):
                    made.append(effect.link_id)  # first, for what it had when it failed
                    held = self._make(effect)
                    notes += [held.note] if held.note else []
                    notes.append(held.statement())
            settle()
        except BaseException:
            for undone in reversed(made):
                self._drop(undone)
            raise
        for effect in effects:
            if isinstance(effect, RemoveLink):
                self._drop(effect.link_id)
        return notes

    def check(self, effects: Sequence[Effect]) -> None:
        """ControlError when there is not enough here for what is to be made."""
        self._check_descriptors(effects)
        check_memory(ordinary_memory([effect.config for effect in effects if isinstance(effect, MakeLink)]))

    def adopt(self, link_id: int, config: LinkConfig, descriptors: Sequence[int]) -> bool:
        """Take over what a broker before this one has made. False, and all closed, when it is not what it should be."""
        counts = _bells_of(config)
        if len(descriptors) != 1 + sum(counts):
            close_all(descriptors)
            self._keeping.drop(link_key(link_id))
            return False
        ends = descriptors[1 : 1 + counts[0]], descriptors[1 + counts[0] :]
        bells = [carrier(name).adopt(end) for name, end in zip(config.carriers, ends, strict=True)]
        huge = os.fstat(descriptors[0]).st_blksize >= HUGE_PAGE
        self._keep(link_id, Held(config, descriptors[0], huge, bells, list(descriptors)))
        return True

    def close(self) -> None:
        """Leave what the keeper holds to the next broker."""
        for held in self.links.values():
            close_all(held.owned)
        self.links.clear()

    def _keep(self, link_id: int, held: Held) -> None:
        self.links[link_id] = held
        self._keeping.put(link_key(link_id), b"", held.owned)

    def _make(self, effect: MakeLink) -> Held:
        config = effect.config
        held = Held(config)
        try:
            self._allocate(held, effect)
            for name in config.carriers:
                held.bells.append(carrier(name).make_bells(config.geometry.queues, held.owned))
        except (RegionError, OSError) as error:
            close_all(held.owned)
            message = f"link {config.name!r} cannot be made: {error}; nothing has been changed"
            raise ControlError(Cause.SYSTEM, message) from None
        self._keep(effect.link_id, held)
        return held

    def _allocate(self, held: Held, effect: MakeLink) -> None:
        geometry = effect.config.geometry
        old = self.links.get(effect.instead_of) if effect.instead_of is not None else None
        carried = carried_from(old.region_fd) if old is not None else None
        if effect.config.huge_pages:
            try:
                held.region_fd = create_region(geometry, effect.link_id, huge=True, carried=carried)
                held.huge = True
            except RegionError as error:
                if error.cause is not RefusalCause.NO_HUGE:
                    raise
        if not held.huge:
            if effect.config.huge_pages:  # may have been counted on: then these bytes were not
                check_memory(effect.config.shape().memory)
            held.region_fd = create_region(geometry, effect.link_id, carried=carried)
        held.owned.append(held.region_fd)

    def _drop(self, link_id: int) -> None:
        self._keeping.forget_link(link_id)
        held = self.links.pop(link_id, None)  # a lost one is not there
        if held is not None:
            close_all(held.owned)

    def _check_descriptors(self, effects: Sequence[Effect]) -> None:
        wanted = sum(descriptors_of(effect.config) for effect in effects if isinstance(effect, MakeLink))
        taken = sum(descriptors_of(held.config) for held in self.links.values())
        if not wanted:
            return
        if wanted + taken + RESERVE > self._descriptors_max:
            message = (
                f"the links need {wanted} more descriptors, {taken} are taken, {RESERVE} are kept back, and the broker "
                f"may have {self._descriptors_max}: raise its hard limit (ulimit -Hn, LimitNOFILE) or make fewer links"
            )
            raise ControlError(Cause.LIMIT, message)
        self._keeping.make_room(wanted + taken + HANDOVER)
