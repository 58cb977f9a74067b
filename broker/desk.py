"""The broker's side of the handover socket: accepts, hears one claim, answers, and watches who holds an end.

It never blocks and trusts nobody: a connection that says nothing is closed after a second, no more than a few may be
unanswered at once, and descriptors sent to it are never received.

    state    message      next
    silent   Take         held, when granted; else answered and closed
    silent   anything     answered and closed
    silent   1 s passes   closed
    held     anything     held (an end has nothing more to say; it is read and forgotten)
    held     closed       gone, and the end with it
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

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
    """What a good claim earns: the answer, and descriptors that stay the broker's."""

    granted: Granted
    descriptors: Sequence[int]


class Desk:
    """`redeem(take, connection, now)` judges a claim, raising ControlError; `released(connection)` hears of a closing.

    A connection is known by its descriptor number until `released` has been called for it.
    """

    def __init__(
        self, path: Path, redeem: Callable[[Take, int, float], Grant], released: Callable[[int], None]
    ) -> None:
        self._redeem = redeem
        self._released = released
        self._silent: dict[int, tuple[socket.socket, float]] = {}  # with their deadlines, oldest first
        self._held: dict[int, socket.socket] = {}
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind(os.fsencode(path))
        self._listener.listen(BACKLOG)

    def close(self) -> None:
        for connection in (self._listener, *self._held.values(), *(entry[0] for entry in self._silent.values())):
            connection.close()
        self._held.clear()
        self._silent.clear()
        if self._spare >= 0:
            os.close(self._spare)

    def descriptors(self) -> Iterable[int]:
        """What to poll for reading."""
        return (self._listener.fileno(), *self._silent, *self._held)

    def deadline(self) -> float | None:
        """When `expire` is next to be called (monotonic)."""
        return next((deadline for _, deadline in self._silent.values()), None)

    def on_readable(self, fd: int, now: float) -> None:
        if fd == self._listener.fileno():
            for _ in range(ACCEPTS):
                if not self._accept(now):
                    return
        elif fd in self._silent:
            self._hear(fd, now)
        elif fd in self._held and not self.holds(fd):
            self._released(fd)

    def expire(self, now: float) -> None:
        for fd in [fd for fd, (_, deadline) in self._silent.items() if deadline <= now]:
            self._silent.pop(fd)[0].close()

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
            del self._held[fd]
            connection.close()
        return alive

    def abandon(self, fd: int) -> None:
        """Hang up on a connection in whatever state it is, after something unforeseen; `released` is called."""
        waiting = self._silent.pop(fd, None)
        if waiting is not None:
            waiting[0].close()
        self.drop(fd)
        self._released(fd)

    def drop(self, fd: int) -> None:
        """Hang up on an end whose link is gone; `released` is not called."""
        connection = self._held.pop(fd, None)
        if connection is not None:
            connection.close()

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
        _, uid, _ = CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
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

    def _hear(self, fd: int, now: float) -> None:
        connection, _ = self._silent[fd]
        try:
            # No room for ancillary data: the kernel closes what was sent along and says so in the flags.
            payload, _, flags, _ = connection.recvmsg(TAKE_SIZE)
        except BlockingIOError:
            return
        except OSError:
            payload, flags = b"", 0
        del self._silent[fd]
        if not payload:
            connection.close()
        elif flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            message = f"a claim has no descriptors and no more than {TAKE_SIZE} bytes"
            self._refuse(connection, wire.NO_ID, ControlError(Cause.BAD_MESSAGE, message))
        else:
            self._answer(connection, payload, now)

    def _answer(self, connection: socket.socket, payload: bytes, now: float) -> None:
        try:
            request_id, take = wire.decode(payload, TO_HANDOVER, TAKE_SIZE)
        except wire.WireError as error:
            self._refuse(connection, error.request_id, ControlError(Cause.BAD_MESSAGE, error.message))
            return
        assert isinstance(take, Take)
        fd = connection.fileno()
        try:
            grant = self._redeem(take, fd, now)
        except ControlError as error:
            self._refuse(connection, request_id, error)
            return
        if _send(connection, request_id, grant.granted, grant.descriptors):
            self._held[fd] = connection
        else:
            connection.close()
            self._released(fd)

    def _refuse(self, connection: socket.socket, request_id: str, error: ControlError) -> None:
        _send(connection, request_id, error.reply(), ())
        connection.close()


def _send(connection: socket.socket, request_id: str, message: Message, descriptors: Sequence[int]) -> bool:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    try:
        connection.sendmsg([wire.encode(request_id, message, TAKE_SIZE)], ancillary)
    except OSError:
        return False  # it left before the answer; what it held in flight the kernel has closed
    return True
