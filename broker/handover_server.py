"""The broker's side of the handover socket, as transport: bytes in, claims and closings out. It judges no claim.

It never blocks and trusts nobody: a connection that says nothing is closed after a second, no more than a few may be
unanswered at once, and descriptors sent to it are never received.

    state    message      next
    silent   Claim        kept, when answered; closed, when refused
    silent   anything     answered and closed
    silent   1 s passes   closed
    kept     anything     kept (an end has nothing more to say; it is read and forgotten)
    kept     closed       gone

Connections outlive the broker in the keeper. A claim is read for good only by `settle`, when its answer is out and the
two ends are introduced: until then another broker finds it again, on a connection that it has adopted.

    adopted  Claim                    said again; kept
    adopted  anything else, closed    as kept

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
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ringway.control import wire
from ringway.control.errors import ControlError
from ringway.control.handover import CLAIM_SIZE
from ringway.control.messages import TO_HANDOVER, Cause, Claim, Message

SILENCE: Final = 1.0  # seconds a connection may stay silent
SILENT_MAX: Final = 64
BACKLOG: Final = 128
ACCEPTS: Final = 64  # per round, so that a flood of connections cannot keep the loop here
CREDENTIALS: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid


class ClaimReceived(NamedTuple):
    connection: int
    request_id: str
    message: Claim
    again: bool  # from before this broker: perhaps it was answered


class Closed(NamedTuple):
    """A kept connection is gone, and hung up here too."""

    connection: int


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


class HandoverServer:
    """A connection is known by its descriptor number until it is closed. `events` is where those are polled."""

    def __init__(self, listener: socket.socket, events: select.epoll) -> None:
        self._events = events
        self._silent: dict[int, tuple[socket.socket, float]] = {}  # with their deadlines, oldest first
        self._kept: dict[int, socket.socket] = {}
        self._adopted: set[int] = set()  # of the kept ones, those that may still have their claim in them
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._listener = listener
        listener.setblocking(False)
        events.register(listener.fileno(), select.EPOLLIN)

    def close(self) -> None:
        """Leave kept connections and the listening socket to whoever else has them."""
        for silent, _ in self._silent.values():
            silent.close()
        for connection in (self._listener, *self._kept.values()):
            connection.close()
        self._kept.clear()
        self._silent.clear()
        if self._spare >= 0:
            os.close(self._spare)

    def adopt(self, fd: int) -> None:
        """A connection that a broker before this one kept."""
        connection = socket.socket(fileno=fd)
        connection.setblocking(False)
        self._kept[fd] = connection
        self._adopted.add(fd)
        self._events.register(fd, select.EPOLLIN)

    def say(self, fd: int, message: Message, descriptors: Sequence[int]) -> bool:
        """A word to a kept connection, unasked. False when it does not take it."""
        connection = self._kept.get(fd)
        return connection is not None and _send(connection, wire.new_id(), message, descriptors)

    def deadline(self) -> float | None:
        """When `expire` is next to be called (monotonic)."""
        return next((deadline for _, deadline in self._silent.values()), None)

    def on_readable(self, fd: int, now: float) -> ClaimReceived | Closed | None:
        if fd == self._listener.fileno():
            for _ in range(ACCEPTS):
                if not self._accept(now):
                    break
        elif fd in self._silent:
            return self._hear(self._silent[fd][0])
        elif fd in self._adopted:
            return self._hear_again(fd)
        elif fd in self._kept and not self.is_open(fd):
            return Closed(fd)
        return None

    def pid_of(self, fd: int) -> int:
        """The process at the other end, as the kernel says it."""
        connection = self._kept.get(fd) or self._silent[fd][0]
        return _credentials(connection)[0]

    def is_ours(self, fd: int) -> bool:
        return fd == self._listener.fileno() or fd in self._silent or fd in self._kept

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

    def is_open(self, fd: int) -> bool:
        """Is the other end of a kept connection there? Reads, and forgets, one message if there is one, but no claim
        from before this broker; hangs up when it is gone."""
        connection = self._kept.get(fd)
        if connection is None:
            return False
        try:
            peek = socket.MSG_PEEK if fd in self._adopted else 0
            alive = bool(
                connection.recv(CLAIM_SIZE, peek)
            )  # an empty message counts as leaving, as an end of file does
        except BlockingIOError:
            alive = True
        except OSError:
            alive = False
        if not alive:
            self.drop(fd)
        return alive

    def abandon(self, fd: int) -> None:
        """Hang up on a connection in whatever state it is, after something unforeseen."""
        waiting = self._silent.pop(fd, None)
        if waiting is not None:
            self._hang_up(waiting[0])
        self.drop(fd)

    def drop(self, fd: int) -> None:
        """Hang up on a kept connection."""
        connection = self._kept.pop(fd, None)
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
            self._turn_away(connection, wire.NO_ID, ControlError(Cause.SYSTEM, message))
        elif len(self._silent) >= SILENT_MAX:
            message = f"{SILENT_MAX} connections have not said what they want: try again in a second"
            self._turn_away(connection, wire.NO_ID, ControlError(Cause.BUSY, message))
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

    def _hear(self, connection: socket.socket) -> ClaimReceived | None:
        try:
            # No room for ancillary data: the kernel closes what was sent along and says so in the flags.
            payload, _, flags, _ = connection.recvmsg(CLAIM_SIZE, 0, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError:
            payload, flags = b"", 0
        if not payload:
            self._silent.pop(connection.fileno())
            self._hang_up(connection)
            return None
        if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            message = f"a claim has no descriptors and no more than {CLAIM_SIZE} bytes"
            self._turn_away(connection, wire.NO_ID, ControlError(Cause.BAD_MESSAGE, message))
            return None
        try:
            return _claim(connection, payload, again=False)
        except wire.WireError as error:
            self._turn_away(connection, error.request_id, error.refusal())
            return None

    def _hear_again(self, fd: int) -> ClaimReceived | Closed | None:
        """The first word of an adopted connection: a claim that its broker did not live to have read, or no news."""
        self._adopted.discard(fd)
        connection = self._kept[fd]
        try:
            return _claim(connection, connection.recv(CLAIM_SIZE, socket.MSG_PEEK), again=True)
        except (OSError, wire.WireError):
            return None if self.is_open(fd) else Closed(fd)

    def answer(self, claim: ClaimReceived, message: Message, descriptors: Sequence[int]) -> bool:
        """Keep the claim's connection. False, and it is hung up, when that does not take the answer."""
        fd = claim.connection
        if fd in self._silent:
            self._kept[fd] = self._silent.pop(fd)[0]
        if _send(self._kept[fd], claim.request_id, message, descriptors):
            return True
        self.drop(fd)
        return False

    def settle(self, claim: ClaimReceived) -> None:
        """Nothing that the claim asks for is left to do: a later broker need not find it again."""
        with contextlib.suppress(OSError):
            self._kept[claim.connection].recv(CLAIM_SIZE)

    def refuse(self, claim: ClaimReceived, error: ControlError) -> None:
        """Say why, and hang up."""
        if claim.connection in self._silent:
            self._turn_away(self._silent[claim.connection][0], claim.request_id, error)

    def _turn_away(self, connection: socket.socket, request_id: str, error: ControlError) -> None:
        self._silent.pop(connection.fileno(), None)
        with contextlib.suppress(OSError):
            connection.recv(CLAIM_SIZE)  # closed with something unread, the other end would see that and not the answer
        _send(connection, request_id, error.reply(), ())
        self._hang_up(connection)


def _claim(connection: socket.socket, payload: bytes, again: bool) -> ClaimReceived:
    request_id, claim = wire.decode(payload, TO_HANDOVER, CLAIM_SIZE)
    assert isinstance(claim, Claim)
    return ClaimReceived(connection.fileno(), request_id, claim, again)


def _credentials(connection: socket.socket) -> tuple[int, int]:
    pid, uid, _ = CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    return pid, uid


def _send(connection: socket.socket, request_id: str, message: Message, descriptors: Sequence[int]) -> bool:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    try:
        connection.sendmsg([wire.encode(request_id, message, CLAIM_SIZE)], ancillary)
    except OSError:
        return False  # it left before the answer; what it held in flight the kernel has closed
    return True
