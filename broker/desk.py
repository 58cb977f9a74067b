"""The broker's side of the handover socket: accepts, hears one claim, answers, and watches who holds an end.

It never blocks and trusts nobody: a connection that says nothing is closed after a second, no more than a few may be
unanswered at once, and descriptors sent to it are never received.

    state    message      next
    silent   Take         held, when granted; else answered and closed
    silent   anything     answered and closed
    silent   1 s passes   closed
    held     anything     held (an end has nothing more to say; it is read and forgotten)
    held     closed       gone, and the end with it

Connections outlive the broker in the keeper. A claim is read for good only when its answer is out and the two ends are
introduced: until then another broker finds it again, on a connection that holds its end already, and does both again.

    adopted  the Take it holds by     answered again; held
    adopted  anything else, closed    as held

Whoever else has a descriptor of a connection, the keeper for one, would keep it open: hanging up is a shutdown.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ringway.broker.keeping import close_all
from ringway.control import wire
from ringway.control.errors import ControlError
from ringway.control.handover import TAKE_SIZE
from ringway.control.messages import TO_HANDOVER, Cause, Granted, Message, Take

SILENCE: Final = 1.0  # seconds a connection may stay silent
SILENT_MAX: Final = 64
BACKLOG: Final = 128
ACCEPTS: Final = 64  # per round, so that a flood of connections cannot keep the loop here
CREDENTIALS: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid


class Grant(NamedTuple):
    """What a good claim earns: the answer and its descriptors, of which `given` are the broker's no more once sent."""

    granted: Granted
    descriptors: Sequence[int]
    given: Sequence[int]
    then: Callable[[], None]  # when it has been sent


def listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        listener.bind(os.fsencode(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        error.filename = str(path)
        raise
    return listener


class Desk:
    """`redeem(take, connection, now)` judges a claim, raising ControlError; `released(connection)` hears of a closing.

    A connection is known by its descriptor number until `released` has been called for it. `events` is where its
    descriptors are polled.
    """

    def __init__(
        self,
        listener: socket.socket,
        events: select.epoll,
        redeem: Callable[[Take, int, float], Grant],
        released: Callable[[int], None],
    ) -> None:
        self._redeem = redeem
        self._released = released
        self._events = events
        self._silent: dict[int, tuple[socket.socket, float]] = {}  # with their deadlines, oldest first
        self._held: dict[int, socket.socket] = {}
        self._adopted: set[int] = set()  # of the held ones, those that may still have their claim in them
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._listener = listener
        listener.setblocking(False)
        events.register(listener.fileno(), select.EPOLLIN)

    def close(self) -> None:
        """Leave held connections and the listening socket to whoever else has them."""
        for silent, _ in self._silent.values():
            silent.close()
        for connection in (self._listener, *self._held.values()):
            connection.close()
        self._held.clear()
        self._silent.clear()
        if self._spare >= 0:
            os.close(self._spare)

    def adopt(self, fd: int) -> None:
        """A connection that holds an end, from a broker before this one."""
        connection = socket.socket(fileno=fd)
        connection.setblocking(False)
        self._held[fd] = connection
        self._adopted.add(fd)
        self._events.register(fd, select.EPOLLIN)

    def say(self, fd: int, message: Message, descriptors: Sequence[int]) -> bool:
        """A word to a held end, unasked. False when it does not take it."""
        connection = self._held.get(fd)
        return connection is not None and _send(connection, wire.new_id(), message, descriptors)

    def deadline(self) -> float | None:
        """When `expire` is next to be called (monotonic)."""
        return next((deadline for _, deadline in self._silent.values()), None)

    def on_readable(self, fd: int, now: float) -> None:
        if fd == self._listener.fileno():
            for _ in range(ACCEPTS):
                if not self._accept(now):
                    return
        elif fd in self._silent:
            connection, _ = self._silent[fd]
            self._hear(connection, now)
        elif fd in self._adopted:
            self._hear_again(fd, now)
        elif fd in self._held and not self.holds(fd):
            self._released(fd)

    def pid_of(self, fd: int) -> int:
        """The process that took the end, as the kernel says it."""
        connection = self._held.get(fd) or self._silent[fd][0]
        return _credentials(connection)[0]

    def is_ours(self, fd: int) -> bool:
        return fd == self._listener.fileno() or fd in self._silent or fd in self._held

    def expire(self, now: float) -> None:
        for fd in [fd for fd, (_, deadline) in self._silent.items() if deadline <= now]:
            self._hang_up(self._silent.pop(fd)[0])

    def _hang_up(self, connection: socket.socket) -> None:
        # epoll goes on about a descriptor that is closed here and open elsewhere.
        with contextlib.suppress(FileNotFoundError):
            self._events.unregister(connection.fileno())
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    def holds(self, fd: int) -> bool:
        """Is the other end still there? Reads, and forgets, one message if there is one; closes when it is gone."""
        connection = self._held.get(fd)
        if connection is None:
            return False
        try:
            alive = bool(connection.recv(TAKE_SIZE))  # an empty message counts as leaving, as an end of file does
        except BlockingIOError:
            alive = True
        except OSError:
            alive = False
        if not alive:
            self.drop(fd)
        return alive

    def abandon(self, fd: int) -> None:
        """Hang up on a connection in whatever state it is, after something unforeseen; `released` is called."""
        waiting = self._silent.pop(fd, None)
        if waiting is not None:
            self._hang_up(waiting[0])
        self.drop(fd)
        self._released(fd)

    def drop(self, fd: int) -> None:
        """Hang up on an end whose link is gone; `released` is not called."""
        connection = self._held.pop(fd, None)
        self._adopted.discard(fd)
        if connection is not None:
            self._hang_up(connection)

    def _accept(self, now: float) -> bool:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._shed()
            return False
        connection.setblocking(False)
        self._events.register(connection.fileno(), select.EPOLLIN)
        _, uid = _credentials(connection)
        if uid not in (0, os.geteuid()):
            message = f"uid {uid} is neither root nor the broker's ({os.geteuid()}): run the agent as the broker's user"
            self._refuse(connection, wire.NO_ID, ControlError(Cause.SYSTEM, message))
        elif len(self._silent) >= SILENT_MAX:
            message = f"{SILENT_MAX} connections have not said what they want: try again in a second"
            self._refuse(connection, wire.NO_ID, ControlError(Cause.BUSY, message))
        else:
            self._silent[connection.fileno()] = (connection, now + SILENCE)
        return True

    def _shed(self) -> None:
        """Out of descriptors: without this the waiting connection would wake the loop for ever."""
        if self._spare >= 0:
            os.close(self._spare)
        with contextlib.suppress(OSError):
            self._listener.accept()[0].close()
        try:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._spare = -1  # another thread took the place; the next one to leave makes room again

    def _hear(self, connection: socket.socket, now: float) -> None:
        try:
            # No room for ancillary data: the kernel closes what was sent along and says so in the flags.
            payload, _, flags, _ = connection.recvmsg(TAKE_SIZE, 0, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            payload, flags = b"", 0
        if not payload:
            self._silent.pop(connection.fileno())
            self._hang_up(connection)
        elif flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            message = f"a claim has no descriptors and no more than {TAKE_SIZE} bytes"
            self._refuse(connection, wire.NO_ID, ControlError(Cause.BAD_MESSAGE, message))
        else:
            self._answer(connection, payload, now)

    def _hear_again(self, fd: int, now: float) -> None:
        """The first word of an adopted end: a claim that its broker did not live to have read, or nothing new."""
        self._adopted.discard(fd)
        connection = self._held[fd]
        try:
            payload = connection.recv(TAKE_SIZE, socket.MSG_PEEK)
            request_id, take = wire.decode(payload, TO_HANDOVER, TAKE_SIZE)
        except (OSError, wire.WireError):
            self.on_readable(fd, now)
            return
        assert isinstance(take, Take)
        try:
            grant = self._redeem(take, fd, now)
        except ControlError:
            self.on_readable(fd, now)
            return
        self._hand_out(connection, request_id, grant)

    def _answer(self, connection: socket.socket, payload: bytes, now: float) -> None:
        try:
            request_id, take = wire.decode(payload, TO_HANDOVER, TAKE_SIZE)
        except wire.WireError as error:
            self._refuse(connection, error.request_id, error.refusal())
            return
        assert isinstance(take, Take)
        try:
            grant = self._redeem(take, connection.fileno(), now)
        except ControlError as error:
            self._refuse(connection, request_id, error)
            return
        self._held[connection.fileno()] = self._silent.pop(connection.fileno())[0]
        self._hand_out(connection, request_id, grant)

    def _hand_out(self, connection: socket.socket, request_id: str, grant: Grant) -> None:
        fd = connection.fileno()
        sent = _send(connection, request_id, grant.granted, grant.descriptors)
        close_all(grant.given)
        if sent:
            grant.then()
            with contextlib.suppress(OSError):
                connection.recv(TAKE_SIZE)  # the claim, which was only looked at so far
        else:
            self.drop(fd)
            self._released(fd)

    def _refuse(self, connection: socket.socket, request_id: str, error: ControlError) -> None:
        self._silent.pop(connection.fileno(), None)
        with contextlib.suppress(OSError):
            connection.recv(TAKE_SIZE)  # closed with something unread, the other end would see that and not the answer
        _send(connection, request_id, error.reply(), ())
        self._hang_up(connection)


def _credentials(connection: socket.socket) -> tuple[int, int]:
    pid, uid, _ = CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    return pid, uid


def _send(connection: socket.socket, request_id: str, message: Message, descriptors: Sequence[int]) -> bool:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    try:
        connection.sendmsg([wire.encode(request_id, message, TAKE_SIZE)], ancillary)
    except OSError:
        return False  # it left before the answer; what it held in flight the kernel has closed
    return True
