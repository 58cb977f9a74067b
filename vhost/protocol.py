"""The numbers and the form of vhost-user messages, after QEMU's docs/interop/vhost-user.rst. Nothing is judged here."""

from __future__ import annotations

import enum
import os
import struct
from dataclasses import dataclass, field
from typing import Final

HEADER: Final = struct.Struct("=III")  # request, flags, bytes of payload
U64: Final = struct.Struct("=Q")
RING_STATE: Final = struct.Struct("=II")  # index, number
RING_ADDRESSES: Final = struct.Struct("=IIQQQQ")  # index, flags, descriptors, used, available, log
MEMORY_COUNT: Final = struct.Struct("=II")  # regions, padding
MEMORY_REGION: Final = struct.Struct("=QQQQ")  # guest address, size, user address, offset
ONE_REGION: Final = struct.Struct("=QQQQQ")  # padding, then as above

PAYLOAD_MAX: Final = 512  # bytes; the longest that we take is a memory table of 8 regions
TABLE_REGIONS_MAX: Final = 8  # of one memory table
FDS_MAX: Final = 16  # of one message that are looked at; more end the session

VERSION: Final = 1
VERSION_MASK: Final = 3
REPLY: Final = 4
NEED_REPLY: Final = 8

RING_INDEX_MASK: Final = 0xFF
RING_NO_FD: Final = 0x100


class Request(enum.IntEnum):
    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class Feature(enum.IntEnum):
    """Bits of GET_FEATURES: virtio 1.2, 5.1.3 and 6, and vhost-user's own."""

    CSUM = 0
    GUEST_CSUM = 1
    GUEST_TSO4 = 7
    GUEST_TSO6 = 8
    GUEST_ECN = 9
    HOST_TSO4 = 11
    HOST_TSO6 = 12
    HOST_ECN = 13
    MRG_RXBUF = 15
    GUEST_ANNOUNCE = 21
    MQ = 22
    LOG_ALL = 26
    INDIRECT_DESC = 28
    EVENT_IDX = 29
    PROTOCOL_FEATURES = 30
    VERSION_1 = 32
    RING_PACKED = 34
    IN_ORDER = 35


class ProtocolFeature(enum.IntEnum):
    MQ = 0
    REPLY_ACK = 3
    RESET_DEVICE = 13
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16


def bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


@dataclass
class Message:
    """One message. Its descriptors are its own until somebody takes them; `close` closes those that are left."""

    request: int
    flags: int = VERSION
    payload: bytes = b""
    fds: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        try:
            return Request(self.request).name
        except ValueError:
            return f"request {self.request}"

    def take_fd(self) -> int:
        return self.fds.pop(0)

    def close(self) -> None:
        fds, self.fds = self.fds, []
        for fd in fds:
            os.close(fd)


@dataclass(frozen=True)
class MemoryRegion:
    guest: int
    size: int
    user: int
    offset: int


@dataclass(frozen=True)
class RingAddresses:
    """User addresses: in the front end's own process."""

    desc: int
    used: int
    avail: int


def packed(request: int, payload: bytes = b"", flags: int = VERSION) -> bytes:
    return HEADER.pack(request, flags, len(payload)) + payload


def reply_to(message: Message, payload: bytes) -> bytes:
    return packed(message.request, payload, VERSION | REPLY)


def memory_table(payload: bytes) -> list[MemoryRegion]:
    """Of a payload whose size is known to be right."""
    count, _ = MEMORY_COUNT.unpack_from(payload)
    body = payload[MEMORY_COUNT.size : MEMORY_COUNT.size + count * MEMORY_REGION.size]
    return [MemoryRegion(*values) for values in MEMORY_REGION.iter_unpack(body)]


def memory_table_size(payload: bytes) -> int:
    """Bytes that a table of as many regions has as it says; more than any payload for more than a table may have."""
    count = MEMORY_COUNT.unpack_from(payload)[0] if len(payload) >= MEMORY_COUNT.size else 0
    if count > TABLE_REGIONS_MAX:
        return PAYLOAD_MAX + 1
    return int(MEMORY_COUNT.size + count * MEMORY_REGION.size)
