"""The back end of a vhost-user session as a state machine: messages in, replies out, and no socket.

What becomes of a message follows from the session's state and the request, by ROWS, then from its form, then from what
its handler finds. A message that is refused is answered with failure where the front end wanted to know (REPLY_ACK and
need_reply); else the session ends, because the two sides would disagree from then on about what was set up (ADR 37).
"""

from __future__ import annotations

import enum
import os
import select
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from ringway.shm._native import lib
from ringway.vhost import protocol
from ringway.vhost.protocol import (
    NEED_REPLY,
    REPLY,
    RING_INDEX_MASK,
    RING_NO_FD,
    VERSION,
    VERSION_MASK,
    Feature,
    MemoryRegion,
    Message,
    ProtocolFeature,
    Request,
    RingAddresses,
    bits,
)

MEMORY_SLOTS: Final = int(lib.RWAY_GUEST_REGIONS_MAX)
RING_SIZE_MAX: Final = int(lib.RWAY_VRING_SIZE_MAX)

OFFERED: Final = bits(
    *(Feature.CSUM, Feature.HOST_TSO4, Feature.HOST_TSO6, Feature.HOST_ECN),
    *(Feature.GUEST_CSUM, Feature.GUEST_TSO4, Feature.GUEST_TSO6, Feature.GUEST_ECN),
    *(Feature.MRG_RXBUF, Feature.GUEST_ANNOUNCE, Feature.INDIRECT_DESC, Feature.EVENT_IDX),
    *(Feature.PROTOCOL_FEATURES, Feature.VERSION_1, Feature.RING_PACKED, Feature.IN_ORDER),
)
PROTOCOL_OFFERED: Final = bits(*ProtocolFeature)

_EVENTFD: Final = "anon_inode:[eventfd]"


class SessionError(Exception):
    """The connection is to be closed; the message says why, for people."""


class RefusedError(Exception):
    """What a message asks for is not done, and nothing is changed; the message says why."""


class State(enum.Enum):
    NEW = "new"  # connected
    OWNED = "owned"  # SET_OWNER has come
    NEGOTIATED = "negotiated"  # SET_FEATURES has come
    RUNNING = "running"  # a ring is started


class Verdict(enum.Enum):
    """What becomes of a message, before a look at what it says."""

    DO = "do"
    REFUSE = "refuse"
    IGNORE = "ignore"  # refused where an answer is wanted; else the session goes on as if it had not come
    END = "end"  # the front end waits for an answer that there is none for


@dataclass(frozen=True)
class RingSetup:
    addresses: RingAddresses
    size: int
    base: int
    features: int


class BackEnd(Protocol):
    """What a session works on. Each method does all of what it says, or raises RefusedError and changes nothing.

    Descriptors stay the caller's, and those of a ring are open until it is stopped or given others. Rings are numbered
    as in the messages: 2 n receives and 2 n + 1 transmits, seen from the guest.
    """

    def set_memory(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None: ...
    def add_memory(self, region: MemoryRegion, fd: int) -> None: ...
    def remove_memory(self, region: MemoryRegion) -> None: ...
    def start(self, index: int, setup: RingSetup, kick_fd: int, call_fd: int, enabled: bool) -> None: ...
    def stop(self, index: int) -> int:
        """Returns the ring's position, as GET_VRING_BASE has it."""

    def set_kick(self, index: int, kick_fd: int) -> None: ...
    def set_call(self, index: int, call_fd: int) -> None: ...
    def enable(self, index: int, enabled: bool) -> None: ...


@dataclass(frozen=True)
class Row:
    """A request: what becomes of it in each state, and its form."""

    default: Verdict
    exceptions: Mapping[State, Verdict] = field(default_factory=dict)
    size: int = 0  # bytes of payload
    fds: int = 0
    needs: ProtocolFeature | None = None  # negotiated
    replies: bool = False  # with a payload of its own

    def verdict(self, state: State) -> Verdict:
        return self.exceptions.get(state, self.default)


_RING = {State.NEW: Verdict.REFUSE}  # what concerns memory and rings needs an owner
_U64, _RING_STATE = protocol.U64.size, protocol.RING_STATE.size

# Requests that are not listed, and those that no feature of ours allows: the front end has no business with them.
NOT_LISTED: Final = Row(Verdict.IGNORE)

ROWS: Final[Mapping[int, Row]] = {
    Request.GET_FEATURES: Row(Verdict.DO, replies=True),
    Request.SET_FEATURES: Row(Verdict.DO, _RING, size=_U64),
    Request.SET_OWNER: Row(Verdict.DO),
    Request.RESET_OWNER: Row(Verdict.DO),
    Request.SET_MEM_TABLE: Row(Verdict.DO, _RING, size=-1, fds=-1),  # as many as it says itself
    Request.SET_VRING_NUM: Row(Verdict.DO, _RING, size=_RING_STATE),
    Request.SET_VRING_ADDR: Row(Verdict.DO, _RING, size=protocol.RING_ADDRESSES.size),
    Request.SET_VRING_BASE: Row(Verdict.DO, _RING, size=_RING_STATE),
    Request.GET_VRING_BASE: Row(Verdict.DO, {State.NEW: Verdict.END}, size=_RING_STATE, replies=True),
    Request.SET_VRING_KICK: Row(Verdict.DO, _RING, size=_U64, fds=-1),  # one, or none where it says so
    Request.SET_VRING_CALL: Row(Verdict.DO, _RING, size=_U64, fds=-1),
    Request.SET_VRING_ERR: Row(Verdict.DO, _RING, size=_U64, fds=-1),
    Request.GET_PROTOCOL_FEATURES: Row(Verdict.DO, replies=True),
    Request.SET_PROTOCOL_FEATURES: Row(Verdict.DO, size=_U64),
    Request.GET_QUEUE_NUM: Row(Verdict.DO, replies=True),
    Request.SET_VRING_ENABLE: Row(Verdict.DO, _RING, size=_RING_STATE),
    Request.RESET_DEVICE: Row(Verdict.DO, _RING, needs=ProtocolFeature.RESET_DEVICE),
    Request.GET_MAX_MEM_SLOTS: Row(Verdict.DO, needs=ProtocolFeature.CONFIGURE_MEM_SLOTS, replies=True),
    Request.ADD_MEM_REG: Row(
        Verdict.DO, _RING, size=protocol.ONE_REGION.size, fds=1, needs=ProtocolFeature.CONFIGURE_MEM_SLOTS
    ),
    Request.REM_MEM_REG: Row(  # with a descriptor too, from front ends that do it wrong: the specification says so
        Verdict.DO, _RING, size=protocol.ONE_REGION.size, fds=-1, needs=ProtocolFeature.CONFIGURE_MEM_SLOTS
    ),
    Request.SET_STATUS: Row(Verdict.DO, _RING, size=_U64, needs=ProtocolFeature.STATUS),
    Request.GET_STATUS: Row(Verdict.DO, needs=ProtocolFeature.STATUS, replies=True),
    # Not offered, and each with an answer of its own, which a front end would wait for for ever.
    Request.GET_CONFIG: Row(Verdict.END),
    Request.CREATE_CRYPTO_SESSION: Row(Verdict.END),
    Request.POSTCOPY_ADVISE: Row(Verdict.END),
    Request.POSTCOPY_END: Row(Verdict.END),
    Request.GET_INFLIGHT_FD: Row(Verdict.END),
    Request.IOTLB_MSG: Row(Verdict.END),
}


def verdict(state: State, request: int) -> Verdict:
    """Of every pair: the default row and its exceptions."""
    return ROWS.get(request, NOT_LISTED).verdict(state)


class Ring:
    """What the front end has said of one ring."""

    def __init__(self) -> None:
        self.size = 0
        self.base = 0
        self.addresses: RingAddresses | None = None
        self.kicks = False  # SET_VRING_KICK has come, with a descriptor or without
        self.kick_fd = self.call_fd = self.err_fd = -1
        self.enabled = False
        self.started = False

    def forget_start(self) -> None:
        """A ring starts again only with new addresses and a new kick; those of before may be somebody else's memory."""
        self.addresses = None
        self.kicks = False
        self.kick_fd = _closed(self.kick_fd)

    def close(self) -> None:
        self.forget_start()
        self.call_fd = _closed(self.call_fd)
        self.err_fd = _closed(self.err_fd)


class Session:
    """One front end's. Its descriptors are closed with it, whatever becomes of the connection."""

    def __init__(self, back_end: BackEnd, queue_pairs: int) -> None:
        self._back_end = back_end
        self._queue_pairs = queue_pairs
        self.offered = OFFERED | (bits(Feature.MQ) if queue_pairs > 1 else 0)
        self.features: int | None = None
        self.protocol_features = 0
        self.status = 0
        self.rings = [Ring() for _ in range(2 * queue_pairs)]
        self._owned = False
        self._has_memory = False
        self._handlers: dict[int, Callable[[Message], bytes | None]] = {
            Request.GET_FEATURES: lambda _: protocol.U64.pack(self.offered),
            Request.SET_FEATURES: self._set_features,
            Request.SET_OWNER: self._set_owner,
            Request.RESET_OWNER: self._reset_owner,
            Request.SET_MEM_TABLE: self._set_mem_table,
            Request.SET_VRING_NUM: self._set_vring_num,
            Request.SET_VRING_ADDR: self._set_vring_addr,
            Request.SET_VRING_BASE: self._set_vring_base,
            Request.GET_VRING_BASE: self._get_vring_base,
            Request.SET_VRING_KICK: self._set_vring_kick,
            Request.SET_VRING_CALL: self._set_vring_call,
            Request.SET_VRING_ERR: self._set_vring_err,
            Request.GET_PROTOCOL_FEATURES: lambda _: protocol.U64.pack(PROTOCOL_OFFERED),
            Request.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            Request.GET_QUEUE_NUM: lambda _: protocol.U64.pack(self._queue_pairs),
            Request.SET_VRING_ENABLE: self._set_vring_enable,
            Request.RESET_DEVICE: self._reset_device,
            Request.GET_MAX_MEM_SLOTS: lambda _: protocol.U64.pack(MEMORY_SLOTS),
            Request.ADD_MEM_REG: self._add_mem_reg,
            Request.REM_MEM_REG: self._rem_mem_reg,
            Request.SET_STATUS: self._set_status,
            Request.GET_STATUS: lambda _: protocol.U64.pack(self.status),
        }

    @property
    def state(self) -> State:
        if any(ring.started for ring in self.rings):
            return State.RUNNING
        if self.features is not None:
            return State.NEGOTIATED
        return State.OWNED if self._owned else State.NEW

    def on_message(self, message: Message) -> bytes:
        """The bytes to answer with, if any. SessionError. The message's descriptors are closed or taken in any case."""
        try:
            return self._judge(message)
        finally:
            message.close()

    def on_broken(self, index: int) -> None:
        """Tell the front end that a ring is not served any more, if it wanted to hear of such."""
        fd = self.rings[index].err_fd
        if fd >= 0:
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            if poller.poll(0) == [(fd, select.POLLOUT)]:  # a full counter would block
                os.eventfd_write(fd, 1)

    def close(self) -> None:
        """The front end is gone: nothing of its memory is touched any more. Safe to call twice."""
        for index in range(len(self.rings)):
            self._stop(index)
        for ring in self.rings:
            ring.close()
        self._back_end.set_memory([], [])
        self._has_memory = False

    def _judge(self, message: Message) -> bytes:
        if message.flags & REPLY:
            raise SessionError(f"{message.name} has the flag of a reply: nothing was asked")
        row = ROWS.get(message.request, NOT_LISTED)
        wanted = bool(message.flags & NEED_REPLY) and self._negotiated(ProtocolFeature.REPLY_ACK)
        judged = row.verdict(self.state)
        try:
            if judged is Verdict.END:
                raise SessionError(f"{message.name} is not answered in state {self.state.value!r}")
            if judged is not Verdict.DO:
                raise RefusedError(f"not in state {self.state.value!r}, or not offered")
            self._check_form(message, row)
            answer = self._handlers[message.request](message)
        except RefusedError as refused:
            if wanted and not row.replies:
                return protocol.reply_to(message, protocol.U64.pack(1))
            if judged is Verdict.IGNORE:
                return b""
            raise SessionError(f"{message.name} is refused: {refused}") from None
        if answer is not None:
            return protocol.reply_to(message, answer)
        return protocol.reply_to(message, protocol.U64.pack(0)) if wanted else b""

    def _negotiated(self, feature: ProtocolFeature) -> bool:
        return bool(self.protocol_features >> feature & 1)

    def _check_form(self, message: Message, row: Row) -> None:
        if message.flags & VERSION_MASK != VERSION:
            raise RefusedError(f"its version is {message.flags & VERSION_MASK}, and {VERSION} is known")
        if row.needs is not None and not self._negotiated(row.needs):
            raise RefusedError(f"protocol feature {row.needs.name} was not negotiated")
        size = protocol.memory_table_size(message.payload) if row.size < 0 else row.size
        if len(message.payload) != size:
            raise RefusedError(f"{len(message.payload)} bytes of payload, and not {size}")
        if row.fds >= 0 and len(message.fds) != row.fds:
            raise RefusedError(f"{len(message.fds)} descriptors, and not {row.fds}")

    # ---- features ----

    def _set_owner(self, _: Message) -> None:
        self._owned = True

    def _set_features(self, message: Message) -> None:
        (features,) = protocol.U64.unpack(message.payload)
        if features & ~self.offered:
            raise RefusedError(f"features {features & ~self.offered:#x} were not offered")
        if self.state is State.RUNNING and features != self.features:
            raise RefusedError("features cannot change while a ring runs")
        self.features = features
        if not features >> Feature.PROTOCOL_FEATURES & 1:
            for ring in self.rings:
                ring.enabled = True

    def _set_protocol_features(self, message: Message) -> None:
        (features,) = protocol.U64.unpack(message.payload)
        if features & ~PROTOCOL_OFFERED:
            raise RefusedError(f"protocol features {features & ~PROTOCOL_OFFERED:#x} were not offered")
        if self.state is State.RUNNING and features != self.protocol_features:
            raise RefusedError("protocol features cannot change while a ring runs")
        self.protocol_features = features

    def _set_status(self, message: Message) -> None:
        """0 is a reset of the device: virtio 1.2, 2.1. Memory and what is enabled are not sent again, and stay."""
        (status,) = protocol.U64.unpack(message.payload)
        if status > 0xFF:
            raise RefusedError(f"status {status:#x} is not one byte")
        self.status = status
        if status == 0:
            self._stop_all()

    def _reset_device(self, _: Message) -> None:
        self._disable_all()
        self._stop_all()
        self.features = None
        self.status = 0

    def _reset_owner(self, _: Message) -> None:
        self._disable_all()

    def _disable_all(self) -> None:
        for index in range(len(self.rings)):
            self._enable(index, False)

    def _stop_all(self) -> None:
        for index in range(len(self.rings)):
            self._stop(index)

    # ---- memory ----

    def _set_mem_table(self, message: Message) -> None:
        regions = protocol.memory_table(message.payload)
        if len(message.fds) != len(regions):
            raise RefusedError(f"{len(message.fds)} descriptors for {len(regions)} regions")
        self._back_end.set_memory(regions, message.fds)
        self._has_memory = bool(regions)
        self._start_what_can()

    def _add_mem_reg(self, message: Message) -> None:
        _, *values = protocol.ONE_REGION.unpack(message.payload)
        self._back_end.add_memory(MemoryRegion(*values), message.fds[0])
        self._has_memory = True
        self._start_what_can()

    def _rem_mem_reg(self, message: Message) -> None:
        if len(message.fds) > 1:
            raise RefusedError(f"{len(message.fds)} descriptors, and not 0")
        _, *values = protocol.ONE_REGION.unpack(message.payload)
        self._back_end.remove_memory(MemoryRegion(*values))

    # ---- rings ----

    def _ring(self, index: int) -> Ring:
        if index >= len(self.rings):
            raise RefusedError(f"ring {index}: there are {len(self.rings)}")
        return self.rings[index]

    def _stopped_ring(self, index: int) -> Ring:
        ring = self._ring(index)
        if ring.started:
            raise RefusedError(f"ring {index} is running: ask for its base first")
        return ring

    def _set_vring_num(self, message: Message) -> None:
        index, size = protocol.RING_STATE.unpack(message.payload)
        ring = self._stopped_ring(index)
        packed = self.features is not None and bool(self.features >> Feature.RING_PACKED & 1)
        if not 1 <= size <= RING_SIZE_MAX or (size & (size - 1) and not packed):
            raise RefusedError(f"ring {index} of {size} entries: use a power of two, {RING_SIZE_MAX} at the most")
        ring.size = size

    def _set_vring_base(self, message: Message) -> None:
        index, base = protocol.RING_STATE.unpack(message.payload)
        self._stopped_ring(index).base = base

    def _set_vring_addr(self, message: Message) -> None:
        index, flags, desc, used, avail, _ = protocol.RING_ADDRESSES.unpack(message.payload)
        ring = self._stopped_ring(index)
        if flags != 0:
            raise RefusedError(f"ring {index} with flags {flags:#x}: dirty logging is not offered")
        ring.addresses = RingAddresses(desc, used, avail)
        self._start_what_can()

    def _get_vring_base(self, message: Message) -> bytes:
        index, _ = protocol.RING_STATE.unpack(message.payload)
        ring = self._ring(index)
        self._stop(index)
        return protocol.RING_STATE.pack(index, ring.base)

    def _set_vring_kick(self, message: Message) -> None:
        index, fd = self._eventfd(message)
        ring = self.rings[index]
        if ring.started:
            try:
                self._back_end.set_kick(index, fd)
            except RefusedError:
                _closed(fd)
                raise
        _closed(ring.kick_fd)
        ring.kick_fd, ring.kicks = fd, True
        self._start_what_can()

    def _set_vring_call(self, message: Message) -> None:
        index, fd = self._eventfd(message)
        ring = self.rings[index]
        if ring.started:
            self._back_end.set_call(index, fd)
        _closed(ring.call_fd)
        ring.call_fd = fd

    def _set_vring_err(self, message: Message) -> None:
        index, fd = self._eventfd(message)
        _closed(self.rings[index].err_fd)
        self.rings[index].err_fd = fd

    def _set_vring_enable(self, message: Message) -> None:
        index, enabled = protocol.RING_STATE.unpack(message.payload)
        self._ring(index)
        if enabled > 1:
            raise RefusedError(f"ring {index} enabled by {enabled}: use 0 or 1")
        self._enable(index, bool(enabled))

    def _eventfd(self, message: Message) -> tuple[int, int]:
        """The ring, and the descriptor, now the ring's; -1 for none.

        Another kind of descriptor could be made to block us, or be a file that grows by what we write.
        """
        (word,) = protocol.U64.unpack(message.payload)
        index = word & RING_INDEX_MASK
        if word & ~(RING_INDEX_MASK | RING_NO_FD):
            raise RefusedError(f"{word:#x} names no ring")
        self._ring(index)
        expected = 0 if word & RING_NO_FD else 1
        if len(message.fds) != expected:
            raise RefusedError(f"{len(message.fds)} descriptors, and not {expected}")
        if not expected:
            return index, -1
        if str(Path(f"/proc/self/fd/{message.fds[0]}").readlink()) != _EVENTFD:
            raise RefusedError("a descriptor that is no eventfd")
        fd = message.take_fd()
        os.set_blocking(fd, False)
        return index, fd

    def _enable(self, index: int, enabled: bool) -> None:
        ring = self.rings[index]
        ring.enabled = enabled
        if ring.started:
            self._back_end.enable(index, enabled)

    def _start_what_can(self) -> None:
        """Rings for which all is there. One that cannot be started takes new addresses, as if it had been stopped."""
        for index, ring in enumerate(self.rings):
            if ring.started or ring.addresses is None or not ring.kicks or ring.size == 0:
                continue
            if self.features is None or not self._has_memory:
                continue
            setup = RingSetup(ring.addresses, ring.size, ring.base, self.features)
            try:
                self._back_end.start(index, setup, ring.kick_fd, ring.call_fd, ring.enabled)
            except RefusedError:
                ring.forget_start()
                raise
            ring.started = True

    def _stop(self, index: int) -> None:
        ring = self.rings[index]
        if ring.started:
            ring.base = self._back_end.stop(index)
            ring.started = False
        ring.forget_start()


def _closed(fd: int) -> int:
    if fd >= 0:
        os.close(fd)
    return -1
