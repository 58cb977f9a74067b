"""How an attached end knows of the other one's death, without asking the broker; and how the broker knows of its own.

Two descriptors are watched: the connection by which the end was handed over, on which the broker introduces the other
end each time somebody takes that, and the other end's lifeline, which hangs up when its holder lets go or dies.
"""

from __future__ import annotations

import os
import socket
import threading
from typing import NamedTuple

from ringway.agent.fork import let_go_when_forked
from ringway.control.handover import Handover, hear
from ringway.control.messages import Peer


class PeerEvent(NamedTuple):
    """What has become of the other end: `attached` by this incarnation, or `left` by it."""

    attached: bool
    incarnation: int


class Lifeline:
    """It owns its descriptors from here on. Any thread may call it: an application may detach while the agent looks."""

    def __init__(self, handover: Handover) -> None:
        self._lock = threading.RLock()
        self._connection: socket.socket | None = handover.connection
        self._own_fd = handover.life_fd
        self._peer_fd = -1
        let_go_when_forked(self)
        self.peer_attached = False
        self._incarnation = 0

    def descriptors(self) -> list[int]:
        """What to poll for reading."""
        with self._lock:
            found = [self._connection.fileno()] if self._connection is not None else []
            return [*found, self._peer_fd] if self._peer_fd >= 0 else found

    def on_readable(self, fd: int) -> PeerEvent | None:
        """One of the descriptors is readable or has hung up. ControlError when the broker says what is no word."""
        with self._lock:
            if fd == self._peer_fd:
                self._end_peer()
                return PeerEvent(False, self._incarnation)
            if self._connection is not None and fd == self._connection.fileno():
                return self._hear(self._connection)
            return None

    def leave_to_parent(self) -> None:
        """In a forked child: close the copies of the descriptors, by which the end would stay held."""
        self._lock = threading.RLock()
        self.close()

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._end_peer()
            self._take_own(-1)

    def _hear(self, connection: socket.socket) -> PeerEvent | None:
        try:
            word = hear(connection)
        except BlockingIOError:
            return None
        except OSError:
            word = None
        if word is None:  # the broker has let go of the end; what follows from that it says elsewhere
            connection.close()
            self._connection = None
            return None
        if not isinstance(word.message, Peer):
            self._take_own(word.fd)  # the first one's other half died with the broker
            return None
        self._end_peer()
        self._peer_fd = word.fd
        self.peer_attached = True
        self._incarnation = word.message.incarnation
        return PeerEvent(True, self._incarnation)

    def _take_own(self, fd: int) -> None:
        before, self._own_fd = self._own_fd, fd
        if before >= 0:
            os.close(before)

    def _end_peer(self) -> None:
        self.peer_attached = False
        if self._peer_fd >= 0:
            os.close(self._peer_fd)
            self._peer_fd = -1
