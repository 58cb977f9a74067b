"""The listener's process: owns the broker's ROUTER socket, and passes on what agents say and what they are told.

libzmq cannot bound its connections, and aborts when it has no descriptor left for one. Here that costs neither the
broker nor a link: the broker starts another, and agents reconnect by themselves. It is run by path and knows nothing
of ringway but the records below; `router.py` is the other end of its socket pair.

    listener to broker    READY, room        once: how many connections it takes
                          SAID, identity     a message of one frame
                          SEVERAL, identity  a message of several frames, which are dropped
                          LOST, identity     what it was to be told did not go out: it is gone, or far behind
                          FULL, how many     connections that were closed since the last time, for there is no room
    broker to listener    SAID, identity     a message for that peer

It ends when the broker does, with what it has been given to say said.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import zmq

READY, SAID, SEVERAL, LOST, FULL = range(1, 6)
HEAD = struct.Struct("<BBI")  # what, bytes of the identity, bytes of the payload
NUMBER = struct.Struct("<I")

HIGH_WATER = 1024  # messages per peer and direction; a peer that does not read loses what is over
HANDSHAKE_MS = 2000  # a connection that has not shaken hands by then is closed
LINGER_MS = 200  # a reply before stopping still gets out
ROUND = 64  # messages passed on before looking at the rest again
READ_SIZE = 1 << 18  # bytes at a time
UNREAD_MAX = 4 << 20  # bytes for a broker that is busy; more waits in ZeroMQ's queues, and in the peers' own
RESERVE_MIN, RESERVE_MAX = 16, 4096  # descriptors above the last connection: half of all, within these bounds
FULL_EVERY = 5.0  # seconds between words about connections closed
EVENT = struct.Struct("=HI")  # zmq_socket_monitor(3), first frame: event and value
MONITOR = "inproc://monitor"


class Records:
    """Cuts what comes over a stream into records."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        self._bytes += data

    def ready(self) -> bool:
        return self._end() is not None

    def __iter__(self) -> Iterator[tuple[int, bytes, bytes]]:
        """What, identity and payload of each that is there in full."""
        while (end := self._end()) is not None:
            what, length, _ = HEAD.unpack_from(self._bytes)
            start = HEAD.size + length
            record = (what, bytes(self._bytes[HEAD.size : start]), bytes(self._bytes[start:end]))
            del self._bytes[:end]
            yield record

    def _end(self) -> int | None:
        if len(self._bytes) < HEAD.size:
            return None
        _, length, size = HEAD.unpack_from(self._bytes)
        end: int = HEAD.size + length + size
        return end if len(self._bytes) >= end else None


class Stream:
    """One end of the socket pair: never blocks; what the other end has no room for is kept."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.received = Records()
        self.over = False
        self._unsent = bytearray()

    def read(self) -> bool:
        """False when nothing was there. At the other end's end `over` is set."""
        try:
            data = self.connection.recv(READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self.over = self.over or not data
        self.received.feed(data)
        return bool(data)

    def write(self, what: int, identity: bytes = b"", payload: bytes = b"") -> None:
        self._unsent += HEAD.pack(what, len(identity), len(payload)) + identity + payload
        self.flush()

    def flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self.connection.send(memoryview(self._unsent)[:READ_SIZE])]
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()  # nobody reads it any more; reading says so too

    def unsent(self) -> int:
        return len(self._unsent)


class Listener:
    """Takes connections at `door_fd`, a socket that listens on `path`, and keeps `reserve` descriptors free."""

    def __init__(self, broker: Stream, path: str, door_fd: int, descriptors_max: int, message_size: int) -> None:
        self._broker = broker
        self._context = zmq.Context()
        self._router: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, LINGER_MS),
            (zmq.ROUTER_MANDATORY, 1),  # tells of peers that are gone
            (zmq.ROUTER_HANDOVER, 1),  # an agent that reconnects comes with the identity it had
            (zmq.MAXMSGSIZE, message_size),
            (zmq.SNDHWM, HIGH_WATER),
            (zmq.RCVHWM, HIGH_WATER),
            (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
            (zmq.USE_FD, door_fd),
        ):
            self._router.setsockopt(option, value)
        self._router.monitor(MONITOR, zmq.EVENT_ACCEPTED)
        self._monitor: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.RCVHWM, 0)  # no event may be missed
        self._monitor.connect(MONITOR)
        # The kernel gives the lowest number that is free. So a connection with a number up to `_last` is one of those
        # there is room for, whatever became of others, and one above it is one too many.
        self._last = descriptors_max - 1 - min(max(RESERVE_MIN, descriptors_max // 2), RESERVE_MAX)
        self._shed = 0
        self._full_said = -FULL_EVERY
        self._router.bind(f"ipc://{path}")
        with socket.socket() as next_one:
            room = self._last + 1 - next_one.fileno()
        if room < 1:
            raise OSError(f"{descriptors_max} descriptors leave no room for connections: raise LimitNOFILE")
        broker.write(READY, payload=NUMBER.pack(room))

    def run(self) -> None:
        """Until the broker has hung up."""
        poller = zmq.Poller()
        poller.register(self._monitor, zmq.POLLIN)
        while not self._broker.over:
            unsent = self._broker.unsent()
            poller.register(self._broker.connection, zmq.POLLIN | (zmq.POLLOUT if unsent else 0))
            poller.register(self._router, zmq.POLLIN if unsent < UNREAD_MAX else 0)
            poller.poll(int(FULL_EVERY * 1000) if self._shed else None)
            self._shed_connections()
            self._broker.flush()
            self._broker.read()
            self._tell_peers()
            self._pass_on()
        while self._broker.read():
            self._tell_peers()
        self._monitor.close(linger=0)
        self._router.close()
        self._context.term()

    def _tell_peers(self) -> None:
        for _, identity, payload in self._broker.received:
            try:
                self._router.send_multipart([identity, payload], zmq.NOBLOCK)
            except zmq.ZMQError:
                self._broker.write(LOST, identity)

    def _pass_on(self) -> None:
        for _ in range(ROUND):
            if self._broker.unsent() >= UNREAD_MAX:
                return
            try:
                identity = self._router.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            payload = self._router.recv()
            what = SAID
            while self._router.getsockopt(zmq.RCVMORE):  # never kept: a message may have any number of frames
                self._router.recv(copy=False)
                what, payload = SEVERAL, b""
            self._broker.write(what, identity, payload)

    def _shed_connections(self) -> None:
        while self._monitor.poll(0):
            _, fd = EVENT.unpack(self._monitor.recv_multipart()[0])
            if fd > self._last:
                self._shed += _hang_up(fd)
        now = time.monotonic()
        if self._shed and now - self._full_said >= FULL_EVERY:
            self._broker.write(FULL, payload=NUMBER.pack(self._shed))
            self._shed, self._full_said = 0, now


def _hang_up(fd: int) -> bool:
    """libzmq, whose descriptor it is, sees the end and closes it."""
    try:
        connection = socket.socket(fileno=fd)
    except OSError:
        return False  # it has left by itself
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return False
    finally:
        connection.detach()
    return True


def main() -> int:
    path, broker_fd, door_fd, message_size = sys.argv[1], *map(int, sys.argv[2:])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it ends with its broker, and after it
        signal.signal(number, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    broker = Stream(socket.socket(fileno=broker_fd))
    try:
        Path("/proc/self/comm").write_text("ringway-listen")  # for `ps`
        Listener(broker, path, door_fd, min(hard, 1 << 30) if hard >= 0 else 1 << 30, message_size).run()
    except (zmq.ZMQError, OSError) as error:
        with contextlib.suppress(OSError):  # whoever read the broker's log may be gone
            os.write(2, f"ringway listener: {error}\n".encode())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
