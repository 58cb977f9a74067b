"""The broker's control socket: messages in and out as bytes, by the identity of their sender; nothing of it blocks.

ZeroMQ is not in this process: `listener_process.py` speaks it, is started here, and started again when it has died.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import zmq

from ringway.broker import listener_process as process
from ringway.control import wire
from ringway.control.errors import ControlError
from ringway.control.messages import Cause, Message

MESSAGES_PER_ROUND: Final = 64  # so that a talkative peer cannot keep the loop from the descriptors
UNSENT_MAX: Final = 4 * wire.REPLY_SIZE  # bytes that wait for the listener
ZMQ_OLDEST: Final = (4, 3, 3)  # before it: CVE-2020-15166, CVE-2021-20237
BACKLOG: Final = 128
START_TIMEOUT: Final = 10.0  # seconds; it takes some 0.1 s on a quiet machine
CLOSE_TIMEOUT: Final = 2.0  # seconds; it lingers for 0.2 s
RETRY: Final = 1.0  # seconds between two starts of a listener
SPARE: Final = 32  # connections for the command line and for agents that come again while the old one is still known


def check_zmq() -> None:
    """ControlError for a libzmq with known holes."""
    if zmq.zmq_version_info() < ZMQ_OLDEST:
        raise ControlError(Cause.SYSTEM, f"libzmq {zmq.zmq_version()} is too old: 4.3.3 or newer is needed")


class Router:
    """Bound at `path`, where nothing may be. `events` is where it is polled; `say` takes one line for the log."""

    def __init__(self, path: Path, events: select.epoll, say: Callable[[str], None]) -> None:
        self._path = path
        self._events = events
        self._say = say
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._lost: list[bytes] = []
        self._room = 0
        self._again_at = 0.0
        try:
            self._door.bind(os.fsencode(path))
            self._door.listen(BACKLOG)
            self._start()
        except OSError as error:
            self._door.close()
            message = f"the control socket {path} cannot be bound ({error}): links that are up go on meanwhile"
            raise ControlError(Cause.SYSTEM, message) from None

    def await_ready(self) -> None:
        """ControlError when the listener does not start."""
        deadline = time.monotonic() + START_TIMEOUT
        while not self._room:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._stream.connection], [], [], max(left, 0))
            self._stream.read()
            self._sort_first()
            if not self._room and (self._stream.over or not ready):
                self._process.kill()
                message = (
                    f"the listener of {self._path} did not start (exit code {self._process.wait()}): see what it said, "
                    "and give it descriptors (ulimit -Hn, LimitNOFILE)"
                )
                raise ControlError(Cause.SYSTEM, message)

    def check_room(self, agents: int) -> None:
        """ControlError when so many agents cannot be connected at once."""
        if agents + SPARE > self._room:
            message = (
                f"the VMs' agents need {agents} connections, {SPARE} are kept back, and {self._room} are possible: "
                "raise the broker's hard limit (ulimit -Hn, LimitNOFILE) or make fewer VMs"
            )
            raise ControlError(Cause.LIMIT, message)

    def close(self) -> None:
        """What was sent before still gets out."""
        connection = self._stream.connection
        connection.settimeout(CLOSE_TIMEOUT)
        self._stream.flush()
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        try:
            self._process.wait(CLOSE_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        connection.close()
        self._door.close()

    def fileno(self) -> int:
        return self._stream.connection.fileno()

    def pending(self) -> bool:
        """Is there more than `messages` has given, though nothing is readable?"""
        return self._stream.received.ready() or bool(self._lost)

    def deadline(self) -> float | None:
        """When `mend` is next to be called (monotonic)."""
        return self._again_at if self._stream.over else None

    def mend(self, now: float) -> None:
        """Start another listener in the place of one that has died. Agents come back by themselves."""
        if not self._stream.over or now < self._again_at or self.pending():
            return
        self._again_at = now + RETRY
        status = self._process.wait()
        try:
            self._stream.connection.close()
            self._start()
        except OSError as error:
            self._say(f"the listener of {self._path} cannot be started ({error.strerror}); trying again")
            return
        self._say(f"the listener of {self._path} has died (exit code {status}): another one has taken its place")

    def messages(self) -> Iterator[tuple[bytes, bytes]]:
        """Identities with what they have said, up to a bound. Messages of several frames are answered here."""
        self._stream.flush()
        if not self._stream.received.ready() and not self._stream.over:
            self._stream.read()
        for _, (what, identity, payload) in zip(range(MESSAGES_PER_ROUND), self._stream.received, strict=False):
            if what == process.SAID:
                yield identity, payload
            elif what == process.SEVERAL:
                error = ControlError(Cause.BAD_MESSAGE, "a message is one frame: {v, id, kind, body} as msgpack")
                self.send(identity, wire.NO_ID, error.reply())
            else:
                self._note(what, identity, payload)
        self._watch()

    def lost(self) -> list[bytes]:
        """Peers that something did not reach since the last call: they are gone, or so far behind that they lose it."""
        found, self._lost = self._lost, []
        return found

    def send(self, identity: bytes, request_id: str, message: Message) -> None:
        """In the order of the calls; `lost` tells when it did not arrive."""
        payload = wire.encode(request_id, message, wire.REPLY_SIZE)
        if self._stream.over or self._stream.unsent() + len(payload) > UNSENT_MAX:
            self._lost.append(identity)
            return
        self._stream.write(process.SAID, identity, payload)
        self._watch()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = [str(self._path), str(theirs.fileno()), str(self._door.fileno()), str(wire.MESSAGE_SIZE)]
            self._process = subprocess.Popen(
                [sys.executable, "-P", process.__file__, *arguments],  # by path: it needs nothing else of ringway
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # whoever waits for the end of the broker's output
                pass_fds=(theirs.fileno(), self._door.fileno()),
                cwd="/",
            )
        self._stream = process.Stream(ours)
        self._events.register(ours, select.EPOLLIN)

    def _watch(self) -> None:
        if not self._stream.over:
            self._events.modify(self.fileno(), select.EPOLLIN | (select.EPOLLOUT if self._stream.unsent() else 0))
            return
        with contextlib.suppress(FileNotFoundError):  # else its end would wake the loop until `mend` may be tried
            self._events.unregister(self.fileno())

    def _sort_first(self) -> None:
        """READY, which comes before everything else."""
        for what, identity, payload in self._stream.received:
            self._note(what, identity, payload)
            return

    def _note(self, what: int, identity: bytes, payload: bytes) -> None:
        if what == process.LOST:
            self._lost.append(identity)
            return
        (number,) = process.NUMBER.unpack(payload)
        if what == process.READY:
            self._room = number
        else:
            self._say(
                f"{number} connections were closed, for there are {self._room} already, which is all that fit: close "
                "some, or raise the broker's hard limit (ulimit -Hn, LimitNOFILE)"
            )
