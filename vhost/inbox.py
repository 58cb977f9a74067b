"""Messages from a socket: bytes and descriptors in, whole messages out. It knows no session."""

from __future__ import annotations

import array
import os
import socket
import time
from typing import Final

from ringway.vhost.protocol import FDS_MAX, HEADER, PAYLOAD_MAX, Message
from ringway.vhost.session import SessionError

STALL_S: Final = 1.0  # that a message may take from its first byte to its last


class Inbox:
    """Of one connection, whose socket stays the caller's. It owns the descriptors of a message that is not complete."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._bytes = b""
        self._fds: list[int] = []
        self._began = 0.0  # monotonic, of a message under way

    def receive(self) -> Message | None:
        """The next message; None while it is not all there. SessionError when there will be none."""
        while True:
            missing = self._missing()
            if missing == 0:
                return self._complete()
            data = self._read(missing)
            if data is None:
                return None
            if not self._bytes:
                self._began = time.monotonic()
            self._bytes += data

    def deadline(self) -> float | None:
        """When a message under way has taken too long (monotonic)."""
        return self._began + STALL_S if self._bytes else None

    def close(self) -> None:
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)

    def _missing(self) -> int:
        """Never more than belongs to this message: descriptors that come with the next one stay with it."""
        if len(self._bytes) < HEADER.size:
            return HEADER.size - len(self._bytes)
        request, _, size = HEADER.unpack_from(self._bytes)
        if size > PAYLOAD_MAX:
            raise SessionError(f"request {request} announces {size} bytes: {PAYLOAD_MAX} are the most there can be")
        return int(HEADER.size + size - len(self._bytes))

    def _complete(self) -> Message:
        request, flags, _ = HEADER.unpack_from(self._bytes)
        message = Message(request, flags, self._bytes[HEADER.size :], self._fds)
        self._bytes, self._fds = b"", []
        return message

    def _read(self, size: int) -> bytes | None:
        room = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)
        try:
            data, ancillary, flags, _ = self._connection.recvmsg(
                size, room, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return None
        except OSError as error:
            raise SessionError(f"its connection fails: {error.strerror}") from None
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._fds += array.array("i", content[: len(content) - len(content) % 4])
        if flags & socket.MSG_CTRUNC or len(self._fds) > FDS_MAX:
            raise SessionError(f"more than {FDS_MAX} descriptors with one message, or more than this process may have")
        if not data:
            raise SessionError("it has closed the connection")
        return data
