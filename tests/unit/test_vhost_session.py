"""A vhost-user session without a socket: every pair of state and request, and what a front end may not get away with.

Codes such as V7 are rows of the table of bad input in vhost/README.md.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ringway.vhost import protocol
from ringway.vhost.protocol import (
    NEED_REPLY,
    REPLY,
    RING_NO_FD,
    VERSION,
    Feature,
    MemoryRegion,
    Message,
    ProtocolFeature,
    Request,
    bits,
)
from ringway.vhost.session import (
    OFFERED,
    PROTOCOL_OFFERED,
    RefusedError,
    RingSetup,
    Session,
    SessionError,
    State,
    Verdict,
    verdict,
)

REGION = MemoryRegion(guest=0, size=1 << 20, user=0x7F0000000000, offset=0)
FEATURES = bits(Feature.VERSION_1, Feature.MRG_RXBUF, Feature.PROTOCOL_FEATURES)


class FakeBackEnd:
    """Takes what the real one takes, and notes it."""

    def __init__(self) -> None:
        self.memory: list[MemoryRegion] = []
        self.running: dict[int, RingSetup] = {}
        self.enabled: dict[int, bool] = {}
        self.fds: dict[int, tuple[int, int]] = {}  # kick, call
        self.refuses = False

    def set_memory(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        self._check()
        assert len(regions) == len(fds)
        self.memory = list(regions)

    def add_memory(self, region: MemoryRegion, fd: int) -> None:
        self._check()
        os.fstat(fd)
        self.memory.append(region)

    def remove_memory(self, region: MemoryRegion) -> None:
        self._check()
        if region not in self.memory:
            raise RefusedError("no such region")
        self.memory.remove(region)

    def start(self, index: int, setup: RingSetup, kick_fd: int, call_fd: int, enabled: bool) -> None:
        self._check()
        self.running[index] = setup
        self.fds[index] = (kick_fd, call_fd)
        self.enabled[index] = enabled

    def stop(self, index: int) -> int:
        del self.running[index]
        return 42

    def set_kick(self, index: int, kick_fd: int) -> None:
        assert index in self.running
        self.fds[index] = (kick_fd, self.fds[index][1])

    def set_call(self, index: int, call_fd: int) -> None:
        assert index in self.running
        self.fds[index] = (self.fds[index][0], call_fd)

    def enable(self, index: int, enabled: bool) -> None:
        assert index in self.running
        self.enabled[index] = enabled

    def _check(self) -> None:
        if self.refuses:
            raise RefusedError("as the test wants it")


made: list[FrontEnd] = []  # by the test that runs


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class FrontEnd:
    """Says what a real one says, and what it does not."""

    def __init__(self, queue_pairs: int = 1) -> None:
        self.back_end = FakeBackEnd()
        self.session = Session(self.back_end, queue_pairs)
        made.append(self)

    def say(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = VERSION) -> bytes:
        return self.session.on_message(Message(request, flags, payload, list(fds)))

    def u64(self, request: int, value: int, flags: int = VERSION) -> bytes:
        return self.say(request, protocol.U64.pack(value), flags=flags)

    def ring(self, request: int, index: int, value: int = 0) -> bytes:
        return self.say(request, protocol.RING_STATE.pack(index, value))

    def eventfd(self, request: int, word: int) -> bytes:
        return self.say(request, protocol.U64.pack(word), [] if word & RING_NO_FD else [os.eventfd(0)])

    def addresses(self, index: int) -> bytes:
        return self.say(Request.SET_VRING_ADDR, protocol.RING_ADDRESSES.pack(index, 0, REGION.user, 0, 0, 0))

    def table(self, count: int = 1) -> bytes:
        regions = b"".join(protocol.MEMORY_REGION.pack(REGION.guest + i, 1, i, 0) for i in range(count))
        fds = [os.memfd_create("guest") for _ in range(count)]
        return self.say(Request.SET_MEM_TABLE, protocol.MEMORY_COUNT.pack(count, 0) + regions, fds)

    def set_up(self, index: int = 0) -> None:
        self.ring(Request.SET_VRING_NUM, index, 256)
        self.ring(Request.SET_VRING_BASE, index, 7)
        self.addresses(index)
        self.eventfd(Request.SET_VRING_CALL, index)
        self.eventfd(Request.SET_VRING_KICK, index)

    def bring_to(self, state: State) -> None:
        if state is State.NEW:
            return
        self.u64(Request.SET_PROTOCOL_FEATURES, PROTOCOL_OFFERED)
        self.say(Request.SET_OWNER)
        if state is State.OWNED:
            return
        self.u64(Request.SET_FEATURES, FEATURES)
        if state is State.RUNNING:
            self.table()
            self.set_up()


def running(queue_pairs: int = 1) -> FrontEnd:
    front_end = FrontEnd(queue_pairs)
    front_end.bring_to(State.RUNNING)
    assert front_end.session.state is State.RUNNING
    return front_end


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = descriptors()
    yield
    for front_end in made:
        front_end.back_end.refuses = False
        front_end.session.close()
        assert not front_end.back_end.running
    made.clear()
    assert descriptors() == before


# What becomes of each request in the states new, owned, negotiated, running: D do, R refuse, I ignore, E end.
LETTERS = {"D": Verdict.DO, "R": Verdict.REFUSE, "I": Verdict.IGNORE, "E": Verdict.END}
TABLE = """
GET_FEATURES           DDDD
SET_FEATURES           RDDD
SET_OWNER              DDDD
RESET_OWNER            DDDD
SET_MEM_TABLE          RDDD
SET_LOG_BASE           IIII
SET_LOG_FD             IIII
SET_VRING_NUM          RDDD
SET_VRING_ADDR         RDDD
SET_VRING_BASE         RDDD
GET_VRING_BASE         EDDD
SET_VRING_KICK         RDDD
SET_VRING_CALL         RDDD
SET_VRING_ERR          RDDD
GET_PROTOCOL_FEATURES  DDDD
SET_PROTOCOL_FEATURES  DDDD
GET_QUEUE_NUM          DDDD
SET_VRING_ENABLE       RDDD
SEND_RARP              IIII
NET_SET_MTU            IIII
SET_BACKEND_REQ_FD     IIII
IOTLB_MSG              EEEE
SET_VRING_ENDIAN       IIII
GET_CONFIG             EEEE
SET_CONFIG             IIII
CREATE_CRYPTO_SESSION  EEEE
CLOSE_CRYPTO_SESSION   IIII
POSTCOPY_ADVISE        EEEE
POSTCOPY_LISTEN        IIII
POSTCOPY_END           EEEE
GET_INFLIGHT_FD        EEEE
SET_INFLIGHT_FD        IIII
GPU_SET_SOCKET         IIII
RESET_DEVICE           RDDD
VRING_KICK             IIII
GET_MAX_MEM_SLOTS      DDDD
ADD_MEM_REG            RDDD
REM_MEM_REG            RDDD
SET_STATUS             RDDD
GET_STATUS             DDDD
"""


def pairs() -> Iterator[tuple[State, int, Verdict]]:
    rows = dict(line.split() for line in TABLE.strip().splitlines())
    assert set(rows) == {request.name for request in Request}
    for state_number, state in enumerate(State):
        for request in Request:
            yield state, request, LETTERS[rows[request.name][state_number]]
        for unknown in (0, 41, 99, 0xFFFFFFFF):
            yield state, unknown, Verdict.IGNORE


# One good message for each request: payload, and the kinds of descriptors that go with it.
GOOD: dict[int, tuple[bytes, str]] = {
    Request.SET_FEATURES: (protocol.U64.pack(FEATURES), ""),
    Request.SET_MEM_TABLE: (protocol.MEMORY_COUNT.pack(1, 0) + protocol.MEMORY_REGION.pack(0, 1, 0, 0), "m"),
    Request.SET_VRING_NUM: (protocol.RING_STATE.pack(1, 256), ""),
    Request.SET_VRING_ADDR: (protocol.RING_ADDRESSES.pack(1, 0, 0, 0, 0, 0), ""),
    Request.SET_VRING_BASE: (protocol.RING_STATE.pack(1, 0), ""),
    Request.GET_VRING_BASE: (protocol.RING_STATE.pack(1, 0), ""),
    Request.SET_VRING_KICK: (protocol.U64.pack(1), "e"),
    Request.SET_VRING_CALL: (protocol.U64.pack(1), "e"),
    Request.SET_VRING_ERR: (protocol.U64.pack(1), "e"),
    Request.SET_PROTOCOL_FEATURES: (protocol.U64.pack(PROTOCOL_OFFERED), ""),
    Request.SET_VRING_ENABLE: (protocol.RING_STATE.pack(1, 1), ""),
    Request.ADD_MEM_REG: (protocol.ONE_REGION.pack(0, 1 << 40, 1, 0, 0), "m"),
    Request.REM_MEM_REG: (protocol.ONE_REGION.pack(0, 0, 1, 0, 0), ""),
    Request.SET_STATUS: (protocol.U64.pack(15), ""),
}
KINDS: dict[str, Callable[[], int]] = {"m": lambda: os.memfd_create("guest"), "e": lambda: os.eventfd(0)}


@pytest.mark.parametrize(("state", "request_id", "expected"), list(pairs()))
def test_every_pair_of_state_and_request(state: State, request_id: int, expected: Verdict) -> None:
    """V42: by the table, and when it is said: without and with the wish for an answer."""
    assert verdict(state, request_id) is expected
    for flags in (VERSION, VERSION | NEED_REPLY):
        front_end = FrontEnd()
        front_end.bring_to(state)
        if state is State.NEW:
            front_end.u64(Request.SET_PROTOCOL_FEATURES, PROTOCOL_OFFERED)
        front_end.back_end.memory.append(MemoryRegion(0, 1, 0, 0))
        payload, kinds = GOOD.get(request_id, (b"", ""))
        fds = [KINDS[kind]() for kind in kinds]
        wanted = bool(flags & NEED_REPLY)
        if expected is Verdict.END or (expected is Verdict.REFUSE and not wanted):
            with pytest.raises(SessionError):
                front_end.say(request_id, payload, fds, flags)
            continue
        answer = front_end.say(request_id, payload, fds, flags)
        asked = Message(request_id).name.startswith("GET_")
        if expected is Verdict.DO and asked:
            assert len(answer) == protocol.HEADER.size + 8
        else:
            success = protocol.U64.pack(0 if expected is Verdict.DO else 1)
            assert answer == (protocol.packed(request_id, success, VERSION | REPLY) if wanted else b"")


def test_a_ring_runs_once_all_of_it_has_come_in_any_order() -> None:
    steps: list[Callable[[FrontEnd], object]] = [
        lambda front_end: front_end.u64(Request.SET_FEATURES, FEATURES),
        lambda front_end: front_end.table(),
        lambda front_end: front_end.ring(Request.SET_VRING_NUM, 0, 256),
        lambda front_end: front_end.addresses(0),
        lambda front_end: front_end.eventfd(Request.SET_VRING_KICK, 0),
    ]
    for seed in range(40):
        front_end = FrontEnd()
        front_end.bring_to(State.OWNED)
        order = random.Random(seed).sample(steps, len(steps))
        for step in order[:-1]:
            step(front_end)
            assert not front_end.back_end.running
        order[-1](front_end)
        # A ring that is complete before its last part is one that a size or an address alone does not start.
        if not front_end.back_end.running:
            front_end.addresses(0)
        assert set(front_end.back_end.running) == {0}


def test_rings_are_disabled_until_they_are_enabled_if_the_front_end_knows_how() -> None:
    knows = running()
    assert knows.back_end.enabled == {0: False}
    knows.ring(Request.SET_VRING_ENABLE, 0, 1)
    assert knows.back_end.enabled == {0: True}
    early = FrontEnd()  # as QEMU does it
    early.bring_to(State.OWNED)
    early.ring(Request.SET_VRING_ENABLE, 0, 1)
    early.bring_to(State.RUNNING)
    assert early.back_end.enabled == {0: True}
    old = FrontEnd()
    old.bring_to(State.OWNED)
    old.u64(Request.SET_FEATURES, bits(Feature.VERSION_1))
    old.table()
    old.set_up()
    assert old.back_end.enabled == {0: True}


def test_a_stopped_ring_says_its_position_and_needs_all_again() -> None:
    """V32."""
    front_end = running()
    for _ in range(2):
        answer = front_end.ring(Request.GET_VRING_BASE, 0)
        assert answer[protocol.HEADER.size :] == protocol.RING_STATE.pack(0, 42)
    assert front_end.ring(Request.GET_VRING_BASE, 1)[protocol.HEADER.size :] == protocol.RING_STATE.pack(1, 0)
    front_end.ring(Request.SET_VRING_ENABLE, 0, 1)
    front_end.eventfd(Request.SET_VRING_KICK, 0)
    assert not front_end.back_end.running, "with the addresses of before"
    front_end.addresses(0)
    assert front_end.back_end.running[0].base == 42


@pytest.mark.parametrize("request_id", [Request.RESET_DEVICE, Request.SET_STATUS])
def test_a_reset_stops_all_rings(request_id: Request) -> None:
    """V41."""
    front_end = running(queue_pairs=2)
    front_end.set_up(3)
    front_end.say(request_id, b"" if request_id is Request.RESET_DEVICE else protocol.U64.pack(0))
    assert not front_end.back_end.running
    assert front_end.back_end.memory, "what the front end does not send again stays"


def test_an_owner_that_is_reset_has_no_enabled_rings() -> None:
    front_end = running()
    front_end.ring(Request.SET_VRING_ENABLE, 0, 1)
    front_end.say(Request.RESET_OWNER)
    assert front_end.back_end.enabled == {0: False}
    assert front_end.back_end.running


REFUSED: dict[str, Callable[[FrontEnd], object]] = {
    "V2 a payload that is too short": lambda it: it.say(Request.SET_FEATURES, bytes(7)),
    "V2 a payload that is too long": lambda it: it.say(Request.GET_FEATURES, bytes(8)),
    "V2 a table shorter than it says": lambda it: it.say(Request.SET_MEM_TABLE, protocol.MEMORY_COUNT.pack(1, 0)),
    "V4 another version": lambda it: it.say(Request.SET_OWNER, flags=2),
    "V5 a reply that nobody asked for": lambda it: it.say(Request.SET_OWNER, flags=VERSION | REPLY),
    "V7 descriptors that nobody takes": lambda it: it.say(Request.SET_OWNER, fds=[os.eventfd(0) for _ in range(8)]),
    "V8 a table without its descriptors": lambda it: it.say(
        Request.SET_MEM_TABLE, protocol.MEMORY_COUNT.pack(3, 0) + bytes(96)
    ),
    "V8 more descriptors than regions": lambda it: it.say(
        Request.SET_MEM_TABLE, protocol.MEMORY_COUNT.pack(2, 0) + bytes(64), [os.memfd_create("m") for _ in range(3)]
    ),
    "V12 an index whose low bits are those of a ring": lambda it: it.ring(Request.SET_VRING_NUM, 0x10000, 256),
    "V12 the same with a descriptor": lambda it: it.say(
        Request.SET_VRING_KICK, protocol.U64.pack(0x10000), [os.eventfd(0)]
    ),
    "V13 a ring behind the last": lambda it: it.ring(Request.SET_VRING_BASE, 2, 0),
    "V13 ring 255": lambda it: it.eventfd(Request.SET_VRING_CALL, 255),
    "V13 ring 2^32 - 1": lambda it: it.ring(Request.GET_VRING_BASE, 0xFFFFFFFF),
    "V14 no entries": lambda it: it.ring(Request.SET_VRING_NUM, 1, 0),
    "V14 no power of two": lambda it: it.ring(Request.SET_VRING_NUM, 1, 3),
    "V14 too many": lambda it: it.ring(Request.SET_VRING_NUM, 1, 65536),
    "V15 another size while it runs": lambda it: it.ring(Request.SET_VRING_NUM, 0, 128),
    "V15 another base while it runs": lambda it: it.ring(Request.SET_VRING_BASE, 0, 1),
    "V15 other addresses while it runs": lambda it: it.addresses(0),
    "V22 a table of nine": lambda it: it.table(9),
    "V29 a kick that is a file": lambda it: it.say(
        Request.SET_VRING_KICK, protocol.U64.pack(0), [os.memfd_create("no eventfd")]
    ),
    "V29 none, and one all the same": lambda it: it.say(
        Request.SET_VRING_KICK, protocol.U64.pack(RING_NO_FD), [os.eventfd(0)]
    ),
    "V35 a log": lambda it: it.say(Request.SET_LOG_BASE, bytes(16), [os.memfd_create("log")], VERSION),
    "V36 features never offered": lambda it: it.u64(Request.SET_FEATURES, 1 << 40),
    "V36 other features while a ring runs": lambda it: it.u64(Request.SET_FEATURES, FEATURES ^ 1),
    "V36 protocol features never offered": lambda it: it.u64(Request.SET_PROTOCOL_FEATURES, 1 << 12),
    "dirty logging": lambda it: it.say(Request.SET_VRING_ADDR, protocol.RING_ADDRESSES.pack(1, 1, 0, 0, 0, 0)),
    "enabled by 2": lambda it: it.ring(Request.SET_VRING_ENABLE, 0, 2),
    "a status of two bytes": lambda it: it.u64(Request.SET_STATUS, 256),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_changes_nothing(what: str) -> None:
    front_end = running()
    before = (dict(front_end.back_end.running), list(front_end.back_end.memory), dict(front_end.back_end.fds))
    if what.startswith("V35"):
        assert REFUSED[what](front_end) == b""
    else:
        with pytest.raises(SessionError):
            REFUSED[what](front_end)
    assert (front_end.back_end.running, front_end.back_end.memory, front_end.back_end.fds) == before


def test_an_answer_is_given_once_and_only_when_it_was_negotiated() -> None:
    """V6."""
    front_end = FrontEnd()
    assert front_end.say(Request.SET_OWNER, flags=VERSION | NEED_REPLY) == b""
    front_end.u64(Request.SET_PROTOCOL_FEATURES, bits(ProtocolFeature.REPLY_ACK))
    done = protocol.packed(Request.SET_OWNER, protocol.U64.pack(0), VERSION | REPLY)
    assert front_end.say(Request.SET_OWNER, flags=VERSION | NEED_REPLY) == done
    offered = front_end.say(Request.GET_FEATURES, flags=VERSION | NEED_REPLY)
    assert offered == protocol.packed(Request.GET_FEATURES, protocol.U64.pack(OFFERED), VERSION | REPLY)
    failed = protocol.packed(Request.SET_STATUS, protocol.U64.pack(1), VERSION | REPLY)
    assert front_end.u64(Request.SET_STATUS, 1, VERSION | NEED_REPLY) == failed, "STATUS was not negotiated"


def test_a_ring_that_cannot_be_started_is_refused_and_takes_new_addresses() -> None:
    front_end = FrontEnd()
    front_end.bring_to(State.NEGOTIATED)
    front_end.table()
    front_end.back_end.refuses = True
    with pytest.raises(SessionError):
        front_end.set_up()
    front_end.back_end.refuses = False
    front_end.set_up()
    assert front_end.back_end.running


def test_queue_pairs_are_offered_as_the_link_has_them() -> None:
    front_end = FrontEnd(queue_pairs=4)
    assert front_end.say(Request.GET_QUEUE_NUM)[protocol.HEADER.size :] == protocol.U64.pack(4)
    (features,) = protocol.U64.unpack(front_end.say(Request.GET_FEATURES)[protocol.HEADER.size :])
    assert features >> Feature.MQ & 1
    assert not FrontEnd(queue_pairs=1).session.offered >> Feature.MQ & 1


def test_a_broken_ring_is_told_by_its_error_descriptor_and_never_blocks() -> None:
    front_end = running()
    fd = os.eventfd(0)
    copy = os.dup(fd)
    try:
        front_end.say(Request.SET_VRING_ERR, protocol.U64.pack(0), [fd])
        front_end.session.on_broken(0)
        assert os.eventfd_read(copy) == 1
        os.eventfd_write(copy, (1 << 64) - 2)
        os.set_blocking(copy, True)
        front_end.session.on_broken(0)
    finally:
        os.close(copy)


def test_the_same_message_for_ever_costs_nothing() -> None:
    """V9, V11, V28, V37."""
    front_end = running()
    before = descriptors()
    for _ in range(2000):
        front_end.eventfd(Request.SET_VRING_CALL, 0)
        front_end.eventfd(Request.SET_VRING_KICK, 0)
        front_end.eventfd(Request.SET_VRING_KICK, 1)
        front_end.ring(Request.SET_VRING_NUM, 1, 256)
        front_end.table()
    assert descriptors() <= before + 1  # the kick of ring 1


def test_random_messages_end_a_session_or_leave_it_whole() -> None:
    """V42: sequences, each message good, bent or foreign."""
    for seed in range(150):
        draw = random.Random(seed)
        front_end = FrontEnd(queue_pairs=2)
        front_end.bring_to(draw.choice(list(State)))
        try:
            for _ in range(60):
                request = draw.choice([*Request, *Request, 0, 77])
                payload, kinds = GOOD.get(request, (b"", ""))
                if draw.random() < 0.1:
                    payload = draw.randbytes(draw.choice([len(payload), 8, 40]))
                fds = [KINDS[kind]() for kind in kinds]
                if draw.random() < 0.05:
                    fds += [os.eventfd(0)]
                front_end.say(request, payload, fds, VERSION | draw.choice([0, NEED_REPLY]))
        except SessionError:
            pass
        assert descriptors() < 200
        front_end.session.close()
