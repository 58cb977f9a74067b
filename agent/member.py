"""One VM's ports and what runs over them: made, kept running, and taken down as the broker's words ask for."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Literal

from msgspec.structs import replace

from ringway.agent.errors import AgentCause, AgentError
from ringway.agent.interface import Owner, remove_orphans
from ringway.agent.lifeline import PeerEvent
from ringway.agent.port import Port
from ringway.agent.runner import ForwardRunner, Runner, TapRunner
from ringway.control.messages import (
    Connections,
    LoopTold,
    Notice,
    Offer,
    PortTold,
    RuleCount,
    SetPort,
    Told,
    UnparsedCount,
)
from ringway.control.rules import Stack, Timeouts
from ringway.shm import BreakCause
from ringway.stack.filter import Filter

Log = Callable[[str], None]
Problem = tuple[Literal["broken", "failed", "attached"], str]  # attached: it works, but for what the cause says

_CAUSE_MAX = 128  # characters of a notice's cause


class Member:
    """All methods may be called from any thread; each leaves the ports run as far as they can be.

    What fails does not keep the rest from running: the first error is raised when all has been tried.
    """

    def __init__(self, vm: str, owner: Owner, spin_us: int, most_loops: int, log: Log) -> None:
        """`owner`: of the interfaces that this VM's agents leave to each other."""
        self.vm = vm
        self._owner = owner
        self._spin_us = spin_us
        self._most_loops = most_loops
        self._log = log
        self._changed = threading.Condition()  # guards all below; notified when ports come or go
        self._ports: dict[str, Port] = {}
        self._runners: list[Runner] = []
        self._stack: Stack | None = None
        self._filter: Filter | None = None
        self._filtered: Stack | None = None  # whose rules are in force
        self._remembers = (0, Timeouts())  # how many connections, and for how long: the filter's
        self._stack_problem = ""
        self._awaited: dict[str, str] = {}  # interfaces of ports that are to be attached, by port
        self._lacking: set[str] = set()  # ports that were offered and could not be attached
        self._problems: dict[str, Problem] = {}  # by port: what does not work, as last looked at

    def port(self, name: str, timeout: float) -> Port:
        """A local port of this VM, waiting until the broker has offered it. AgentError: NO_PORT, NOT_LOCAL."""
        with self._changed:
            if not self._changed.wait_for(lambda: name in self._ports, timeout):
                known = ", ".join(sorted(self._ports)) or "none"
                message = f"VM {self.vm} has no linked port {name!r}; it has: {known}. Look at `ringway show`"
                raise AgentError(AgentCause.NO_PORT, message)
            port = self._ports[name]
            port.give_out()
            return port

    def take_up(self, offers: Sequence[Offer], stack: Stack | None) -> None:
        """Make the ports those of the offers; what is attached already and meant to stay, stays."""
        with self._changed:
            offered = {offer.port: offer for offer in offers}
            self._lacking.clear()
            stale = [
                name
                for name, port in self._ports.items()
                if name not in offered or offered[name].link_id != port.offer.link_id
            ]
            errors = [self._try(self._drop, name) for name in stale]
            kept, fresh = ([offer for offer in offers if (offer.port in self._ports) is here] for here in (True, False))
            self._awaited = {offer.port: offer.interface for offer in fresh if offer.interface is not None}
            errors += [self._try(self._set_port, offer) for offer in kept]
            errors += [self._try(self._attach, offer) for offer in fresh]
            self._stack = stack
            try:
                self._run(errors)
            finally:
                self._remove_orphans()

    def add(self, offer: Offer) -> None:
        with self._changed:
            self._run([self._try(self._drop, offer.port), self._try(self._attach, offer)])

    def withdraw(self, name: str, link_id: int, replaced: bool = False) -> None:
        """`replaced`: the port is to be offered again with another link, and its interface stays for that."""
        with self._changed:
            self._lacking.discard(name)
            self._awaited.pop(name, None)
            port = self._ports.get(name)
            if port is not None and port.offer.link_id == link_id:
                self._drop(name)
                self._log(f"detached port {name} from link {port.offer.link}")
                if replaced and port.offer.interface is not None:
                    self._awaited[name] = port.offer.interface
                self._remove_orphans()
            self._run([])

    def set_port(self, settings: SetPort) -> None:
        """Change a tap port's settings; its link stays."""
        with self._changed:
            port = self._ports.get(settings.port)
            if port is None or port.offer.link_id != settings.link_id:
                return
            names = ("interface", "mtu", "offload", "mac", "address", "carrier_delay_ms")
            offer = replace(port.offer, **{name: getattr(settings, name) for name in names})
            try:
                self._run([self._try(self._set_port, offer)])
            finally:
                self._remove_orphans()

    def set_stack(self, stack: Stack | None) -> None:
        with self._changed:
            self._stack = stack
            self._run([])

    def tend(self) -> list[Notice]:
        """Look after what nobody tells: broken rings, interfaces that went away or could not be made before."""
        with self._changed:
            for runner in [runner for runner in self._runners if runner.failed()]:
                self._close(runner)
            problems: dict[str, Problem] = {name: ("broken", port.broken.name.lower()) for name, port in self._broken()}
            for port in list(self._ports.values()):
                error = self._try(self._run_tap, port)
                if error is not None:
                    problems[port.name] = ("failed", _plain(str(error)))
            for runner in self._taps():
                self._try(runner.try_again)
                if runner.problem:
                    problems.setdefault(runner.ports[0].name, ("attached", _plain(runner.problem)))
            error = self._try(self._run_stack)
            if error is not None and str(error) != self._stack_problem:
                self._log(f"the stack does not run: {error}")
            self._stack_problem = str(error or "")
            new = [(name, problem) for name, problem in problems.items() if self._problems.get(name) != problem]
            self._problems = problems
            return [self._notice(name, *problem) for name, problem in new]

    def _broken(self) -> list[tuple[str, Port]]:
        return [(name, port) for name, port in self._ports.items() if port.broken is not BreakCause.WHOLE]

    def _notice(self, name: str, state: Literal["broken", "failed", "attached"], cause: str) -> Notice:
        link = self._ports[name].offer.link
        self._log(f"port {name} of link {link}: {state}: {cause}")
        return Notice(port=name, link=link, event="problem" if state == "attached" else state, cause=cause)

    def _port_told(self, port: Port) -> PortTold:
        found: Problem | None = self._problems.get(port.name)
        if port.broken is not BreakCause.WHOLE:
            found = ("broken", port.broken.name.lower())
        link = port.offer.link
        if found is not None and found[0] != "attached":
            return PortTold(port.name, link, *found)
        told = next((runner.told() for runner in self._taps() if runner.ports == (port,)), "")
        return PortTold(port.name, link, "attached", _plain(told))

    def link_ids(self) -> list[int]:
        """The links that this VM's ends are attached to."""
        with self._changed:
            return [port.offer.link_id for port in self._ports.values() if port.attached]

    def descriptors(self) -> list[int]:
        """What to poll for reading, for `on_readable`."""
        with self._changed:
            return [fd for port in self._ports.values() for fd in port.lifeline.descriptors()]

    def on_readable(self, readable: Collection[int]) -> list[Notice]:
        """Look after other ends that came or left. Descriptors that are none of the ports' are left alone."""
        with self._changed:
            notices = []
            for port in self._ports.values():
                for fd in port.lifeline.descriptors():
                    event = port.lifeline.on_readable(fd) if fd in readable else None
                    if event is not None:
                        notices.append(self._peer_notice(port, event))
            return notices

    def _peer_notice(self, port: Port, event: PeerEvent) -> Notice:
        what = "attached" if event.attached else "left"
        self._log(f"the other end of link {port.offer.link} {what} (incarnation {event.incarnation})")
        return Notice(
            port=port.name, link=port.offer.link, event=f"peer {what}", cause=f"incarnation {event.incarnation}"
        )

    def follow_peers(self) -> float | None:
        """Let carriers be what peers are. The time (monotonic, seconds) to look again, if one is waited for."""
        with self._changed:
            deadlines = [runner.follow_peer(time.monotonic()) for runner in self._taps()]
            return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def lacks_ports(self) -> bool:
        with self._changed:
            return bool(self._lacking)

    def told(self) -> Told:
        """What a broker that asks gets to know."""
        with self._changed:
            rules = self._filter.counts() if self._filter is not None else []
            connections = self._filter.connections() if self._filter is not None else None
            return Told(
                ports=[self._port_told(port) for port in self._ports.values()],
                loops=[LoopTold(loop.name, loop.counts()) for runner in self._runners for loop in runner.loops],
                rules=[RuleCount(rule.name, rule.frames, rule.bytes) for rule in rules],
                connections=Connections(**dataclasses.asdict(connections)) if connections else None,
                unparsed=[UnparsedCount(*count) for count in self._filter.unparsed()] if self._filter else [],
            )

    def close(self) -> None:
        """Stop all loops and detach all ports. Safe to call twice."""
        with self._changed:
            for name in list(self._ports):
                self._drop(name)
            self._stack = None
            self._run_stack()

    # `_changed` is held from here on.

    def _try(self, step: Callable[..., None], *arguments: object) -> Exception | None:
        try:
            step(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other ports are to run
            return error
        return None

    def _attach(self, offer: Offer) -> None:
        self._lacking.add(offer.port)
        self._ports[offer.port] = Port(self.vm, offer)
        self._lacking.discard(offer.port)
        self._awaited.pop(offer.port, None)
        self._log(f"attached port {offer.port} to link {offer.link} as side {'ab'[offer.side]}")

    def _drop(self, name: str) -> None:
        port = self._ports.pop(name, None)
        if port is None:
            return
        for runner in [runner for runner in self._runners if port in runner.ports]:
            self._close(runner)
        self._problems.pop(name, None)
        port.detach()

    def _close(self, runner: Runner) -> None:
        runner.close()
        self._runners.remove(runner)

    def _run(self, errors: list[Exception | None]) -> None:
        """Run what ports and stack ask for, and nothing else. Raises the first error, also of steps before."""
        errors += [self._try(self._run_tap, port) for port in list(self._ports.values())]
        errors.append(self._try(self._run_stack))
        self._changed.notify_all()
        for error in errors:
            if error is not None:
                raise error

    def _is_run(self, *ports: Port) -> bool:
        return any(runner.ports == ports for runner in self._runners)

    def _run_tap(self, port: Port) -> None:
        if port.offer.kind == "tap" and not self._is_run(port):
            self._runners.append(TapRunner(port, self._owner, self._spin_us, self._most_loops))
            self._log(f"interface {port.offer.interface} is up")

    def _taps(self) -> list[TapRunner]:
        return [runner for runner in self._runners if isinstance(runner, TapRunner)]

    def _set_port(self, offer: Offer) -> None:
        """To the settings of an offer of the link that the port has; what cannot change in place is run anew."""
        port = self._ports[offer.port]
        offer = replace(offer, ticket=port.offer.ticket, incarnation=port.offer.incarnation)
        if offer == port.offer:
            return
        try:
            for runner in [runner for runner in self._taps() if runner.ports == (port,)]:
                if not runner.takes(offer):
                    self._close(runner)
        finally:
            port.offer = offer

    def _remove_orphans(self) -> None:
        """Interfaces that agents of this VM have left, and whose links are gone."""
        keep = {port.offer.interface for port in self._ports.values()} | set(self._awaited.values())
        try:
            removed = remove_orphans(self._owner, {name for name in keep if name is not None})
        except AgentError as error:  # it is no port's, and keeps none from running
            self._log(str(error))
            return
        for name in removed:
            self._log(f"interface {name} is removed: its link is gone")

    def _run_stack(self) -> None:
        stack = self._stack
        pairs = stack.forward if stack is not None else []
        names = tuple(name for pair in pairs for name in pair)
        if self._filter is not None and (stack is None or not self._still_fits(stack, names)):
            self._close_filter()
        if stack is None:
            return
        if self._filter is None:
            self._filter = Filter(names, stack.connections, stack.timeouts)
            self._remembers = (stack.connections, stack.timeouts)
        if self._filtered is not stack:
            self._filter.replace(stack.rules, stack.default, stack.unparsed)
            self._filtered = stack
        for first, second in pairs:
            ends = [self._ports[name] for name in (first, second) if name in self._ports]
            if len(ends) == 2 and not self._is_run(*ends):
                runner = ForwardRunner(ends[0], ends[1], self._filter, self._spin_us, self._most_loops, self._log)
                self._runners.append(runner)
                self._log(f"forwarding between {first} and {second}")

    def _still_fits(self, stack: Stack, names: tuple[str, ...]) -> bool:
        """Rules change under way, and connections outlive that. Other ports, or room for others, make a new filter."""
        assert self._filter is not None
        return self._filter.port_names == names and self._remembers == (stack.connections, stack.timeouts)

    def _close_filter(self) -> None:
        for runner in [runner for runner in self._runners if isinstance(runner, ForwardRunner)]:
            self._close(runner)
        if self._filter is not None:
            self._filter.close()
        self._filter = self._filtered = None


def _plain(text: str) -> str:
    """As a message may hold it: printable ASCII, not too long."""
    return "".join(char if " " <= char <= "~" else "?" for char in text)[:_CAUSE_MAX]
