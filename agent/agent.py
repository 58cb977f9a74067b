"""The agent of one VM: says hello to the broker, attaches the ports it is offered, and runs what they are for."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import zmq

from ringway.agent.errors import AgentCause, AgentError
from ringway.agent.port import Port
from ringway.agent.runner import ForwardRunner, Runner, TapRunner
from ringway.control.client import AgentSession
from ringway.control.errors import ControlError
from ringway.control.messages import (
    Ask,
    Cause,
    Done,
    ErrorReply,
    LoopTold,
    Message,
    Notice,
    Offer,
    Offered,
    PortTold,
    RuleCount,
    SetStack,
    Told,
    Welcome,
    Withdrawn,
)
from ringway.control.rules import Stack
from ringway.shm import BreakCause, RegionError
from ringway.stack.filter import Filter, FilterError

_CHECK_S = 1.0  # how often ports are looked at for what nobody tells: a broken ring
_RETRY_S = 0.5
# A broker that is not there yet, a fabric that is not applied yet, an agent before us that is not quite gone.
_WORTH_WAITING = (Cause.NO_BROKER, Cause.UNKNOWN_VM, Cause.AGENT_EXISTS, Cause.TIMEOUT)

Log = Callable[[str], None]


class Agent:
    """Use it as a context manager. A thread of its own talks to the broker; C threads carry frames.

    Tap ports and the ports of a stack are run by the agent; the other local ports are the application's: `port`.
    """

    def __init__(
        self,
        vm: str,
        runtime: Path,
        *,
        timeout: float | None = 5.0,
        spin_us: int = 0,
        log: Log = lambda _: None,
    ) -> None:
        """`timeout`: seconds to wait for broker and fabric; `spin_us`: how long a loop without work stays awake."""
        self.vm = vm
        self._timeout = timeout
        self._runtime = runtime
        self._spin_us = spin_us
        self._log = log
        self._changed = threading.Condition()  # guards ports and runners; notified when ports come or go
        self._ports: dict[str, Port] = {}
        self._runners: list[Runner] = []
        self._stack: Stack | None = None
        self._filter: Filter | None = None
        self._noticed: set[str] = set()  # broken ports that the broker knows of
        self._session: AgentSession | None = None
        self._thread: threading.Thread | None = None
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def start(self) -> None:
        """Say hello, wait for broker and fabric if need be, and attach what is offered. ControlError, AgentError."""
        version = importlib.metadata.version("ringway")
        self._session = AgentSession(self._runtime, self.vm, version)
        self._take_up(self._first_hello())
        self._thread = threading.Thread(target=self._serve, name=f"agent {self.vm}", daemon=True)
        self._thread.start()

    def _first_hello(self) -> Welcome:
        assert self._session is not None
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        said = ""
        while True:
            try:
                return self._session.hello()
            except ControlError as error:
                if error.cause not in _WORTH_WAITING or (deadline is not None and time.monotonic() > deadline):
                    raise
                if error.message != said:
                    said = error.message
                    self._log(f"waiting: {said}")
            if self._stopped(_RETRY_S):
                raise AgentError(AgentCause.TIMEOUT, "stopped while waiting for the broker")

    def _stopped(self, timeout: float) -> bool:
        poller = zmq.Poller()
        poller.register(self._stop_read, zmq.POLLIN)
        return bool(poller.poll(int(timeout * 1000)))

    def port(self, name: str, timeout: float = 5.0) -> Port:
        """A local port of this VM, waiting until the broker has offered it. AgentError: NO_PORT, NOT_LOCAL."""
        with self._changed:
            if not self._changed.wait_for(lambda: name in self._ports, timeout):
                known = ", ".join(sorted(self._ports)) or "none"
                message = f"VM {self.vm} has no linked port {name!r}; it has: {known}. Look at `ringway show`"
                raise AgentError(AgentCause.NO_PORT, message)
            port = self._ports[name]
            if any(port in runner.ports for runner in self._runners):
                message = f"port {name!r} of VM {self.vm} is run by its agent (a tap, or part of its stack)"
                raise AgentError(AgentCause.NOT_LOCAL, message)
            return port

    def interrupt(self) -> None:
        """End a start that waits; from a signal handler or another thread. `stop` does the rest."""
        with contextlib.suppress(OSError):
            os.write(self._stop_write, b"x")

    def stop(self) -> None:
        """Stop all loops, detach all ports and leave. Safe to call twice."""
        self.interrupt()
        if self._thread is not None:
            self._thread.join()
        with self._changed:
            for name in list(self._ports):
                self._drop_port(name)
            self._close_filter()
        if self._session is not None:
            self._session.close()
            self._session = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        os.close(self._stop_read)
        os.close(self._stop_write)

    # What the broker says, in the agent's own thread.

    def _serve(self) -> None:
        session = self._session
        assert session is not None
        poller = zmq.Poller()
        for source in (session.socket, session.monitor, self._stop_read):
            poller.register(source, zmq.POLLIN)
        while True:
            while (received := session.receive()) is not None:
                session.answer(received.request_id, self._answer(received.message))
            ready = dict(poller.poll(int(_CHECK_S * 1000)))
            if self._stop_read in ready:
                return
            if session.monitor in ready and session.rejoined():
                self._hello_again(session)
            self._notice_broken(session)

    def _hello_again(self, session: AgentSession) -> None:
        try:
            self._take_up(session.hello())
        except ControlError as error:
            # Links go on without a broker; a fabric applied later is offered when this agent is started again.
            self._log(f"the broker is back and refuses: {error.message}")

    def _answer(self, message: Message) -> Message:
        try:
            with self._changed:
                if isinstance(message, Ask):
                    return self._told()
                if isinstance(message, Offered):
                    self._add_port(message.offer)
                elif isinstance(message, Withdrawn):
                    self._withdraw(message)
                elif isinstance(message, SetStack):
                    self._stack = message.stack
                self._run()
                self._changed.notify_all()
                return Done()
        except (AgentError, ControlError, RegionError, FilterError, OSError) as error:
            self._log(f"failed: {error}")
            return ErrorReply(cause=Cause.FAILED, message=str(error))

    def _take_up(self, welcome: Welcome) -> None:
        """Make the ports those of the welcome; what is attached already and meant to stay, stays."""
        with self._changed:
            offered = {offer.port: offer for offer in welcome.offers}
            for name, port in list(self._ports.items()):
                if name not in offered or offered[name].link_id != port.offer.link_id:
                    self._drop_port(name)
            for name, offer in offered.items():
                if name not in self._ports:
                    self._add_port(offer)
            self._stack = welcome.stack
            self._run()
            self._changed.notify_all()

    # Ports and what runs over them; `_changed` is held.

    def _add_port(self, offer: Offer) -> None:
        self._drop_port(offer.port)
        self._ports[offer.port] = Port(self.vm, offer)
        self._log(f"attached port {offer.port} to link {offer.link} as side {'ab'[offer.side]}")

    def _withdraw(self, message: Withdrawn) -> None:
        port = self._ports.get(message.port)
        if port is not None and port.offer.link_id == message.link_id:
            self._drop_port(message.port)
            self._log(f"detached port {message.port} from link {message.link}")

    def _drop_port(self, name: str) -> None:
        port = self._ports.pop(name, None)
        if port is None:
            return
        for runner in [runner for runner in self._runners if port in runner.ports]:
            runner.close()
            self._runners.remove(runner)
        self._noticed.discard(name)
        port.detach()

    def _run(self) -> None:
        """Run what the ports that are there and the stack ask for, and nothing else."""
        for port in self._ports.values():
            if port.offer.kind == "tap" and not self._is_run(port):
                self._runners.append(TapRunner(port, self._spin_us))
                self._log(f"interface {port.offer.interface} is up")
        self._run_stack()

    def _is_run(self, *ports: Port) -> bool:
        return any(runner.ports == ports for runner in self._runners)

    def _run_stack(self) -> None:
        pairs = self._stack.forward if self._stack is not None else []
        names = tuple(name for pair in pairs for name in pair)
        if self._filter is not None and self._filter.port_names != names:
            self._close_filter()
        if self._stack is None:
            return
        if self._filter is None:
            self._filter = Filter(names)
        self._filter.replace(self._stack.rules, self._stack.default)
        for first, second in pairs:
            ends = [self._ports[name] for name in (first, second) if name in self._ports]
            if len(ends) == 2 and not self._is_run(*ends):
                self._runners.append(ForwardRunner(ends[0], ends[1], self._filter, self._spin_us))
                self._log(f"forwarding between {first} and {second}")

    def _close_filter(self) -> None:
        for runner in [runner for runner in self._runners if isinstance(runner, ForwardRunner)]:
            runner.close()
            self._runners.remove(runner)
        if self._filter is not None:
            self._filter.close()
            self._filter = None

    def _told(self) -> Told:
        rules = self._filter.counts() if self._filter is not None else []
        return Told(
            ports=[_port_told(port) for port in self._ports.values()],
            loops=[LoopTold(loop.name, loop.counts()) for runner in self._runners for loop in runner.loops],
            rules=[RuleCount(rule.name, rule.frames, rule.bytes) for rule in rules],
        )

    def _notice_broken(self, session: AgentSession) -> None:
        with self._changed:
            for name, port in self._ports.items():
                if port.broken is not BreakCause.WHOLE and name not in self._noticed:
                    self._noticed.add(name)
                    cause = port.broken.name.lower()
                    self._log(f"port {name}: the link {port.offer.link} is broken ({cause})")
                    session.notify(Notice(port=name, link=port.offer.link, event="broken", cause=cause))


def _port_told(port: Port) -> PortTold:
    broken = port.broken is not BreakCause.WHOLE
    return PortTold(
        port=port.name,
        link=port.offer.link,
        state="broken" if broken else "attached",
        cause=port.broken.name.lower() if broken else "",
    )
