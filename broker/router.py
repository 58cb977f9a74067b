"""The broker's ROUTER socket: messages in and out as bytes, by the identity of who says them; nothing of it blocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import zmq

from ringway.control import wire
from ringway.control.errors import ControlError
from ringway.control.messages import Cause, Message

HIGH_WATER: Final = 1024  # messages per peer and direction; a peer that does not read loses what is over
HANDSHAKE_MS: Final = 2000  # a connection that has not shaken hands by then is closed
MESSAGES_PER_ROUND: Final = 64  # so that a talkative peer cannot keep the loop from the descriptors
ZMQ_OLDEST: Final = (4, 3, 3)  # before it: CVE-2020-15166, CVE-2021-20237


def check_zmq() -> None:
    """ControlError for a libzmq with known holes."""
    if zmq.zmq_version_info() < ZMQ_OLDEST:
        raise ControlError(Cause.SYSTEM, f"libzmq {zmq.zmq_version()} is too old: 4.3.3 or newer is needed")


class Router:
    """Bound at `path`, where nothing may be."""

    def __init__(self, path: Path) -> None:
        self._context = zmq.Context()
        try:
            self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        except zmq.ZMQError as error:
            raise ControlError(Cause.SYSTEM, f"ZeroMQ cannot make its socket ({error}): see to that first") from None
        self._socket.setsockopt(zmq.LINGER, 200)  # ms: a reply before stopping still gets out
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # tells of peers that are gone
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # an agent that reconnects comes with the identity it had
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MESSAGE_SIZE)
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
        self._socket.setsockopt(zmq.RCVHWM, HIGH_WATER)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        try:
            self._socket.bind(f"ipc://{path}")
        except zmq.ZMQError as error:
            self.close()
            message = f"the control socket {path} cannot be bound ({error}): links that are up go on meanwhile"
            raise ControlError(Cause.SYSTEM, message) from None

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    def fileno(self) -> int:
        """Readable when something has happened, once: `pending` tells what is left."""
        return int(self._socket.getsockopt(zmq.FD))

    def pending(self) -> bool:
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def messages(self) -> Iterator[tuple[bytes, bytes]]:
        """Identities with what they have said, up to a bound. Messages of several frames are answered here."""
        for _ in range(MESSAGES_PER_ROUND):
            try:
                identity = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            payload = self._socket.recv()
            if not self._socket.getsockopt(zmq.RCVMORE):
                yield identity, payload
                continue
            while self._socket.getsockopt(zmq.RCVMORE):  # never kept: a message may have any number of frames
                self._socket.recv(copy=False)
            error = ControlError(Cause.BAD_MESSAGE, "a message is one frame: {v, id, kind, body} as msgpack")
            self.send(identity, wire.NO_ID, error.reply())

    def send(self, identity: bytes, request_id: str, message: Message) -> bool:
        return self.send_bytes(identity, wire.encode(request_id, message, wire.REPLY_SIZE))

    def send_bytes(self, identity: bytes, payload: bytes) -> bool:
        """False when the peer is gone, or so far behind that it loses this."""
        try:
            self._socket.send_multipart([identity, payload], zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        return True
