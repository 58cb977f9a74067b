"""The state of the fabric and what may happen to it: plans, offers, tickets, holders. Pure: no system calls.

A link's memory can be lost, with broker and keeper at once: the two ends go on, and nobody can be handed it any more.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from hmac import compare_digest
from pathlib import Path
from types import MappingProxyType
from typing import Final

from ringway.broker.carriers import carrier
from ringway.broker.config.tables import EndName, FabricConfig, LinkConfig, PortConfig
from ringway.broker.end import End, Holder, Ticket
from ringway.broker.keeper_entries import KeptEnd
from ringway.control import messages
from ringway.control.errors import ControlError
from ringway.control.messages import Cause, Claim, Grant, Offer
from ringway.control.rules import Stack
from ringway.shm import Geometry

TICKET_LIFE: Final = 60.0  # seconds
SIDE_NAMES: Final = ("a", "b")


@dataclass(frozen=True)
class MakeLink:
    link_id: int
    config: LinkConfig
    instead_of: int | None = None  # the link whose counts it goes on from


@dataclass(frozen=True)
class RemoveLink:
    link_id: int
    name: str


Effect = MakeLink | RemoveLink


@dataclass(frozen=True)
class ChangedPort:
    """An end whose link stays as it is."""

    link: str
    side: int
    vm: str
    port: PortConfig  # as it is to be
    full: messages.WhenFull | None  # likewise

    def __str__(self) -> str:
        return f"{self.vm}.{self.port.name}"


@dataclass(frozen=True)
class Plan:
    """What leads from the fabric as it is to the one asked for. Makes come first: until then all is as it was."""

    config: FabricConfig
    effects: list[Effect]
    made: list[str]
    removed: list[str]
    replaced: dict[str, str]  # with the reasons
    kept: list[str]
    ports: list[ChangedPort] = field(default_factory=list)  # of kept links

    @property
    def makes(self) -> list[MakeLink]:
        return [effect for effect in self.effects if isinstance(effect, MakeLink)]


@dataclass
class LinkState:
    link_id: int
    config: LinkConfig
    ends: tuple[End, End]
    lost: bool = False

    def difference(self, config: LinkConfig, ports: tuple[PortConfig, PortConfig]) -> str:
        """Why the link cannot stay when it is to be like this; empty when it can."""
        if self.config.ends != config.ends:
            return "it joins other ports"
        for end, port in zip(self.ends, ports, strict=True):
            if type(end.port.settings) is not type(port.settings):
                return f"port {end.vm}.{port.name} becomes {port.kind}"
        for end, had, to_have in zip(self.ends, self.config.carriers, config.carriers, strict=True):
            if had != to_have:
                return f"VM {end.vm} is carried by {to_have}"
        if self.config.huge_pages != config.huge_pages:
            return f"huge_pages becomes {str(config.huge_pages).lower()}"
        old, new = self.config.geometry, config.geometry
        changed = [
            f"{key} {getattr(old, key)} → {getattr(new, key)}"
            for key in ("queues", "slot_count", "slot_payload")
            if getattr(old, key) != getattr(new, key)
        ]
        return ", ".join(changed)


@dataclass
class Changes:
    """What agents must hear of after a plan was committed, and the held ends that are gone."""

    withdrawn: list[tuple[str, messages.Withdrawn]] = field(default_factory=list)
    ports: list[tuple[ChangedPort, messages.SetPort]] = field(default_factory=list)
    offered: list[tuple[str, str, int]] = field(default_factory=list)  # vm, link, side
    stacks: list[tuple[str, Stack | None]] = field(default_factory=list)
    dropped: list[End] = field(default_factory=list)


class Fabric:
    """Times are monotonic seconds, given by the caller."""

    def __init__(self, runtime: Path, new_ticket: Callable[[], str] = lambda: secrets.token_hex(16)) -> None:
        self._runtime = runtime
        self._new_ticket = new_ticket
        self.config: FabricConfig | None = None
        self.links: dict[str, LinkState] = {}
        self._by_connection: dict[int, tuple[LinkState, int]] = {}  # the held ends: link and side

    def plan(self, config: FabricConfig, broken: Mapping[str, str] = MappingProxyType({})) -> Plan:
        """`broken` names links to recreate although nothing in the file has changed, with the reason."""
        plan = Plan(config, [], [], [], {}, [])
        removals: list[Effect] = []
        for name, link in config.links.items():
            old = self.links.get(name)
            reason = broken.get(name) or (old.difference(link, _ports(config, link)) if old is not None else "")
            if old is not None and not reason:
                plan.kept.append(name)
                plan.ports.extend(_changed_ports(old, link, _ports(config, link)))
                continue
            if old is None:
                plan.made.append(name)
            else:
                plan.replaced[name] = reason
                removals.append(RemoveLink(old.link_id, name))
            link_id = secrets.randbelow(2**63 - 1) + 1
            plan.effects.append(MakeLink(link_id, link, old.link_id if old is not None else None))
        for name, old in self.links.items():
            if name not in config.links:
                plan.removed.append(name)
                removals.append(RemoveLink(old.link_id, name))
        plan.effects.extend(removals)
        return plan

    def commit(self, plan: Plan) -> Changes:
        """Take over a plan whose effects have been carried out."""
        changes = Changes()
        linked = {end for effect in plan.makes for end in effect.config.ends}
        for effect in plan.effects:
            if isinstance(effect, RemoveLink):
                self._forget(self.links.pop(effect.name), changes, linked)
        for changed in plan.ports:
            link = self.links[changed.link]
            link.config = plan.config.links[changed.link]
            link.ends[changed.side].port = changed.port
            message = messages.SetPort(
                port=changed.port.name, link_id=link.link_id, settings=changed.port.settings, full=changed.full
            )
            changes.ports.append((changed, message))
        for effect in plan.makes:
            state = _new_state(plan.config, effect.config, effect.link_id)
            self.links[effect.config.name] = state
            changes.offered.extend((end.vm, effect.config.name, side) for side, end in enumerate(state.ends))
        changes.stacks = self.stacks_changed(plan.config)
        self.config = plan.config
        return changes

    def stacks_changed(self, config: FabricConfig) -> list[tuple[str, Stack | None]]:
        """The VMs whose stack is another one in `config`, with that."""
        changed: list[tuple[str, Stack | None]] = []
        old_vms = self.config.vms if self.config else {}
        for name in old_vms.keys() | config.vms.keys():
            old, new = (vms[name].stack if name in vms else None for vms in (old_vms, config.vms))
            if old != new:
                changed.append((name, new))
        return changed

    def adopt(self, config: FabricConfig, link_ids: Mapping[str, int]) -> None:
        """Take over the fabric of a broker before this one; nobody holds an end until `adopt_end` says so."""
        assert self.config is None
        self.config = config
        for name, link_id in link_ids.items():
            if name in config.links:
                self.links[name] = _new_state(config, config.links[name], link_id)

    def adopt_end(self, link: LinkState, side: int, kept: KeptEnd, descriptors: list[int]) -> End:
        end = link.ends[side]
        end.adopt(kept, descriptors)
        if end.connection is not None:
            self._by_connection[end.connection] = link, side
        return end

    def stack(self, vm: str) -> Stack | None:
        return self.config.vms[vm].stack if self.config and vm in self.config.vms else None

    def stacks_with_functions(self) -> dict[str, Stack | None]:
        """Of VMs whose agents load packet functions."""
        vms = self.config.vms.values() if self.config else ()
        return {vm.name: vm.stack for vm in vms if vm.stack is not None and vm.stack.functions}

    def ends_of(self, vm: str) -> Iterator[tuple[str, int]]:
        for name, link in self.links.items():
            for side, end in enumerate(link.ends):
                if end.vm == vm:
                    yield name, side

    def holders(self, vm: str) -> list[tuple[int, Holder]]:
        """The connections by which the VM's ends are held now, and by whom."""
        ends = (self.links[name].ends[side] for name, side in self.ends_of(vm))
        return [(end.connection, end.holder) for end in ends if end.connection is not None and end.holder is not None]

    def note_attached(self, vm: str, who: Holder, attached: Collection[int]) -> dict[str, str]:
        """Note which links an agent says it has. Returns the VM's links to recreate, and why: lost ones that it has
        not; and those that it has and does not hold here, which happens when the keeper did not hear the broker before
        this one and lives on: handed out as they are, they would have two ends on one side.
        """
        anew: dict[str, str] = {}
        for name, side in self.ends_of(vm):
            link = self.links[name]
            if link.lost and link.link_id in attached:
                link.ends[side].holder = who
            elif link.link_id in attached and link.ends[side].connection is None:
                anew[name] = f"{vm} has an end of it that nobody holds here"
            elif link.lost:
                anew[name] = f"{vm} needs it, and its memory was lost with broker and keeper"
        return anew

    def offer(self, name: str, side: int, now: float, to: Holder) -> Offer:
        """Offer an end to its VM, with a fresh ticket; the one before it is void."""
        link = self.links[name]
        end = link.ends[side]
        end.ticket = Ticket(self._new_ticket(), now + TICKET_LIFE, to)
        port = end.port
        return Offer(
            link=name,
            link_id=link.link_id,
            port=port.name,
            side=side,
            incarnation=end.incarnation + 1,
            geometry=geometry_message(link.config.geometry),
            settings=port.settings,
            ticket=end.ticket.text,
            carrier=carrier(link.config.carriers[side]).offer(self._runtime),
            full=link.config.full,
        )

    def redeem(self, claim: Claim, connection: int, now: float, pid: int = 0) -> tuple[LinkState, Grant]:
        """Let a connection hold an end against its ticket. A refusal changes nothing.

        `pid`: its process as the kernel says it; 0 for one in a PID namespace that is not seen from here.
        """
        link = self.links.get(claim.link)
        end = link.ends[claim.side] if link else None
        if link is None or end is None or end.vm != claim.vm or end.ticket is None:
            raise self._refusal(claim, end)
        if not compare_digest(end.ticket.text, claim.ticket):
            raise self._refusal(claim, end)
        if end.ticket.expires <= now:
            message = f"the ticket for link {claim.link!r} is older than {TICKET_LIFE:g} s: say hello again for another"
            raise ControlError(Cause.TICKET_EXPIRED, message)
        if end.connection is not None:
            message = (
                f"side {SIDE_NAMES[claim.side]} of link {claim.link!r} is attached: detach it first, then say hello"
            )
            raise ControlError(Cause.ALREADY_ATTACHED, message)
        end.take(Holder(end.ticket.to.identity, pid or end.ticket.to.pid), end.ticket.text, connection)
        end.incarnation += 1
        self._by_connection[connection] = link, claim.side
        return link, self.granted(link, claim.side)

    def granted(self, link: LinkState, side: int) -> Grant:
        """What the end's holder is told."""
        geometry = geometry_message(link.config.geometry)
        return Grant(link_id=link.link_id, geometry=geometry, incarnation=link.ends[side].incarnation)

    def held_at(self, connection: int) -> tuple[LinkState, int] | None:
        """The end that is held by this connection."""
        return self._by_connection.get(connection)

    def released(self, connection: int) -> tuple[LinkState, int] | None:
        """The connection has closed: its end can be taken again. Which one it was."""
        found = self._by_connection.pop(connection, None)
        if found is not None:
            found[0].ends[found[1]].release()
        return found

    def _refusal(self, claim: Claim, end: End | None) -> ControlError:
        if end is not None and end.vm == claim.vm and end.used and compare_digest(end.used, claim.ticket):
            message = f"the ticket for link {claim.link!r} has been used: say hello again for another"
            return ControlError(Cause.TICKET_USED, message)
        for name, link in self.links.items():
            for side, other in enumerate(link.ends):
                if other.ticket is not None and compare_digest(other.ticket.text, claim.ticket):
                    message = (
                        f"the ticket is for another end than side {SIDE_NAMES[claim.side]} of link {claim.link!r} in "
                        f"VM {claim.vm!r}: use each offer's ticket for its own link, side and VM"
                    )
                    assert (name, side, other.vm) != (claim.link, claim.side, claim.vm)
                    return ControlError(Cause.TICKET_MISMATCH, message)
        message = f"not a ticket of this broker for link {claim.link!r}: say hello for one"
        return ControlError(Cause.TICKET_WRONG, message)

    def _forget(self, link: LinkState, changes: Changes, linked: Collection[EndName]) -> None:
        """`linked`: ports that get another link."""
        for end in link.ends:
            withdrawn = messages.Withdrawn(
                link=link.config.name,
                link_id=link.link_id,
                port=end.port.name,
                replaced=EndName(end.vm, end.port.name) in linked,
            )
            changes.withdrawn.append((end.vm, withdrawn))
            if end.connection is not None:
                changes.dropped.append(end)
                del self._by_connection[end.connection]


def geometry_message(geometry: Geometry) -> messages.GeometryPart:
    return messages.GeometryPart(
        queues=geometry.queues,
        slot_count=geometry.slot_count,
        slot_payload=geometry.slot_payload,
        headroom=geometry.headroom,
    )


def _changed_ports(old: LinkState, link: LinkConfig, ports: tuple[PortConfig, PortConfig]) -> Iterator[ChangedPort]:
    """The ends of a link that stays which have other settings."""
    for side, (end, port) in enumerate(zip(old.ends, ports, strict=True)):
        if end.port != port or old.config.full != link.full:
            yield ChangedPort(link.name, side, end.vm, port, link.full)


def _new_state(config: FabricConfig, link: LinkConfig, link_id: int) -> LinkState:
    ends = [End(link_id, side, end.vm, config.port(end)) for side, end in enumerate(link.ends)]
    return LinkState(link_id, link, (ends[0], ends[1]))


def _ports(config: FabricConfig, link: LinkConfig) -> tuple[PortConfig, PortConfig]:
    return config.port(link.ends[0]), config.port(link.ends[1])
