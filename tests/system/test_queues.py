"""Several queues: a flow stays in order on each link while the number of queues in use changes, and the books balance.

docs/running.md says where in a chain a flow can be overtaken all the same: where it changes a forwarder's loop.
"""

from __future__ import annotations

import struct
import subprocess
from collections import Counter

import pytest

from ringway.agent import Port
from tests.support.fabric import AgentProcess, Fabric
from tests.support.fabrics import PAIR, applications_and_firewall
from tests.support.waiting import until

QUEUES, FLOWS = 4, 100
ALL_QUEUES = f"queues = {QUEUES}\n"
WIRE = PAIR + ALL_QUEUES + "slots = 256\n"
CHAIN = applications_and_firewall(one=ALL_QUEUES, two=ALL_QUEUES)


class Flows:
    """What a receiver has seen of the flows that peer.py sends; it refuses a frame that comes late, or twice."""

    def __init__(self, port: Port, lossless: bool) -> None:
        self._port = port
        self._lossless = lossless
        self.in_order = True  # False: a frame may come late, but not twice
        self._due = dict.fromkeys(range(FLOWS), 0)
        self._missing = set[tuple[int, int]]()
        self.frames = 0

    def receive(self, at_least: int) -> None:
        """Take so many frames, or some more."""
        wanted = self.frames + at_least
        while self.frames < wanted:
            got = self._port.receive(timeout=20)
            assert got, f"after {self.frames} frames no more came"
            self._look_at(got)

    def receive_rest(self) -> None:
        while got := self._port.receive(timeout=0.5):
            self._look_at(got)

    def _look_at(self, frames: list[bytes]) -> None:
        for frame in frames:
            (port,) = struct.unpack_from(">H", frame, 34)
            (number,) = struct.unpack_from(">I", frame, 42)
            flow = port - 1000
            if number < self._due[flow]:
                assert not self.in_order, f"flow {flow}: {number} came after {self._due[flow] - 1}"
                assert (flow, number) in self._missing, f"flow {flow}: {number} came twice"
                self._missing.remove((flow, number))
                continue
            assert not self._lossless or number == self._due[flow]
            self._missing.update((flow, missing) for missing in range(self._due[flow], number))
            self._due[flow] = number + 1
        self.frames += len(frames)


def published(fabric: Fabric, link: str) -> Counter[int]:
    """Frames by queue, of side a."""
    return Counter({r.queue: r.published for r in fabric.broker.link(link).rings if r.producing_side == 0})


def used_since(fabric: Fabric, link: str, before: Counter[int]) -> set[int]:
    return {queue for queue, frames in (published(fabric, link) - before).items() if frames > 0}


def stop_sending(sender: subprocess.Popen[str], flows: Flows) -> int:
    """How many frames it has sent in all; what is under way is received."""
    assert sender.stdin is not None
    sender.stdin.close()
    sender.stdin = None
    flows.receive_rest()
    assert sender.stdout is not None
    return int(sender.stdout.readline())


def test_flows_stay_in_order_while_the_receiver_changes_how_many_queues_it_wants(fabric: Fabric) -> None:
    fabric.apply(WIRE)
    port = fabric.port("right")
    sender = fabric.peer("flows", "left")
    flows = Flows(port, lossless=True)
    flows.receive(5000)
    for wanted in (4, 1, 3, 2, 4):
        port.serve(wanted)
        only = set(range(wanted))

        def all_follow(only: set[int] = only) -> bool:
            before = published(fabric, "wire")
            flows.receive(3000)
            return used_since(fabric, "wire", before) == only

        until(all_follow, f"only queues {only} are used, and all of them")
    sent = stop_sending(sender, flows)
    assert flows.frames == sent
    fabric.quiet("wire")


def dropped(fabric: Fabric, *links: str) -> int:
    """Frames that full rings of the links, once they are quiet, did not take; nothing else was dropped."""
    drops = Counter[str]()
    for link in links:
        for ring in fabric.quiet(link).rings:
            drops.update(ring.drops_produced)
            drops.update(ring.drops_consumed)
    assert set(drops) <= {"full"}
    return drops.total()


def test_a_forwarder_that_starts_again_with_another_number_of_loops_loses_nothing_and_keeps_order_from_then_on(
    fabric: Fabric,
) -> None:
    fabric.apply(CHAIN)
    port = fabric.port("right")
    firewall = start_firewall(fabric, 4)
    for loops in (1, 3, 2, 4):
        before = dropped(fabric, "one", "two")
        sender = fabric.peer("flows", "left")
        flows = Flows(port, lossless=False)
        flows.receive(5000)
        flows.in_order = False  # what is under way when a flow comes to another loop
        assert firewall.stop() == 0
        firewall = start_firewall(fabric, loops)
        only = set(range(loops))

        def all_follow(flows: Flows = flows, only: set[int] = only) -> bool:
            before = published(fabric, "one")
            flows.receive(3000)
            return used_since(fabric, "one", before) == only

        until(all_follow, f"only queues {only} are used, and all of them")
        assert len(fabric.broker.vm("firewall").loops) == loops
        sent = stop_sending(sender, flows)
        assert flows.frames == sent - (dropped(fabric, "one", "two") - before)
        sender.wait(20)


@pytest.mark.parametrize("loops", [1, 2, 4])
def test_flows_stay_in_order_through_a_forwarder_that_starts_again_with_as_many_loops(
    fabric: Fabric, loops: int
) -> None:
    fabric.apply(CHAIN)
    port = fabric.port("right")
    firewall = start_firewall(fabric, loops)
    sender = fabric.peer("flows", "left")
    flows = Flows(port, lossless=False)
    for _ in range(3):
        flows.receive(5000)
        assert firewall.stop() == 0
        firewall = start_firewall(fabric, loops)
    flows.receive(5000)
    sent = stop_sending(sender, flows)
    assert flows.frames == sent - dropped(fabric, "one", "two")


def start_firewall(fabric: Fabric, loops: int) -> AgentProcess:
    return fabric.agent("firewall", None, "--loops", str(loops))


def test_one_loop_forwards_into_all_queues_that_the_next_one_wants(fabric: Fabric) -> None:
    fabric.apply(CHAIN)
    port = fabric.port("right")
    start_firewall(fabric, 1)
    sender = fabric.peer("flows", "left")
    flows = Flows(port, lossless=False)
    flows.receive(5000)
    assert {queue for queue, frames in published(fabric, "two").items() if frames} == {0, 1, 2, 3}
    port.serve(2)

    def all_follow() -> bool:
        before = published(fabric, "two")
        flows.receive(3000)
        return used_since(fabric, "two", before) == {0, 1}

    until(all_follow, "the forwarder follows the next one's wish")
    stop_sending(sender, flows)
    fabric.quiet("two")


def test_flows_follow_a_forwarder_whose_way_out_has_one_queue(fabric: Fabric) -> None:
    fabric.apply(applications_and_firewall(one=ALL_QUEUES, two="queues = 1"))
    port = fabric.port("right")
    start_firewall(fabric, 4)  # one loop: it has one queue to send into
    sender = fabric.peer("flows", "left")
    flows = Flows(port, lossless=False)

    def all_follow() -> bool:
        before = published(fabric, "one")
        flows.receive(3000)
        return used_since(fabric, "one", before) == {0}

    until(all_follow, "only the queue that the forwarder wants is used")
    stop_sending(sender, flows)
    fabric.quiet("one")


@pytest.fixture
def both(fabric: Fabric) -> tuple[Port, Port]:
    fabric.apply(WIRE)
    return fabric.port("left"), fabric.port("right")


def test_a_receive_wakes_for_a_frame_in_any_queue(both: tuple[Port, Port]) -> None:
    left, right = both
    for queue in range(QUEUES):
        left.send([bytes([queue]) * 60], queue=queue)
        assert right.receive(timeout=10) == [bytes([queue]) * 60]
    assert right.receive(timeout=0) == []


def test_a_queue_that_is_full_drops_its_own_flows_alone(fabric: Fabric, both: tuple[Port, Port]) -> None:
    left, _ = both
    one_flow = [bytes(60)] * 300
    assert left.send_or_drop(one_flow) == 256
    drops = [ring.drops_produced for ring in fabric.broker.link("wire").rings if ring.producing_side == 0]
    assert sorted(drop.get("full", 0) for drop in drops) == [0, 0, 0, 44]


@pytest.mark.parametrize("wanted", [0, -1, 5])
def test_a_number_of_queues_that_the_link_does_not_have_is_refused(both: tuple[Port, Port], wanted: int) -> None:
    with pytest.raises(ValueError, match="the link has 1 to 4"):
        both[0].serve(wanted)
