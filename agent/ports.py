"""One VM's ports and what runs over them: made, kept running, and taken down as the broker's words ask for."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from ringway.agent import kinds
from ringway.agent.bridge import BridgeRunner
from ringway.agent.errors import AgentCause, AgentError
from ringway.agent.forwarder import Forwarder
from ringway.agent.functions import FunctionDirectory
from ringway.agent.interface import Owner
from ringway.agent.lifeline import PeerEvent
from ringway.agent.port import Port
from ringway.agent.runner import PortRunner, Runner, StackRunner, Terms
from ringway.agent.wire import WireRunner
from ringway.control.kinds import Kind
from ringway.control.messages import (
    Connections,
    LoopStatus,
    Notice,
    Offer,
    PortStatus,
    RuleCount,
    SetPort,
    Status,
    UnparsedCount,
)
from ringway.control.names import printable
from ringway.control.rules import Stack
from ringway.shm import BreakCause, RegionHeldError
from ringway.stack.bridge import Bridge
from ringway.stack.filter import Filter
from ringway.stack.function import Function

Log = Callable[[str], None]
Problem = tuple[Literal["broken", "failed", "attached"], str]  # attached: it works, except for what the cause says

_CAUSE_MAX = 512  # characters of a notice's cause
_NOTICES_MAX = 256  # kept for the broker; the latest count
_LET_GO_S = 1.0  # how long the others wait for whoever still uses a region that was taken away
_STOP_S = 10.0  # and how long the end of all does
_NEXT_STACK_S = 10.0  # between attempts to replace a stack that runs, each of which stops it for a moment


class Ports:
    """All methods may be called from any thread; each leaves the ports run as far as they can be.

    What fails does not keep the rest from running: the first error is raised when all has been tried. It is logged
    here, once, and `status` says it for as long as it lasts.
    """

    def __init__(
        self,
        vm: str,
        owner: Owner,
        runtime: Path,
        spin_us: int,
        most_loops: int,
        functions: FunctionDirectory,
        log: Log,
        on_lack: Callable[[], None] = lambda: None,
    ) -> None:
        """`owner`: of the interfaces that this VM's agents leave to each other.

        `on_lack` is called when a port has to be offered once more, for `lacks_ports`.
        """
        self.vm = vm
        self._terms = Terms(owner, runtime, spin_us, most_loops, functions, log)
        self._log = log
        self._on_lack = on_lack
        self._changed = threading.Condition()  # guards all below; notified when ports come or go
        self._ports: dict[str, Port] = {}
        self._runners: list[PortRunner] = []
        self._stack: Stack | None = None
        self._awaited: dict[str, Kind] = {}  # settings of ports that are to be attached, by port
        self._forwarder: Forwarder | None = None
        self._next_functions_at = math.inf  # when the files of functions are looked at again
        self._functions_error: Exception | None = None  # as of the last look
        self._next_stack_at = 0.0  # when a stack that could not be made is tried again (monotonic)
        self._stack_error: Exception | None = None
        self._lacking: dict[str, tuple[Offer, str]] = {}  # what was offered and could not be attached, and why
        self._leaving: list[Port] = []  # taken away, and still in use somewhere
        self._problems: dict[str, Problem] = {}  # by port: what does not work, as last looked at
        self._notices: list[Notice] = []  # that the broker has not been told yet

    def port(self, name: str, timeout: float) -> Port:
        """A local port of this VM, waiting until the broker has offered it. AgentError: NO_PORT, NOT_LOCAL.

        One that an application has detached is asked for again.
        """
        with self._changed:
            if self._ask_again(name):
                self._on_lack()
            if not self._changed.wait_for(lambda: name in self._ports, timeout):
                raise self._no_port(name)
            port = self._ports[name]
            port.give_out()
            return port

    def _no_port(self, name: str) -> AgentError:
        if name in self._lacking:
            offer, why = self._lacking[name]
            message = f"port {name!r} of VM {self.vm} could not be attached to link {offer.link}: {why}"
            return AgentError(AgentCause.NO_PORT, f"{message}; it is tried again each second")
        known = ", ".join(sorted(self._ports)) or "none"
        message = f"VM {self.vm} has no linked port {name!r}; it has: {known}. Look at `ringway show`"
        return AgentError(AgentCause.NO_PORT, message)

    def _ask_again(self, name: str) -> bool:
        """Is it a port whose end the application gave back? Then it is lacking from now on."""
        port = self._ports.get(name)
        if port is None or port.attached:
            return False
        del self._ports[name]
        self._lacking[name] = (port.offer, "it was detached, and the broker has not offered it again yet")
        return True

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
            self._awaited = {offer.port: offer.settings for offer in fresh}
            errors += [self._try(self._set_port, offer) for offer in kept]
            errors += [self._try(self._attach, offer) for offer in fresh]
            self._want(stack)
            try:
                self._run(errors)
            finally:
                self._remove_orphans()

    def add(self, offer: Offer) -> None:
        with self._changed:
            self._run([self._try(self._drop, offer.port), self._try(self._attach, offer)])

    def withdraw(self, name: str, link_id: int, replaced: bool = False) -> None:
        """`replaced`: the port is offered again with another link, for which what its kind has made here stays."""
        with self._changed:
            errors: list[Exception | None] = []
            if name in self._lacking and self._lacking[name][0].link_id == link_id:
                del self._lacking[name]
            self._awaited.pop(name, None)
            port = self._ports.get(name)
            if port is not None and port.offer.link_id == link_id:
                errors.append(self._try(self._drop, name))
                self._log(f"detached port {name} from link {port.offer.link}")
                if replaced:
                    self._awaited[name] = port.offer.settings
                self._remove_orphans()
            self._run(errors)

    def set_port(self, settings: SetPort) -> None:
        """Change a port's settings; its link stays."""
        with self._changed:
            port = self._ports.get(settings.port)
            if port is None or port.offer.link_id != settings.link_id:
                return
            offer = replace(port.offer, settings=settings.settings, full=settings.full)
            try:
                self._run([self._try(self._set_port, offer)])
            finally:
                self._remove_orphans()

    def set_stack(self, stack: Stack | None) -> None:
        """Run this stack, with its packet functions as their files are now."""
        with self._changed:
            self._want(stack)
            self._next_stack_at = self._next_functions_at = 0.0
            self._run([])

    def tend(self) -> list[Notice]:
        """Look after what nobody tells: broken rings, interfaces that went away or could not be made before.

        What the broker is to hear of that, and of what was found before.
        """
        with self._changed:
            for runner in [runner for runner in self._runners if runner.failed()]:
                self._close(runner)
            for runner in self._runners:
                self._try(runner.try_again)
            for port in list(self._leaving):
                self._try(self._let_go, port, 0.0)
            self._run_all()
            notices, self._notices = self._notices, []
            return notices

    def _port_status(self, port: Port) -> PortStatus:
        found: Problem | None = self._problems.get(port.name)
        if port.broken is not BreakCause.WHOLE:
            found = ("broken", port.broken.name.lower())
        link = port.offer.link
        if found is not None and found[0] != "attached":
            return PortStatus(port.name, link, *found)
        runner = next((runner for runner in self._all_runners() if port in runner.ports), None)
        if runner is None:
            return PortStatus(port.name, link, "attached")
        return PortStatus(port.name, link, "attached", _plain(runner.told(port)), runner.when_full(port))

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
            deadlines = [runner.follow_peer(time.monotonic()) for runner in self._runners]
            return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def lacks_ports(self) -> bool:
        with self._changed:
            return bool(self._lacking)

    def status(self) -> Status:
        """What a broker that asks gets to know."""
        with self._changed:
            judge = self._forwarder.filter if self._forwarder is not None else None
            rules = judge.counts() if judge is not None else []
            connections = judge.connections() if judge is not None else None
            lacking = [
                PortStatus(name, offer.link, "failed", _plain(why)) for name, (offer, why) in self._lacking.items()
            ]
            return Status(
                ports=[self._port_status(port) for port in self._ports.values() if port.attached] + lacking,
                loops=[LoopStatus(loop.name, loop.counts()) for runner in self._all_runners() for loop in runner.loops],
                rules=[RuleCount(rule.name, rule.frames, rule.bytes) for rule in rules],
                connections=Connections(**dataclasses.asdict(connections)) if connections else None,
                unparsed=[UnparsedCount(*count) for count in judge.unparsed()] if judge is not None else [],
                functions=self._forwarder.functions_told() if self._forwarder is not None else [],
                problem=printable(self._stack_problem()),
            )

    def close(self) -> None:
        """Stop all loops and detach all ports. Safe to call twice.

        RegionHeldError when somebody does not let go of a region: all else is closed by then, and the next call tries
        those ports again.
        """
        with self._changed:
            self._want(None)
            errors = [self._try(self._close_forwarder)]
            errors += [self._try(self._close, runner) for runner in list(self._runners)]
            self._leaving += self._ports.values()
            self._ports.clear()
            self._lacking.clear()
            self._problems.clear()
            self._changed.notify_all()
            # Those that nobody holds do not wait for those that somebody does.
            deadline = time.monotonic() + _STOP_S
            errors += [self._try(self._let_go, port, 0.0) for port in list(self._leaving)]
            errors = [error for error in errors if not isinstance(error, RegionHeldError)]
            held: list[str] = []
            for port in list(self._leaving):
                error = self._try(self._let_go, port, max(0.0, deadline - time.monotonic()))
                if isinstance(error, RegionHeldError):
                    held += [f"{holder} (port {port.name})" for holder in error.holders]
                else:
                    errors.append(error)
            _raise_first([RegionHeldError(held, _STOP_S) if held else None, *errors])

    # `_changed` is held from here on.

    def _try(self, step: Callable[..., object], *arguments: object) -> Exception | None:
        try:
            step(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other ports are to run
            return error
        return None

    def _attach(self, offer: Offer) -> None:
        try:
            self._ports[offer.port] = Port(self.vm, offer)
        except BaseException as error:
            self._lacking[offer.port] = (offer, str(error))
            raise
        self._lacking.pop(offer.port, None)
        self._awaited.pop(offer.port, None)
        self._log(f"attached port {offer.port} to link {offer.link} as side {'ab'[offer.side]}")

    def _drop(self, name: str) -> None:
        port = self._ports.pop(name, None)
        if port is None:
            return
        self._problems.pop(name, None)
        self._leaving.append(port)
        if self._forwarder is not None:
            self._forwarder.let_go(port)
        for runner in [runner for runner in self._runners if port in runner.ports]:
            self._close(runner)
        try:
            self._let_go(port, _LET_GO_S)
        except RegionHeldError as error:
            self._log(f"port {name} leaves link {port.offer.link} as soon as it can: {error}")
            raise

    def _let_go(self, port: Port, timeout: float) -> None:
        """Detach it, or RegionHeldError and it stays among those that leave."""
        port.detach(timeout)
        self._leaving.remove(port)

    def _close(self, runner: PortRunner) -> None:
        self._runners.remove(runner)
        runner.close()

    def _all_runners(self) -> list[Runner]:
        forwarding = self._forwarder.runners if self._forwarder is not None else []
        return [*self._runners, *forwarding]

    def _run(self, errors: list[Exception | None]) -> None:
        """Run what ports and stack ask for, and nothing else. Raises the first error, also of steps before."""
        _raise_first([*errors, *self._run_all()])

    def _run_all(self) -> list[Exception]:
        """The same; the errors are noted, and returned."""
        failed = {port.name: self._try(self._run_port, port) for port in list(self._ports.values())}
        stack = self._try(self._run_stack)
        self._note_stack(stack)
        problems: dict[str, Problem] = {name: ("failed", _plain(why)) for name, (_, why) in self._lacking.items()}
        problems |= {name: ("failed", _plain(str(error))) for name, error in failed.items() if error is not None}
        problems |= {name: ("broken", port.broken.name.lower()) for name, port in self._broken()}
        for runner in self._runners:
            if runner.problem:
                problems.setdefault(runner.ports[0].name, ("attached", _plain(runner.problem)))
        self._note(problems)
        self._changed.notify_all()
        return [error for error in (*failed.values(), stack) if error is not None]

    def _broken(self) -> list[tuple[str, Port]]:
        return [(name, port) for name, port in self._ports.items() if port.broken is not BreakCause.WHOLE]

    def _note(self, problems: dict[str, Problem]) -> None:
        """Say what is new, once, and what is over."""
        before, self._problems = self._problems, problems
        for name, problem in problems.items():
            if before.get(name) != problem:
                state, cause = problem
                self._say(name, "problem" if state == "attached" else state, cause)
        for name in before:
            if name not in problems and name in self._ports:
                self._say(name, "works again", "")

    def _say(self, name: str, event: str, cause: str) -> None:
        link = self._ports[name].offer.link if name in self._ports else self._lacking[name][0].link
        self._log(f"port {name} of link {link}: {event}{cause and ': '}{cause}")
        self._notices = [*self._notices[-_NOTICES_MAX:], Notice(port=name, link=link, event=event, cause=cause)]

    def _note_stack(self, error: Exception | None) -> None:
        before, self._stack_error = self._stack_problem(), error
        now = self._stack_problem()
        if now and now != before:
            self._log(now)
        elif before and not now and self._stack is not None:
            self._log("the stack runs again")

    def _stack_problem(self) -> str:
        if self._stack_error is None:
            return ""
        kept = (
            self._forwarder is not None
            and self._stack is not None
            and (self._functions_error is not None or not self._forwarder.fits(self._stack))
        )
        what = "the new stack does not run, and the one before goes on" if kept else "the stack does not run"
        return f"{what}: {self._stack_error}"

    def _run_port(self, port: Port) -> None:
        if not any(runner.ports == (port,) for runner in self._runners):
            runner = kinds.run(port, self._terms)
            if runner is not None:
                self._runners.append(runner)

    def _set_port(self, offer: Offer) -> None:
        """To the settings of an offer of the link that it has; what cannot change in place gets another runner."""
        port = self._ports[offer.port]
        offer = replace(offer, ticket=port.offer.ticket, incarnation=port.offer.incarnation)
        if offer == port.offer:
            return
        try:
            for runner in [runner for runner in self._runners if runner.ports == (port,)]:
                if not runner.takes(offer):
                    self._close(runner)
        finally:
            port.offer = offer
        if self._forwarder is not None:
            self._forwarder.follow_settings()

    def _remove_orphans(self) -> None:
        """What agents of this VM have left, and whose links are gone."""
        wanted = [*(port.offer.settings for port in self._ports.values()), *self._awaited.values()]
        try:
            removed = kinds.tidy(self._terms.owner, wanted)
        except AgentError as error:  # it is no port's, and keeps none from running
            self._log(str(error))
            return
        for name in removed:
            self._log(f"{name} is removed: its link is gone")

    def _want(self, stack: Stack | None) -> None:
        if stack != self._stack:
            self._next_stack_at = 0.0
        self._stack = stack  # also if it is equal: an option may be true now, and have been 1

    def _run_stack(self) -> None:
        stack = self._stack
        if stack is None:
            self._close_forwarder()
            return
        given_back = [name for name in stack.port_names() if self._ask_again(name)]
        if given_back:
            self._on_lack()
        if self._forwarder is None:
            self._forwarder = Forwarder(stack, self._terms.functions, self._forward)
            self._note_functions(None)
            self._say_functions(self._forwarder)
        errors: list[Exception | None] = []
        if self._forwarder.fits(stack):
            errors.append(self._try(self._forwarder.judge_by, stack))
            errors.append(self._try(self._reload_functions, self._forwarder, stack))
        elif time.monotonic() >= self._next_stack_at:
            errors.append(self._try(self._replace_forwarder, stack))
        else:
            errors.append(self._stack_error)
        errors.append(self._try(self._forwarder.run, self._ports))
        _raise_first(errors)

    def _replace_forwarder(self, stack: Stack) -> None:
        """By one for this stack that runs, or the old one stays; a ring is used by one of them at a time."""
        old = self._forwarder
        assert old is not None
        self._next_stack_at = time.monotonic() + _NEXT_STACK_S
        fresh = Forwarder(stack, self._terms.functions, self._forward)
        old.pause()
        try:
            fresh.run(self._ports)
        except BaseException:
            fresh.close()
            raise
        self._forwarder = fresh
        self._note_functions(None)
        self._say_functions(fresh)
        old.close()

    def _reload_functions(self, forwarder: Forwarder, stack: Stack) -> None:
        """When they are to be looked at. What fails is raised again until the next attempt."""
        if time.monotonic() < self._next_functions_at:
            if self._functions_error is not None:
                raise self._functions_error
            return
        try:
            reloaded = forwarder.reload(stack)
        except Exception as error:
            self._note_functions(error)
            raise
        self._note_functions(None)
        if reloaded:
            self._say_functions(forwarder)

    def _say_functions(self, forwarder: Forwarder) -> None:
        for function in forwarder.functions:
            self._log(f"runs packet function {function.name}, of sha256 {function.digest[:12]}")

    def _note_functions(self, error: Exception | None) -> None:
        """Those of a stack that runs all run, or some do not, and are tried again."""
        self._functions_error = error
        self._next_functions_at = math.inf if error is None else time.monotonic() + _NEXT_STACK_S

    def _forward(
        self, ports: tuple[Port, ...], judge: Filter, bridge: Bridge | None, functions: Sequence[Function]
    ) -> StackRunner:
        runner: StackRunner
        spin_us, most_loops = self._terms.spin_us, self._terms.most_loops
        if bridge is not None:
            runner = BridgeRunner(ports, judge, bridge, functions, spin_us, most_loops, self._log)
            self._log(f"bridging {', '.join(port.name for port in ports)}")
            return runner
        first, second = ports
        runner = WireRunner(first, second, judge, functions, spin_us, most_loops, self._log)
        self._log(f"forwarding between {first.name} and {second.name}")
        return runner

    def _close_forwarder(self) -> None:
        self._note_functions(None)
        if self._forwarder is not None:
            self._forwarder.close()
            self._forwarder = None


def _raise_first(errors: Iterable[Exception | None]) -> None:
    for error in errors:
        if error is not None:
            raise error


def _plain(text: str) -> str:
    """As a message may hold it: printable ASCII, not too long."""
    return "".join(char if " " <= char <= "~" else "?" for char in text)[:_CAUSE_MAX]
