"""The agent of one VM: says hello to the broker, and does what it is told with the VM's ports."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import zmq

from ringway.agent.errors import AgentCause, AgentError
from ringway.agent.fork import let_go_when_forked
from ringway.agent.functions import FunctionDirectory
from ringway.agent.interface import Owner
from ringway.agent.port import Port
from ringway.agent.ports import Log, Ports
from ringway.control.client import AgentSession
from ringway.control.errors import ControlError
from ringway.control.messages import (
    Cause,
    Done,
    ErrorReply,
    Message,
    Offered,
    SetPort,
    SetStack,
    StatusRequest,
    Welcome,
    Withdrawn,
)
from ringway.control.names import PLAIN_NAME_RULE, is_plain_name, printable
from ringway.shm._native import lib

_TEND_S = 1.0  # how often ports are looked at for what nobody tells
_RETRY_S = 0.5
# A broker that is not there yet, a fabric that is not applied yet, an agent before us that is not quite gone.
# So are a broker's limits, and failures that it did not foresee.
_WORTH_WAITING = (
    *(Cause.NO_BROKER, Cause.UNKNOWN_VM, Cause.AGENT_EXISTS, Cause.TIMEOUT, Cause.BUSY),
    *(Cause.LIMIT, Cause.FAILED),
)
_VOID = (Cause.TICKET_WRONG, Cause.TICKET_USED, Cause.TICKET_EXPIRED, Cause.TICKET_MISMATCH)

# What the broker asks for, by type of message. None: it is done, and there is nothing else to say.
HANDLERS: Final[dict[type[Message], Callable[[Ports, Any], Message | None]]] = {
    StatusRequest: lambda ports, _: ports.status(),
    Offered: lambda ports, offered: ports.add(offered.offer),
    Withdrawn: lambda ports, gone: ports.withdraw(gone.port, gone.link_id, gone.replaced),
    SetStack: lambda ports, told: ports.set_stack(told.stack),
    SetPort: lambda ports, told: ports.set_port(told),
}


class Agent:
    """Use it as a context manager. A thread of its own talks to the broker; C threads carry frames.

    Tap ports and the ports of a stack are run by the agent; the other local ports are the application's: `port`.
    """

    def __init__(
        self,
        vm: str,
        runtime: Path | str,
        *,
        timeout: float | None = 5.0,
        spin_us: int = 0,
        loops: int | None = None,
        functions: Path | str | None = None,
        log: Log = lambda _: None,
    ) -> None:
        """`timeout`: seconds to wait for broker and fabric; `spin_us`: how long a loop without work stays awake.

        `loops`: threads for each tap and each forward pair, at most; None: one for each queue of their links.
        `functions`: the directory of the packet functions that the VM's stack may name.
        """
        if not is_plain_name(vm):
            raise AgentError(AgentCause.NAME, f"{vm!r} is not the name of a VM: use {PLAIN_NAME_RULE}")
        self.vm = vm
        self._timeout = timeout
        self._runtime = Path(runtime)
        self._say = log
        owner = Owner.of(self._runtime, vm)
        directory = FunctionDirectory(None if functions is None else Path(functions))
        most_loops = loops or int(lib.RWAY_QUEUES_MAX)
        self._ports = Ports(vm, owner, self._runtime, spin_us, most_loops, directory, self._log, self._wake)
        self._session: AgentSession | None = None
        self._waits_for = ""  # as it was last said
        self._hello_due = False  # the broker is another one than we said hello to
        self._refused = ""  # why it did not take us, when last asked
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # readable: look for lacking ports at once
        self._forked = False
        let_go_when_forked(self)

    def leave_to_parent(self) -> None:
        """In a forked child: the agent goes on in the parent, and is nothing here."""
        self._forked = True
        if not self._stopping.is_set():
            for fd in (self._stop_read, self._stop_write, self._woken):
                os.close(fd)

    def _log(self, text: str) -> None:
        """Whatever the application's function does with it, the agent goes on."""
        with contextlib.suppress(Exception):
            self._say(text)

    def start(self) -> None:
        """Say hello, wait for broker and fabric if need be, and attach what is offered. ControlError, AgentError.

        A port or a stack that cannot be made to run is logged, told the broker, and tried again: the others run.
        """
        self._session = AgentSession(self._runtime, self.vm)
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        while not self._take_up_first(self._session, self._first_hello(self._session, deadline)):
            pass
        self._thread = threading.Thread(target=self._serve, args=(self._session,), name=f"agent {self.vm}", daemon=True)
        self._thread.start()

    def _take_up_first(self, session: AgentSession, welcome: Welcome) -> bool:
        """False when another hello is worth it at once: an apply came between, and the tickets are void."""
        error = self._take_up(session, welcome)
        return not isinstance(error, ControlError) or error.cause not in _VOID

    def _take_up(self, session: AgentSession, welcome: Welcome) -> Exception | None:
        """What fails is logged by the ports and tried again by `_tend`; the broker hears it as an answer."""
        failure: Exception | None = None
        try:
            self._ports.take_up(welcome.offers, welcome.stack)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other ports run
            failure = error
        for request_id in session.superseded():
            session.answer(request_id, Done() if failure is None else _failed(failure))
        return failure

    def _first_hello(self, session: AgentSession, deadline: float | None) -> Welcome:
        while True:
            try:
                return session.hello()
            except ControlError as error:
                self._wait(error, deadline)

    def _wait(self, why: ControlError, deadline: float | None) -> None:
        """Before the next attempt to start. Raises `why` when waiting does not help against it, or not any more."""
        if why.cause not in _WORTH_WAITING or (deadline is not None and time.monotonic() > deadline):
            raise why
        if why.message != self._waits_for:
            self._waits_for = why.message
            self._log(f"waiting: {why.message}")
        if self._stopping.is_set() or self._interrupted(_RETRY_S):
            raise AgentError(AgentCause.STOPPED, "stopped while waiting for the broker")

    def _interrupted(self, timeout: float) -> bool:
        poller = zmq.Poller()
        poller.register(self._stop_read, zmq.POLLIN)
        return bool(poller.poll(int(timeout * 1000)))

    def port(self, name: str, timeout: float = 5.0) -> Port:
        """A local port of this VM, waiting until the broker has offered it. AgentError: NO_PORT, NOT_LOCAL, FORKED."""
        if self._forked:
            message = f"the agent of VM {self.vm} runs in the process that this one was forked from"
            raise AgentError(AgentCause.FORKED, f"{message}: start one of another VM here, or fork before you start it")
        return self._ports.port(name, timeout)

    def stop_on(self, *signals: signal.Signals) -> None:
        """End on these signals: a start that waits, and `wait`. The main thread's; for a process that is an agent.

        The C handler writes to the pipe that the agent polls. A handler in Python would not run while the main thread
        is on its way into a poll, and the signal would be noticed only when that ends.
        """
        signal.set_wakeup_fd(self._stop_write, warn_on_full_buffer=False)
        for number in signals:
            signal.signal(number, lambda *_: None)

    def wait(self) -> None:
        """Until `interrupt`, or a signal of `stop_on`."""
        if self._thread is not None:
            self._thread.join()

    def interrupt(self) -> None:
        """End a start that waits, and `wait`; from another thread. `stop` does the rest."""
        if not self._stopping.is_set() and not self._forked:
            with contextlib.suppress(BlockingIOError):
                os.write(self._stop_write, b"x")

    def stop(self) -> None:
        """Stop all loops, detach all ports and leave; for good. Safe to call twice, by one thread.

        RegionHeldError when an application's thread does not let go of a port's region within 10 seconds: that port
        stays attached, all else has ended, and another call tries again.
        """
        if self._forked:
            return
        self.interrupt()
        if self._thread is not None:
            self._thread.join()
        try:
            self._ports.close()
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
        if not self._stopping.is_set():
            self._stopping.set()  # before the descriptors go: their numbers may be somebody else's next
            if threading.current_thread() is threading.main_thread():
                before = signal.set_wakeup_fd(-1)
                if before != self._stop_write:
                    signal.set_wakeup_fd(before)
            for fd in (self._stop_read, self._stop_write, self._woken):
                os.close(fd)

    def _wake(self) -> None:
        """The agent's thread, to ask for lacking ports; from any thread."""
        with contextlib.suppress(OSError):  # it is awake, or the agent has stopped
            os.eventfd_write(self._woken, 1)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # The agent's own thread from here on. It outlives whatever goes wrong: an agent that is deaf cannot be mended.

    def _serve(self, session: AgentSession) -> None:
        tended = time.monotonic()
        while True:
            self._guarded(self._answer_all, session)
            poller = zmq.Poller()
            sources = (session.socket, session.monitor, self._stop_read, self._woken, *self._ports.descriptors())
            for source in sources:
                poller.register(source, zmq.POLLIN)
            carriers = self._ports.follow_peers()
            until = tended + _TEND_S if carriers is None else min(carriers, tended + _TEND_S)
            left = max(0.0, until - time.monotonic())
            ready = dict(poller.poll(int(left * 1000) + 1))
            if self._stop_read in ready:
                return
            self._guarded(partial(self._hear_ends, {key for key in ready if isinstance(key, int)}), session)
            if session.monitor in ready and session.rejoined():
                self._hello_due = True
            if self._woken in ready:
                os.eventfd_read(self._woken)
                self._hello_due |= self._ports.lacks_ports()
            if self._hello_due:
                self._guarded(self._hello_again, session)
            if time.monotonic() - tended >= _TEND_S:
                tended = time.monotonic()
                self._guarded(self._tend, session)

    def _guarded(self, step: Callable[[AgentSession], None], session: AgentSession) -> None:
        try:
            step(session)
        except Exception as error:  # noqa: BLE001 - logged, and the next message is served
            self._log(f"failed: {error}")

    def _hear_ends(self, readable: set[int], session: AgentSession) -> None:
        for notice in self._ports.on_readable(readable):
            session.notify(notice)

    def _answer_all(self, session: AgentSession) -> None:
        try:
            while (received := session.receive()) is not None:
                session.answer(received.request_id, self._answer(received.message))
        except ControlError as error:
            if error.cause is not Cause.NOT_GREETED:
                raise
            self._hello_due = True

    def _answer(self, message: Message) -> Message:
        try:
            return HANDLERS[type(message)](self._ports, message) or Done()
        except Exception as error:  # noqa: BLE001 - the broker is told, whatever it is
            return _failed(error)

    def _hello_again(self, session: AgentSession) -> None:
        """To a broker that has come back; links go on meanwhile. It may have no fabric: hello is said until it has."""
        try:
            welcome = session.hello(attached=self._ports.link_ids())
        except ControlError as error:
            # Whatever it is, this broker or the next may get over it; an agent that gives up is deaf for good.
            if error.cause not in _WORTH_WAITING and error.message != self._refused:
                self._log(f"the broker does not take this agent: {error}")
            self._refused = error.message
            self._interrupted(_RETRY_S)
            return
        self._hello_due = False
        self._refused = ""
        self._take_up(session, welcome)

    def _tend(self, session: AgentSession) -> None:
        for notice in self._ports.tend():
            session.notify(notice)
        if self._ports.lacks_ports():
            self._hello_due = True  # which brings fresh tickets


def _failed(error: Exception) -> ErrorReply:
    return ErrorReply(cause=Cause.FAILED, message=printable(str(error)))
