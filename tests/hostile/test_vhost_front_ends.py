"""Front ends that keep to no rule, against a pump: what each may break is its own session, and nothing is left of it.

Codes such as V3 are rows of the table of bad input in vhost/README.md; what needs no socket is in
tests/unit/test_vhost_session.py, and rings are in tests/c/vring_test.c.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringway.agent import Port
from ringway.vhost import protocol
from ringway.vhost.protocol import HEADER, VERSION, Request
from tests.support.broker_process import BrokerProcess, short_directory
from tests.support.fabric import AgentProcess, Fabric
from tests.support.front_end import MEMORY, USER, FrontEnd
from tests.support.waiting import until

FABRIC = """
[vm.guest.port.net]
kind = "vhost"
socket = "{folder}/net"
[vm.other.port.net]
kind = "vhost"
socket = "{folder}/other"
[vm.app.port.p]
kind = "local"
[vm.app.port.q]
kind = "local"
[link.one]
ends = ["guest.net", "app.p"]
[link.two]
ends = ["other.net", "app.q"]
"""
FRAME = bytes(range(60))


class Stage:
    """Two guests' ports, each on a link to an application; the second one's guest is a good one."""

    def __init__(self, fabric: Fabric, folder: Path) -> None:
        fabric.apply(FABRIC.format(folder=folder))
        self.fabric = fabric
        self.path = folder / "net"
        self.pump = fabric.agent("guest")
        self.other_pump = fabric.agent("other")
        app = fabric.local("app")
        self.port: Port = app.port("p")
        self.neighbour = FrontEnd(folder / "other")
        self.neighbour.set_up()
        self.neighbours_port: Port = app.port("q")
        self.descriptors = self.count_descriptors()

    def count_descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pump.process.pid}/fd").iterdir()))

    def connect(self) -> FrontEnd:
        """Once whoever was connected before is seen to be gone: one front end has the port."""
        until(lambda: self.told() == "no front end is connected", "the port is free")
        return FrontEnd(self.path)

    def told(self) -> str:
        return next(port.cause for port in self.fabric.broker.vm("guest").ports if port.port == "net")

    def check(self) -> None:
        """Nothing is left of the bad one, a good one is served, and the neighbour never noticed."""
        with self.connect() as good:
            good.set_up()
            good.transmit(FRAME)
            assert self.port.receive(timeout=20) == [FRAME]
        until(lambda: self.count_descriptors() == self.descriptors, "its descriptors are closed")
        self.neighbour.transmit(FRAME)
        assert self.neighbours_port.receive(timeout=20) == [FRAME]


@pytest.fixture(scope="module")
def shared_stage() -> Iterator[Stage]:
    with short_directory() as path, BrokerProcess(path / "run") as broker, contextlib.closing(Fabric(broker)) as fabric:
        stage = Stage(fabric, path)
        yield stage
        stage.neighbour.close()


@pytest.fixture
def stage(shared_stage: Stage) -> Iterator[Stage]:
    yield shared_stage
    shared_stage.check()


def test_v1_a_size_larger_than_any_payload(stage: Stage) -> None:
    with stage.connect() as bad:
        bad.send(HEADER.pack(Request.SET_FEATURES, VERSION, 0x7FFFFFFF))
        assert bad.is_ended()


def test_v3_a_header_byte_by_byte_and_then_nothing(stage: Stage) -> None:
    with stage.connect() as bad:
        header = protocol.packed(Request.SET_FEATURES, bytes(8))
        for byte in header[:12]:
            bad.send(bytes([byte]))
        assert bad.is_ended()


def test_v3_a_message_byte_by_byte_is_understood(stage: Stage) -> None:
    with stage.connect() as slow:
        for byte in protocol.packed(Request.GET_FEATURES):
            slow.send(bytes([byte]))
        assert slow.socket.recv(64)


def test_v7_descriptors_that_nobody_asked_for(stage: Stage) -> None:
    with stage.connect() as bad:
        bad.greet()
        bad.say(Request.GET_FEATURES, fds=[bad.memory_fd] * 8)
        assert bad.is_ended()
    with stage.connect() as bad:
        bad.greet()
        bad.say(Request.SET_MEM_TABLE, protocol.MEMORY_COUNT.pack(1, 0) + bytes(32), [bad.memory_fd] * 100)
        assert bad.is_ended()


def test_v16_addresses_before_the_memory(stage: Stage) -> None:
    with stage.connect() as good:
        good.greet()
        good.set_features()
        assert good.start_ring(1), "they are kept until there is memory"
        assert good.table()
        good.transmit(FRAME)
        assert stage.port.receive(timeout=20) == [FRAME]


def test_v18_rings_outside_the_memory(stage: Stage) -> None:
    with stage.connect() as bad:
        bad.greet()
        bad.set_features()
        assert bad.table()
        for address in (USER + MEMORY - 16, USER - 16, 0, (1 << 64) - 16):
            addresses = protocol.RING_ADDRESSES.pack(1, 0, address, USER + 0x5000, USER + 0x4000, 0)
            assert bad.done(Request.SET_VRING_NUM, protocol.RING_STATE.pack(1, 64))
            assert bad.done(Request.SET_VRING_KICK, protocol.U64.pack(1), [bad.kicks[1]])
            assert not bad.done(Request.SET_VRING_ADDR, addresses)


KINDS: dict[str, Callable[[Path], int]] = {
    "an eventfd": lambda _: os.eventfd(0),
    "a device": lambda _: os.open("/dev/zero", os.O_RDWR),
    "a folder": lambda folder: os.open(folder, os.O_RDONLY),
    "a file that is read only": lambda folder: os.open(__file__, os.O_RDONLY),
    "a socket": lambda _: socket.socket(socket.AF_UNIX).detach(),
    "memory that is too short": lambda _: os.memfd_create("short"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_v23_v24_memory_that_is_none(stage: Stage, tmp_path: Path, kind: str) -> None:
    fd = KINDS[kind](tmp_path)
    try:
        with stage.connect() as bad:
            bad.set_up()
            assert not bad.table(fd)
            bad.transmit(FRAME)  # with the table of before
            assert stage.port.receive(timeout=20) == [FRAME]
    finally:
        os.close(fd)


def test_v25_memory_that_is_taken_away_under_the_pump(stage: Stage) -> None:
    with stage.connect() as bad:
        bad.set_up()
        os.ftruncate(bad.memory_fd, 0)
        os.eventfd_write(bad.kicks[1], 1)
        assert bad.is_ended()


def test_v26_another_table_again_and_again_while_frames_pass(stage: Stage) -> None:
    with stage.connect() as good:
        good.set_up()
        for number in range(300):
            assert good.table()
            good.transmit(number.to_bytes(2, "big") + FRAME)
            assert stage.port.receive(timeout=20) == [number.to_bytes(2, "big") + FRAME]


def test_v27_v28_regions_that_come_and_go(stage: Stage) -> None:
    with stage.connect() as bad:
        bad.set_up()
        ring = protocol.ONE_REGION.pack(0, 0x40000000, MEMORY, USER, 0)
        assert not bad.done(Request.REM_MEM_REG, ring), "a ring that runs lies in it"
        assert bad.done(Request.ADD_MEM_REG, ring, [bad.memory_fd]), "it is there: QEMU 7.2 does so"
        other = os.memfd_create("other")
        os.ftruncate(other, MEMORY)
        assert not bad.done(Request.ADD_MEM_REG, ring, [other]), "other memory in its place"
        os.close(other)
        more = protocol.ONE_REGION.pack(0, 0x80000000, MEMORY, USER + MEMORY, 0)
        for _ in range(300):
            assert bad.done(Request.ADD_MEM_REG, more, [bad.memory_fd])
            assert bad.done(Request.REM_MEM_REG, more)
        bad.transmit(FRAME)
        assert stage.port.receive(timeout=20) == [FRAME]


def test_v31_a_kick_before_the_ring_is_enabled_is_not_lost(stage: Stage) -> None:
    with stage.connect() as good:
        good.set_up()
        assert good.done(Request.SET_VRING_ENABLE, protocol.RING_STATE.pack(1, 0))
        good.transmit(FRAME)  # a disabled ring gives buffers back, and their frames are nobody's
        assert good.done(Request.SET_VRING_ENABLE, protocol.RING_STATE.pack(1, 1))
        good.transmit(FRAME[::-1])
        assert stage.port.receive(timeout=20) == [FRAME[::-1]]


def test_v38_v40_whoever_says_nothing_keeps_nobody_away(stage: Stage) -> None:
    with stage.connect() as silent:
        until(lambda: stage.told() != "no front end is connected", "it is connected")
        with FrontEnd(stage.path) as second:
            assert second.is_ended(), "one front end has the port"
        assert silent.is_ended()


def test_v39_connections_that_end_in_the_middle(stage: Stage) -> None:
    message = protocol.packed(Request.SET_MEM_TABLE, protocol.MEMORY_COUNT.pack(1, 0) + bytes(32))
    for length in (1, 11, 12, 13, len(message) - 1):
        with stage.connect() as bad:
            bad.greet()
            bad.send(message[:length], [bad.memory_fd])


def test_a_front_end_that_does_not_read_its_answers(stage: Stage) -> None:
    with stage.connect() as bad:
        with contextlib.suppress(ConnectionError, TimeoutError):
            for _ in range(20000):
                bad.say(Request.GET_FEATURES)
        bad.socket.settimeout(20)
        with contextlib.suppress(ConnectionError):
            while bad.socket.recv(65536):
                pass


def test_v29_an_eventfd_that_is_full_and_blocks(stage: Stage) -> None:
    with stage.connect() as bad:
        call = os.eventfd((1 << 32) - 1)
        os.eventfd_write(call, (1 << 64) - (1 << 32) - 1)
        try:
            bad.set_up()
            assert bad.done(Request.SET_VRING_CALL, protocol.U64.pack(1), [call])
            flags = fcntl.fcntl(call, fcntl.F_GETFL)
            fcntl.fcntl(call, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)  # they share it
            bad.transmit(FRAME)
            bad.transmit(FRAME)
            assert bad.done(Request.SET_VRING_ENABLE, protocol.RING_STATE.pack(1, 0)), "the pump does not stand still"
            while len(stage.port.receive(timeout=0.2)):
                pass
        finally:
            os.close(call)


def test_a_pump_that_stops_takes_its_socket_along_and_one_that_is_killed_is_followed(stage: Stage) -> None:
    def restart(number: int) -> AgentProcess:
        stage.pump.stop(number)
        assert stage.path.exists() == (number == 9)
        return stage.fabric.agent("guest")

    for number in (15, 9):
        stage.pump = restart(number)
        with stage.connect() as good:
            good.set_up()
        until(lambda: stage.told() == "no front end is connected", "it is gone again")
    stage.descriptors = stage.count_descriptors()


def test_frames_wait_in_the_link_for_the_next_front_end(stage: Stage) -> None:
    with stage.connect() as gone:
        gone.set_up()
    with stage.connect() as good:
        stage.port.send([FRAME])
        ring = stage.fabric.ring("one", producing_side=1)
        assert (ring.in_flight, ring.drops_consumed) == (1, {})
        good.set_up()
        good.memory[0x0:0x10] = struct.pack("<QIHH", 0x40010000, 2048, 2, 0)
        good.memory[0x1002:0x1006] = (1).to_bytes(2, "little") + bytes(2)
        os.eventfd_write(good.kicks[0], 1)
        until(lambda: good.memory[0x2002:0x2004] == b"\1\0", "the frame has come")
        assert good.memory[0x1000C : 0x1000C + len(FRAME)] == FRAME
