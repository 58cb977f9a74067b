"""The state of the fabric and what may happen to it: plans, offers, tickets, holders. Pure: no system calls.

A link's end, seen from its ticket and its holder:

    state       event              next
    free        offer              offered      (an earlier ticket of the end is void)
    offered     good ticket        held         (incarnation + 1, the ticket is used)
    offered     60 s pass          free
    held        offer              held         (a ticket for afterwards)
    held        any ticket         held         refused: already attached
    held        connection closes  free or offered
    any         bad ticket         unchanged    refused by name
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from hmac import compare_digest
from typing import Final

from ringway.broker.config import FabricConfig, LinkConfig, PortConfig
from ringway.control import messages
from ringway.control.errors import ControlError
from ringway.control.messages import Cause, Granted, Offer, Take
from ringway.control.rules import Stack
from ringway.shm import Geometry

TICKET_LIFE: Final = 60.0  # seconds
SIDE_NAMES: Final = ("a", "b")


@dataclass(frozen=True)
class MakeLink:
    link_id: int
    config: LinkConfig


@dataclass(frozen=True)
class RemoveLink:
    link_id: int
    name: str


Effect = MakeLink | RemoveLink


@dataclass(frozen=True)
class Plan:
    """What leads from the fabric as it is to the one asked for. Makes come first: until then all is as it was."""

    config: FabricConfig
    effects: list[Effect]
    made: list[str]
    removed: list[str]
    replaced: list[str]
    kept: list[str]


@dataclass
class Ticket:
    text: str
    expires: float


@dataclass
class EndState:
    """One end of a link that exists."""

    vm: str
    port: PortConfig
    incarnation: int = 0  # of the holder, or the last one
    ticket: Ticket | None = None
    used: str = ""  # the ticket its last holder came with
    holder: int | None = None  # the connection at the desk


@dataclass
class LinkState:
    link_id: int
    config: LinkConfig
    ends: tuple[EndState, EndState]

    def differs(self, config: LinkConfig, ports: tuple[PortConfig, PortConfig]) -> bool:
        return self.config != config or (self.ends[0].port, self.ends[1].port) != ports


@dataclass
class Changes:
    """What agents must hear of after a plan was committed, and the connections whose ends are gone."""

    withdrawn: list[tuple[str, messages.Withdrawn]] = field(default_factory=list)
    offered: list[tuple[str, str, int]] = field(default_factory=list)  # vm, link, side
    stacks: list[tuple[str, Stack | None]] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)


class Fabric:
    """Times are monotonic seconds, given by the caller."""

    def __init__(self, handover: str, new_ticket: Callable[[], str] = lambda: secrets.token_hex(16)) -> None:
        self._handover = handover
        self._new_ticket = new_ticket
        self.config: FabricConfig | None = None
        self.links: dict[str, LinkState] = {}

    def plan(self, config: FabricConfig, broken: Collection[str] = ()) -> Plan:
        """`broken` names links that carry nothing any more: they are made anew though nothing else changed."""
        plan = Plan(config, [], [], [], [], [])
        removals: list[Effect] = []
        for name, link in config.links.items():
            old = self.links.get(name)
            if old is not None and name not in broken and not old.differs(link, _ports(config, link)):
                plan.kept.append(name)
                continue
            if old is None:
                plan.made.append(name)
            else:
                plan.replaced.append(name)
                removals.append(RemoveLink(old.link_id, name))
            plan.effects.append(MakeLink(secrets.randbelow(2**63 - 1) + 1, link))
        for name, old in self.links.items():
            if name not in config.links:
                plan.removed.append(name)
                removals.append(RemoveLink(old.link_id, name))
        plan.effects.extend(removals)
        return plan

    def commit(self, plan: Plan) -> Changes:
        """Take over a plan whose effects have been carried out."""
        changes = Changes()
        old_vms = self.config.vms if self.config else {}
        for effect in plan.effects:
            if isinstance(effect, RemoveLink):
                self._forget(self.links.pop(effect.name), changes)
        for effect in plan.effects:
            if isinstance(effect, MakeLink):
                link = effect.config
                ends = [EndState(end.vm, plan.config.port(end)) for end in link.ends]
                self.links[link.name] = LinkState(effect.link_id, link, (ends[0], ends[1]))
                changes.offered.extend((end.vm, link.name, side) for side, end in enumerate(ends))
        for name in old_vms.keys() | plan.config.vms.keys():
            old, new = (vms[name].stack if name in vms else None for vms in (old_vms, plan.config.vms))
            if old != new:
                changes.stacks.append((name, new))
        self.config = plan.config
        return changes

    def stack(self, vm: str) -> Stack | None:
        return self.config.vms[vm].stack if self.config and vm in self.config.vms else None

    def ends_of(self, vm: str) -> Iterator[tuple[str, int]]:
        for name, link in self.links.items():
            for side, end in enumerate(link.ends):
                if end.vm == vm:
                    yield name, side

    def holders(self, vm: str) -> list[int]:
        """The connections by which the VM's ends are held now."""
        ends = (self.links[name].ends[side] for name, side in self.ends_of(vm))
        return [end.holder for end in ends if end.holder is not None]

    def offer(self, name: str, side: int, now: float) -> Offer:
        """Offer an end to its VM, with a fresh ticket; the one before it is void."""
        link = self.links[name]
        end = link.ends[side]
        end.ticket = Ticket(self._new_ticket(), now + TICKET_LIFE)
        port = end.port
        return Offer(
            link=name,
            link_id=link.link_id,
            port=port.name,
            side=side,
            incarnation=end.incarnation + 1,
            geometry=geometry_message(link.config.geometry),
            kind=port.kind,
            ticket=end.ticket.text,
            handover=self._handover,
            interface=port.interface,
            mtu=port.mtu,
            offload=port.offload,
            mac=port.mac,
            address=list(port.address),
        )

    def redeem(self, take: Take, holder: int, now: float) -> tuple[int, Granted]:
        """Let a connection hold an end against its ticket. A refusal changes nothing."""
        link = self.links.get(take.link)
        end = link.ends[take.side] if link else None
        if link is None or end is None or end.vm != take.vm or end.ticket is None:
            raise self._refusal(take, end)
        if not compare_digest(end.ticket.text, take.ticket):
            raise self._refusal(take, end)
        if end.ticket.expires <= now:
            message = f"the ticket for link {take.link!r} is older than {TICKET_LIFE:g} s: say hello again for another"
            raise ControlError(Cause.TICKET_EXPIRED, message)
        if end.holder is not None:
            message = f"side {SIDE_NAMES[take.side]} of link {take.link!r} is attached: detach it first, then say hello"
            raise ControlError(Cause.ALREADY_ATTACHED, message)
        end.used = end.ticket.text
        end.ticket = None
        end.holder = holder
        end.incarnation += 1
        geometry = geometry_message(link.config.geometry)
        return link.link_id, Granted(link_id=link.link_id, geometry=geometry, incarnation=end.incarnation)

    def released(self, holder: int) -> tuple[str, int] | None:
        """The connection has closed: its end can be taken again. Which one it was."""
        for name, link in self.links.items():
            for side, end in enumerate(link.ends):
                if end.holder == holder:
                    end.holder = None
                    return name, side
        return None

    def _refusal(self, take: Take, end: EndState | None) -> ControlError:
        if end is not None and end.vm == take.vm and end.used and compare_digest(end.used, take.ticket):
            message = f"the ticket for link {take.link!r} has been used: say hello again for another"
            return ControlError(Cause.TICKET_USED, message)
        for name, link in self.links.items():
            for side, other in enumerate(link.ends):
                if other.ticket is not None and compare_digest(other.ticket.text, take.ticket):
                    message = (
                        f"the ticket is for another end than side {SIDE_NAMES[take.side]} of link {take.link!r} in VM "
                        f"{take.vm!r}: use each offer's ticket for its own link, side and VM"
                    )
                    assert (name, side, other.vm) != (take.link, take.side, take.vm)
                    return ControlError(Cause.TICKET_MISMATCH, message)
        message = f"not a ticket of this broker for link {take.link!r}: say hello for one"
        return ControlError(Cause.TICKET_WRONG, message)

    def _forget(self, link: LinkState, changes: Changes) -> None:
        for end in link.ends:
            withdrawn = messages.Withdrawn(link=link.config.name, link_id=link.link_id, port=end.port.name)
            changes.withdrawn.append((end.vm, withdrawn))
            if end.holder is not None:
                changes.dropped.append(end.holder)


def geometry_message(geometry: Geometry) -> messages.Geometry:
    return messages.Geometry(
        queues=geometry.queues,
        slot_count=geometry.slot_count,
        slot_payload=geometry.slot_payload,
        headroom=geometry.headroom,
    )


def _ports(config: FabricConfig, link: LinkConfig) -> tuple[PortConfig, PortConfig]:
    return config.port(link.ends[0]), config.port(link.ends[1])
