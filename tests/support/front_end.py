"""A vhost-user front end in Python, with a guest's memory and a driver for split rings: good unless told otherwise."""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from ringway.vhost import protocol
from ringway.vhost.protocol import NEED_REPLY, VERSION, Feature, Request, bits

MEMORY: Final = 1 << 20
GUEST: Final = 0x40000000
USER: Final = 0x7F0000000000
SIZE: Final = 64
HEADER: Final = bytes(12)
_BUFFERS: Final = 0x10000
_ALL_PROTOCOL_FEATURES: Final = (1 << 0) | (1 << 3) | (1 << 13) | (1 << 15) | (1 << 16)
_TIMEOUT_S: Final = 20.0


class FrontEnd:
    """One connection; nothing is said until a method says it."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(_TIMEOUT_S)
        self.socket.connect(str(path))
        self.memory_fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.memory_fd, MEMORY)
        self.memory = mmap.mmap(self.memory_fd, MEMORY)
        self.kicks = [os.eventfd(0), os.eventfd(0)]
        self._sent = 0

    def close(self) -> None:
        self.socket.close()
        self.memory.close()
        for fd in (self.memory_fd, *self.kicks):
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = VERSION) -> None:
        self.send(protocol.packed(request, payload, flags), fds)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        socket.send_fds(self.socket, [data], fds)

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = VERSION) -> bytes:
        """The payload of the answer."""
        self.say(request, payload, fds, flags)
        head = self._exactly(protocol.HEADER.size)
        return self._exactly(protocol.HEADER.unpack(head)[2])

    def done(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bool:
        """Was it done? For sessions with REPLY_ACK."""
        return self.ask(request, payload, fds, VERSION | NEED_REPLY) == protocol.U64.pack(0)

    def is_ended(self, seconds: float = 20.0) -> bool:
        """Has the back end closed the connection within so many seconds?"""
        self.socket.settimeout(seconds)
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        finally:
            self.socket.settimeout(_TIMEOUT_S)

    def greet(self) -> None:
        self.ask(Request.GET_FEATURES)
        self.say(Request.SET_PROTOCOL_FEATURES, protocol.U64.pack(_ALL_PROTOCOL_FEATURES))
        self.say(Request.SET_OWNER)

    def set_features(self) -> None:
        features = bits(Feature.VERSION_1, Feature.MRG_RXBUF, Feature.PROTOCOL_FEATURES)
        assert self.done(Request.SET_FEATURES, protocol.U64.pack(features))

    def table(self, fd: int | None = None, size: int = MEMORY, offset: int = 0) -> bool:
        region = protocol.MEMORY_REGION.pack(GUEST, size, USER, offset)
        fd = self.memory_fd if fd is None else fd
        return self.done(Request.SET_MEM_TABLE, protocol.MEMORY_COUNT.pack(1, 0) + region, [fd])

    def start_ring(self, ring: int) -> bool:
        at = USER + 0x3000 * ring
        addresses = protocol.RING_ADDRESSES.pack(ring, 0, at, at + 0x2000, at + 0x1000, 0)
        done = self.done(Request.SET_VRING_NUM, protocol.RING_STATE.pack(ring, SIZE))
        done &= self.done(Request.SET_VRING_BASE, protocol.RING_STATE.pack(ring, self._sent if ring == 1 else 0))
        done &= self.done(Request.SET_VRING_ADDR, addresses)
        done &= self.done(Request.SET_VRING_KICK, protocol.U64.pack(ring), [self.kicks[ring]])
        return done and self.done(Request.SET_VRING_ENABLE, protocol.RING_STATE.pack(ring, 1))

    def set_up(self) -> None:
        self.greet()
        self.set_features()
        assert self.table()
        assert self.start_ring(0)
        assert self.start_ring(1)

    def transmit(self, frame: bytes) -> None:
        """By the transmit ring, and wait until the buffer is given back."""
        number, self._sent = self._sent, self._sent + 1
        at, index = _BUFFERS + 2048 * (number % SIZE), number % SIZE
        self.memory[at : at + 12 + len(frame)] = HEADER + frame
        self.memory[0x3000 + 16 * index : 0x3010 + 16 * index] = struct.pack("<QIHH", GUEST + at, 12 + len(frame), 0, 0)
        self.memory[0x4004 + 2 * index : 0x4006 + 2 * index] = struct.pack("<H", index)
        self.memory[0x4002:0x4004] = struct.pack("<H", self._sent & 0xFFFF)
        os.eventfd_write(self.kicks[1], 1)
        deadline = time.monotonic() + _TIMEOUT_S
        while struct.unpack("<H", self.memory[0x5002:0x5004])[0] != self._sent & 0xFFFF:
            assert time.monotonic() < deadline, f"buffer {number} is not given back"
            select.select([], [], [], 0.002)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            assert more, "the back end has closed the connection"
            data += more
        return data
