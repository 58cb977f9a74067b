"""The broker's clients: one that asks and goes, and an agent's session, which the broker also speaks to."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import zmq

from ringway.control import wire
from ringway.control.errors import ControlError
from ringway.control.messages import (
    ENDS_MAX,
    FROM_BROKER,
    PUSHED,
    Apply,
    Cause,
    ErrorReply,
    Hello,
    Message,
    Notice,
    StatusRequest,
    Welcome,
)
from ringway.control.release import RELEASE
from ringway.control.runtime import control_path

CALL_TIMEOUT: Final = 5.0  # seconds
HIGH_WATER: Final = 256  # messages queued in either direction
PUSHES_MAX: Final = 65536  # kept while an answer is awaited
EVENT: Final = struct.Struct("=HI")  # zmq_socket_monitor(3), first frame: event and value; pyzmq's own takes asyncio in

Reply = TypeVar("Reply", bound=Message)


class Connection:
    """A DEALER socket to the broker's control socket; `identity` is what the broker knows the peer by."""

    def __init__(self, runtime: Path, identity: bytes = b"") -> None:
        self._path = control_path(runtime)
        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a broker that is not there
        self.socket.setsockopt(zmq.MAXMSGSIZE, wire.REPLY_SIZE)
        self.socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
        self.socket.setsockopt(zmq.RCVHWM, HIGH_WATER)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 100)
        if identity:
            self.socket.setsockopt(zmq.ROUTING_ID, identity)
        # Readable when the connection changes: ZeroMQ reconnects silently, and what a dead broker was asked is lost.
        self.monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        self._lost = False
        self.socket.connect(f"ipc://{self._path}")

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close(linger=0)  # or the context waits for it
        self.socket.close()
        self._context.term()

    def rejoined(self) -> bool:
        """Drain `monitor`; true when the connection was lost and is there again."""
        returned = False
        while self.monitor.poll(0):
            (event, _) = EVENT.unpack(self.monitor.recv_multipart()[0])
            if event == zmq.EVENT_DISCONNECTED:
                self._lost = True
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED and self._lost:
                self._lost = False
                returned = True
        return returned

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, request_id: str, message: Message, timeout: float) -> None:
        try:
            payload = wire.encode(request_id, message)
        except wire.WireError as error:
            raise ControlError(Cause.BAD_MESSAGE, error.message) from None
        if not self.socket.poll(0, zmq.POLLOUT):
            self._probe()  # says at once that there is nobody, where ZeroMQ would keep trying
        deadline = time.monotonic() + timeout
        while self.socket.poll(int(max(deadline - time.monotonic(), 0) * 1000), zmq.POLLOUT):
            with contextlib.suppress(zmq.Again):  # the connection was lost between the two
                self._put(payload)
                return
        raise ControlError(Cause.TIMEOUT, f"the broker at {self._path} took no message for {timeout:g} s")

    def _put(self, payload: bytes) -> None:
        self.socket.send(payload, zmq.NOBLOCK)

    def _receive(self, timeout: float) -> wire.Received | None:
        if not self.socket.poll(int(max(timeout, 0) * 1000), zmq.POLLIN):
            return None
        frames = self.socket.recv_multipart(zmq.NOBLOCK)
        try:
            if len(frames) != 1:
                raise wire.WireError(wire.WireCause.ENVELOPE, f"{len(frames)} frames in one message, not 1")
            return wire.decode(frames[0], FROM_BROKER, wire.REPLY_SIZE)
        except wire.WireError as error:
            cause = Cause.VERSION if error.cause is wire.WireCause.VERSION else Cause.PROTOCOL
            raise ControlError(cause, f"the broker's message is not readable: {error.message}") from None

    def _probe(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            status = probe.connect_ex(os.fsencode(self._path))
        if status in (0, errno.EAGAIN):  # EAGAIN: a broker whose backlog is full
            return
        why = os.strerror(status)
        message = f"no broker answers at {self._path} ({why}): start one with `ringway broker`, or name its --runtime"
        raise ControlError(Cause.NO_BROKER, message)


def _refuse(error: ErrorReply) -> ControlError:
    return ControlError(error.cause, error.message)


class Client(Connection):
    """Asks one thing at a time. Where the broker dies over a question, the next one is asked again. Not so with Apply:
    what killed the first broker would kill the next, and whoever gave the command has to know."""

    def call(self, request: Message, expected: type[Reply], timeout: float = CALL_TIMEOUT) -> Reply:
        request_id = wire.new_id()
        deadline = time.monotonic() + timeout
        self._send(request_id, request, timeout)
        while (left := deadline - time.monotonic()) > 0:
            zmq.select([self.socket, self.monitor], [], [], left)
            back = self.rejoined()
            received = self._receive(0)
            if received is None:
                if isinstance(request, Apply) and (back or self._lost):
                    raise self._died_over_it()
                if back:
                    self._send(request_id, request, timeout)
                continue
            if received.request_id not in (request_id, wire.NO_ID):
                continue  # the answer to a call that was given up
            if isinstance(received.message, ErrorReply):
                raise _refuse(received.message)
            if isinstance(received.message, expected):
                return received.message
            raise ControlError(Cause.PROTOCOL, f"the broker answered with a {type(received.message).__name__}")
        raise ControlError(Cause.TIMEOUT, f"the broker at {self._path} did not answer within {timeout:g} s")

    def _put(self, payload: bytes) -> None:
        """Whatever was lost before is none of this message's business."""
        self.rejoined()
        self._lost = False
        super()._put(payload)

    def _died_over_it(self) -> ControlError:
        message = (
            f"the broker at {self._path} died over the apply, or hung up, before it answered; it happened as a whole "
            "or not at all: start the broker again if nothing does, see with `ringway show` or `ringway plan` what it "
            "has, and give the same command again if that is to be different"
        )
        return ControlError(Cause.NO_BROKER, message)


class AgentSession(Connection):
    """An agent's conversation with its broker; `socket` and `monitor` are for the agent's own zmq.Poller.

    When `monitor` is readable, `rejoined` says whether it is time for another hello. The session is known by a random
    identity that stays the same over all its connections: a new broker sees by it which agent held the ends before.
    """

    def __init__(self, runtime: Path, vm: str, version: str = RELEASE) -> None:
        super().__init__(runtime, b"a" + os.urandom(15))  # one that begins with 0 is ZeroMQ's own
        self.vm = vm
        self._version = version
        self._pushed: deque[wire.Received] = deque()
        self._superseded: list[str] = []

    def hello(self, timeout: float = CALL_TIMEOUT, attached: Sequence[int] = ()) -> Welcome:
        """Make oneself known, again whenever a fresh ticket is needed. Pushes that come in meanwhile are kept.

        `attached`: the links that this agent has ends of, by their ids.
        """
        request_id = wire.new_id()
        deadline = time.monotonic() + timeout
        hello = Hello(vm=self.vm, pid=os.getpid(), version=self._version, attached=list(attached[:ENDS_MAX]))
        self._send(request_id, hello, timeout)
        while (received := self._receive(deadline - time.monotonic())) is not None:
            if isinstance(received.message, PUSHED):
                self._keep(received)
            elif received.request_id != request_id:
                continue
            elif isinstance(received.message, ErrorReply):
                raise _refuse(received.message)
            elif isinstance(received.message, Welcome):
                # It says all that was pushed before it, with fresh tickets; questions are still to be answered.
                self._superseded += [
                    kept.request_id for kept in self._pushed if not isinstance(kept.message, StatusRequest)
                ]
                self._pushed = deque(kept for kept in self._pushed if isinstance(kept.message, StatusRequest))
                return received.message
        raise ControlError(Cause.TIMEOUT, f"the broker at {self._path} did not answer hello within {timeout:g} s")

    def receive(self) -> wire.Received | None:
        """The next request of the broker, without waiting. After hello look here first, then poll `socket`.

        ControlError (NOT_GREETED) when the broker does not know this agent any more: say hello again.
        """
        if self._pushed:
            return self._pushed.popleft()
        while (received := self._receive(0)) is not None:
            if isinstance(received.message, PUSHED):
                return received
            if isinstance(received.message, ErrorReply) and received.message.cause is Cause.NOT_GREETED:
                raise _refuse(received.message)
        return None

    def superseded(self) -> list[str]:
        """Requests whose content has come with a welcome: to be answered when that has been carried out."""
        ids, self._superseded = self._superseded, []
        return ids

    def answer(self, request_id: str, reply: Message) -> None:
        """Answer a pushed request. A broker that is gone needs no answer."""
        self._say(request_id, reply)

    def notify(self, notice: Notice) -> None:
        self._say(wire.new_id(), notice)

    def _say(self, request_id: str, message: Message) -> None:
        try:
            self.socket.send(wire.encode(request_id, message), zmq.NOBLOCK)
        except wire.WireError as error:
            raise ControlError(Cause.BAD_MESSAGE, error.message) from None
        except zmq.Again:
            return

    def _keep(self, received: wire.Received) -> None:
        if len(self._pushed) >= PUSHES_MAX:
            raise ControlError(Cause.PROTOCOL, f"the broker pushed {PUSHES_MAX} requests and no answer to hello")
        self._pushed.append(received)
