"""A firewall that is killed under traffic and started again: nothing comes twice, and what is lost is in the books."""

from __future__ import annotations

import signal
import struct
import threading

import pytest

from ringway.agent import Agent, Port
from ringway.shm._native import ffi
from tests.support.fabric import AgentProcess, Fabric
from tests.support.fabrics import applications_and_firewall
from tests.support.peer import udp
from tests.support.waiting import until

QUEUES = 2
KEYS = f"queues = {QUEUES}\nslots = 256\n"
CHAIN = applications_and_firewall(one=KEYS, two=KEYS)
WITHOUT_STACK = applications_and_firewall(None, KEYS, KEYS)
INSIDE, OUTSIDE = ("one", 1), ("two", 0)  # the firewall's ends
KILLS = 6
BURSTS = 20  # that have to arrive between two kills
NUMBER_AT = 14 + 20 + 8


def start_firewall(fabric: Fabric) -> AgentProcess:
    agent = fabric.start("firewall")
    agent.await_line("forwarding between")
    return agent


def groups(fabric: Fabric) -> list[int]:
    """The forwarder's groups, from the bytes of both regions: of inside to outside, and of outside to inside."""
    found: list[int] = []
    for (link, side), half in ((INSIDE, "taken"), (OUTSIDE, "given"), (OUTSIDE, "taken"), (INSIDE, "given")):
        at = 4096 * (1 + side) + ffi.offsetof("struct rway_side", half)
        found += struct.unpack_from("<Q", fabric.memory(link), at)
    return found


def is_empty(fabric: Fabric) -> bool:
    return all(ring.in_flight == 0 for link in ("one", "two") for ring in fabric.broker.link(link).rings)


class Stream:
    """Numbered frames of one flow, from left until it is told to end, and their numbers as they come to right."""

    def __init__(self, left: Port, right: Port) -> None:
        self._right = right
        self._left = left
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self.sent = 0
        self.received = 0
        self._last = -1
        self._thread.start()

    def _send(self) -> None:
        while not self._ending.is_set():
            frames = [udp(1, number) for number in range(self.sent, self.sent + 32)]
            self.sent += self._left.send(frames, timeout=0.1)

    def receive(self, timeout: float) -> bool:
        frames = self._right.receive(timeout=timeout)
        for frame in frames:
            (number,) = struct.unpack_from(">I", frame, NUMBER_AT)
            assert number > self._last, "twice, or out of order"
            self._last = number
        self.received += len(frames)
        return bool(frames)

    def end(self) -> None:
        self._ending.set()
        while self._thread.is_alive():
            self.receive(0.01)


@pytest.mark.timeout(120)
def test_a_firewall_killed_under_traffic_costs_what_its_books_say(fabric: Fabric) -> None:
    fabric.apply(CHAIN)
    left, right = fabric.port("left"), fabric.port("right")
    agent = start_firewall(fabric)
    stream = Stream(left, right)
    try:
        for _ in range(KILLS):
            for _ in range(BURSTS):
                assert stream.receive(20), "nothing arrives after a restart"
            agent.stop(signal.SIGKILL)
            agent = start_firewall(fabric)
    finally:
        stream.end()
    until(lambda: not stream.receive(0.1) and is_empty(fabric), "all frames arrive")
    one, two = fabric.quiet("one").rings, fabric.quiet("two").rings
    sent, forwarded = one[:QUEUES], two[:QUEUES]
    assert sum(ring.offered for ring in sent) == stream.sent
    assert sum(ring.delivered for ring in sent) == sum(ring.offered for ring in forwarded), "the books do not join up"
    assert sum(ring.delivered for ring in forwarded) == stream.received
    drops = [ring.drops_produced for ring in forwarded] + [ring.drops_consumed for ring in sent]
    assert set().union(*drops) <= {"restart", "full"}
    assert sum(drop.get("restart", 0) for drop in drops) <= KILLS * QUEUES * 64


def test_a_forwarder_remembers_its_way_while_it_runs_and_forgets_it_when_it_ends(fabric: Fabric) -> None:
    fabric.apply(CHAIN)
    agent = start_firewall(fabric)
    out, also_out, back, also_back = groups(fabric)
    assert 0 != out == also_out != back == also_back != 0
    agent.stop(signal.SIGKILL)
    assert groups(fabric) == [out, out, back, back]
    assert start_firewall(fabric).stop() == 0
    assert groups(fabric) == [0] * 4


def test_what_an_application_takes_is_not_counted_as_lost_by_a_forwarder_killed_before_it(fabric: Fabric) -> None:
    fabric.apply(CHAIN)
    start_firewall(fabric).stop(signal.SIGKILL)
    fabric.broker.apply(WITHOUT_STACK)
    with Agent("firewall", fabric.runtime) as application:
        inside = application.port("inside")
        assert fabric.port("left").send([udp(7, 7)] * 7, timeout=20) == 7
        taken = 0
        while taken < 7:
            taken += len(inside.receive(timeout=20))
    fabric.broker.apply(CHAIN)
    start_firewall(fabric)
    assert fabric.ring("two").drops_produced == {}
