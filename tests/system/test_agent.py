"""Local ports over a real broker: frames between processes, and what becomes of them when links and agents go."""

from __future__ import annotations

import json
import mmap
import os
import random
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from ringway.agent import Agent, AgentCause, AgentError, Port
from ringway.agent.functions import FunctionDirectory
from ringway.agent.interface import Owner
from ringway.agent.ports import Ports
from ringway.control.errors import ControlError
from ringway.control.messages import Cause
from ringway.control.runtime import handover_path
from ringway.shm import BreakCause, RegionBrokenError, RegionHeldError
from ringway.shm._native import ffi, lib
from tests.support.broker_process import BrokerProcess, only_offer, run_ringway, session_of, short_directory
from tests.support.fabric import AgentProcess, Fabric, check_books
from tests.support.fabrics import PAIR
from tests.support.waiting import until

# A second link between the same VMs, to be added and taken away.
BESIDE = """
[vm.left.port.q]
kind = "local"
[vm.right.port.q]
kind = "local"
[link.beside]
ends = ["left.q", "right.q"]
"""
BYTES = random.Random(2).randbytes(1 << 17)


TWO_LINKS = """
[vm.client.port.p]
kind = "local"
[vm.client.port.q]
kind = "local"
[vm.server.port.p]
kind = "local"
[vm.server.port.q]
kind = "local"
[link.one]
ends = ["client.p", "server.p"]
slots = 64
[link.two]
ends = ["client.q", "server.q"]
slots = 64
"""


def there_and_back(port: Port, frames: list[bytes], queue: int = 0) -> None:
    port.send(frames, queue=queue, timeout=10)
    got: list[bytes] = []
    while len(got) < len(frames):
        new = port.receive(queue=queue, timeout=10)
        assert new, f"{len(got)} of {len(frames)} frames came back"
        got += new
    assert got == frames


def in_a_thread(work: Callable[[], object]) -> Future[object]:
    executor = ThreadPoolExecutor(1)
    future = executor.submit(work)
    executor.shutdown(wait=False)
    return future


def cause_of(waiting: Future[object]) -> AgentCause:
    with pytest.raises(AgentError) as caught:
        waiting.result(timeout=5)
    return caught.value.cause


@pytest.mark.parametrize("geometry", ["", "queues = 4", "slots = 64\nslot_payload = 256", "queues = 3\nslots = 256"])
def test_frames_of_all_sizes_go_there_and_back_on_every_queue(fabric: Fabric, geometry: str) -> None:
    fabric.apply(PAIR + geometry)
    fabric.peer("echo", "right")
    port = fabric.port("left")
    largest = port.frame_max
    sizes = sorted({14, 60, 64, 255, 256, 257, 1514, 2047, 2048, 2049, largest - 1, largest, *range(14, largest, 977)})
    queues = range(port.region.geometry.queues)
    for queue in queues:
        for size in (size for size in sizes if size <= largest):
            there_and_back(port, [BYTES[queue + size : queue + 2 * size]], queue)
        there_and_back(port, [BYTES[at : at + 60] for at in range(48)], queue)
    for ring in fabric.quiet("wire").rings:
        assert ring.delivered == ring.offered > len(queues)


def test_a_frame_that_the_link_never_carries_is_counted_and_not_sent(fabric: Fabric) -> None:
    fabric.apply(PAIR)
    fabric.peer("echo", "right")
    port = fabric.port("left")
    port.send([bytes(13), bytes(port.frame_max + 1)])
    there_and_back(port, [bytes(60)])
    assert fabric.ring("wire").drops_produced == {"runt": 1, "oversize": 1}


def test_a_full_ring_drops_and_counts_what_may_not_wait(fabric: Fabric) -> None:
    fabric.apply(PAIR + "slots = 64")
    port = fabric.port("left")
    assert port.send_or_drop([bytes(60)] * 100) == 64
    assert fabric.ring("wire").drops_produced == {"full": 36}
    assert fabric.ring("wire").in_flight == 64


def test_a_withdrawn_link_ends_a_waiting_receive(fabric: Fabric) -> None:
    fabric.apply(PAIR)
    port = fabric.port("left")
    waiting = in_a_thread(lambda: port.receive(timeout=60))
    fabric.apply("")
    assert cause_of(waiting) is AgentCause.WITHDRAWN


def test_a_withdrawn_link_ends_a_waiting_send(fabric: Fabric) -> None:
    fabric.apply(PAIR + "slots = 64")
    port = fabric.port("left")
    waiting = in_a_thread(lambda: port.send([bytes(60)] * 100, timeout=60))
    until(lambda: fabric.ring("wire").in_flight == 64, "the ring is full")
    fabric.apply("")
    assert cause_of(waiting) is AgentCause.WITHDRAWN


def test_a_replaced_link_is_asked_for_again(fabric: Fabric) -> None:
    fabric.apply(PAIR)
    fabric.peer("echo", "right")
    agent = fabric.local("left")
    port = agent.port("p")
    there_and_back(port, [bytes(60)])
    fabric.apply(PAIR + "queues = 2")
    with pytest.raises(AgentError, match="ask the agent for the port again"):
        port.receive(timeout=0)
    there_and_back(agent.port("p"), [bytes(60)], queue=1)


def test_a_replaced_link_that_somebody_will_not_let_go_of_keeps_no_port_from_its_new_one(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringway.shm.region._HELD_S", 0.05)
    owner = Owner.of(fabric.runtime, "client")
    ports = Ports("client", owner, fabric.runtime, 0, 1, FunctionDirectory(None), lambda _: None)
    fabric.broker.apply(TWO_LINKS)
    with session_of(fabric.runtime, "client") as session:
        ports.take_up(session.hello().offers, None)
        held, other = ports.port("p", 0), ports.port("q", 0)
        with held.region.hold("an application"):
            fabric.broker.apply(TWO_LINKS.replace("slots = 64", "slots = 128"))
            with pytest.raises(RegionHeldError, match="an application"):
                ports.take_up(session.hello().offers, None)
            assert [ports.port(name, 0).region.geometry.slot_count for name in "pq"] == [128, 128]
            assert (held.attached, other.attached) == (True, False)
        held.detach()
        ports.close()


def test_links_come_and_go_beside_one_that_loses_nothing(fabric: Fabric) -> None:
    fabric.apply(PAIR)
    fabric.peer("echo", "right")
    port = fabric.port("left")
    done = threading.Event()

    def carry() -> int:
        bursts = 0
        while not done.is_set() or bursts < 100:
            there_and_back(port, [(bursts * 20 + number).to_bytes(8, "big") * 100 for number in range(20)])
            bursts += 1
        return bursts * 20

    carrying = in_a_thread(carry)
    for _ in range(10):
        fabric.apply(PAIR + BESIDE)
        fabric.apply(PAIR)
    done.set()
    carried = carrying.result(timeout=60)
    for ring in fabric.quiet("wire").rings:
        assert ring.offered == ring.delivered == carried


def test_traffic_goes_on_when_a_killed_application_is_started_again(fabric: Fabric) -> None:
    fabric.apply(PAIR)
    port = fabric.port("left")
    sent = [number.to_bytes(4, "big") * 100 for number in range(400)]
    got: list[bytes] = []
    for start in (0, 100, 200):
        echo = fabric.peer("echo", "right")
        port.send(sent[start : start + 100])
        got += port.receive(count=10, timeout=10)
        echo.kill()
        echo.wait(10)
        assert fabric.broker.link("wire").state == "half"
    fabric.peer("echo", "right")
    port.send(sent[300:])
    while got[-1:] != sent[-1:]:
        new = port.receive(timeout=10)
        assert new, f"after {len(got)} frames no more came back"
        got += new
    # In order and none twice; what an application had taken when it died is lost.
    assert got == sorted(set(got))
    assert got[-100:] == sent[-100:]
    shown = fabric.quiet("wire")
    assert [end.incarnation for end in shown.ends] == [1, 4]
    assert shown.rings[0].offered == 400


def test_a_port_that_the_fabric_does_not_have_is_named_with_those_it_has(fabric: Fabric) -> None:
    fabric.apply(PAIR + BESIDE)
    with pytest.raises(AgentError, match=r"VM left has no linked port 'x'; it has: p, q") as caught:
        fabric.local("left").port("x", timeout=0)
    assert caught.value.cause is AgentCause.NO_PORT


def test_a_port_of_the_stack_is_not_the_applications(fabric: Fabric) -> None:
    fabric.apply(PAIR + BESIDE + '[vm.left.stack]\nforward = [["p", "q"]]\ndefault = "allow"\n')
    with pytest.raises(AgentError, match="run by its agent") as caught:
        fabric.port("left")
    assert caught.value.cause is AgentCause.NOT_LOCAL


def test_a_stack_takes_a_port_from_the_application_that_used_it(fabric: Fabric) -> None:
    fabric.apply(PAIR + BESIDE)
    port = fabric.port("left")
    port.send([bytes(60)])
    fabric.apply(PAIR + BESIDE + '[vm.left.stack]\nforward = [["p", "q"]]\ndefault = "allow"\n')
    with pytest.raises(AgentError, match="run by its agent") as caught:
        port.send([bytes(60)])
    assert caught.value.cause is AgentCause.NOT_LOCAL
    fabric.apply(PAIR + BESIDE)
    port.send([bytes(60)])
    assert fabric.ring("wire").published == 2


def test_an_agent_joins_a_new_broker_once_that_has_a_fabric(fabric: Fabric) -> None:
    fabric.apply(PAIR)
    left, right = fabric.port("left"), fabric.port("right")
    fabric.broker.process.kill()
    fabric.broker.process.communicate(timeout=10)
    left.send([b"without a broker".ljust(60)])
    assert right.receive(timeout=10) == [b"without a broker".ljust(60)]
    with BrokerProcess(fabric.runtime) as broker:
        broker.apply(PAIR)
        until(lambda: broker.link("wire").state == "up", "both agents have come back", seconds=30)


def test_a_port_that_could_not_be_attached_is_attached_as_soon_as_it_can_be(fabric: Fabric) -> None:
    fabric.apply(PAIR)
    fabric.agent("left")
    fabric.agent("right")
    socket, away = handover_path(fabric.runtime), fabric.runtime / "away"
    socket.rename(away)
    fabric.apply(PAIR + "slots = 64\n")
    assert fabric.broker.link("wire").state == "down"
    assert "no broker hands over" in fabric.broker.vm("left").ports[0].cause
    away.rename(socket)
    until(lambda: fabric.broker.link("wire").state == "up", "both have asked for fresh tickets")
    until(lambda: fabric.broker.vm("left").problem == "", "and the problem is over")


def test_an_agent_that_starts_between_applies_gets_its_ports(fabric: Fabric) -> None:
    fabric.apply(PAIR)
    stop = threading.Event()

    def apply_on_and_on() -> None:
        while not stop.is_set():
            fabric.broker.apply(PAIR + "slots = 64\n")
            fabric.broker.apply(PAIR)

    applying = in_a_thread(apply_on_and_on)
    for _ in range(30):
        with Agent("left", fabric.runtime):
            pass
    stop.set()
    applying.result(timeout=20)


def test_an_agent_whose_log_nobody_reads_any_more_goes_on(fabric: Fabric) -> None:
    fabric.apply(PAIR)
    agents = [fabric.agent("left"), fabric.agent("right")]
    for agent in agents:
        assert agent.process.stderr is not None
        agent.process.stderr.close()
        agent.process.stderr = None
    fabric.apply(PAIR + "slots = 64\n")
    until(lambda: fabric.broker.link("wire").state == "up", "the new link is attached")
    for agent in agents:
        agent.process.terminate()
        assert agent.process.wait(10) == 0


def test_a_name_that_no_vm_has_is_refused_before_anything_is_asked() -> None:
    done = run_ringway("agent", "--vm", "../up", "--runtime", "/nonexistent")
    assert done.returncode == 1
    assert "is not the name of a VM" in done.stderr


def test_a_second_agent_of_a_vm_is_refused_with_the_pid_of_the_first(fabric: Fabric) -> None:
    fabric.apply(PAIR)
    fabric.local("left")
    with pytest.raises(ControlError, match=f"pid {os.getpid()}") as caught, Agent("left", fabric.runtime, timeout=0):
        pass
    assert caught.value.cause is Cause.AGENT_EXISTS


def test_a_waiting_agent_follows_the_one_that_ends(fabric: Fabric) -> None:
    fabric.apply(PAIR)
    first = fabric.agent("left")
    second = fabric.start("left")
    second.await_line(f"waiting: VM 'left' has an agent, pid {first.process.pid}")
    assert first.stop() == 0
    second.await_line("ready")


def test_an_agent_waits_for_the_broker_and_then_for_the_fabric() -> None:
    with short_directory() as path:
        agent = AgentProcess(path / "run", "left")
        try:
            agent.await_line("waiting: no broker answers")
            with BrokerProcess(path / "run") as broker:
                agent.await_line("the fabric is empty")
                broker.apply(PAIR)
                agent.await_line("ready")
                assert broker.vm("left").state == "present"
        finally:
            assert agent.stop() == 0


def test_an_agent_that_waits_can_be_ended(fabric: Fabric) -> None:
    agent = fabric.start("left")
    agent.await_line("waiting")
    assert agent.stop() == 0


CONTROL_SIZE = ffi.sizeof("struct rway_ring_control")
NONSENSE = {
    # cause: head, and the first descriptor as kind, flags, slots, len, vlan, pushed, hash
    BreakCause.HEAD: (1 << 40, (1, 0, 1, 60, 0, 0, 0)),
    BreakCause.KIND: (1, (77, 0, 1, 60, 0, 0, 0)),
    BreakCause.FLAGS: (1, (1, 0x80, 1, 60, 0, 0, 0)),
    BreakCause.LENGTH: (1, (1, 0, 1, 1 << 30, 0, 0, 0)),
    BreakCause.SLOTS: (1, (1, 0, 9, 60, 0, 0, 0)),
    BreakCause.INCOMPLETE: (1, (1, 0, 2, 4000, 0, 0, 0)),
    BreakCause.PUSHED: (1, (1, 0, 1, 60, 0, 4096, 0)),
}


@pytest.mark.parametrize("cause", NONSENSE, ids=lambda cause: cause.name.lower())
def test_a_peer_that_writes_nonsense_breaks_its_link_and_no_other(fabric: Fabric, cause: BreakCause) -> None:
    fabric.apply(PAIR + BESIDE.replace("right", "other"))
    fabric.peer("echo", "other", "q")
    agent = fabric.local("left")
    port = agent.port("p")
    waiting = in_a_thread(lambda: port.receive(timeout=60))
    head, descriptor = NONSENSE[cause]
    with session_of(fabric.runtime, "right") as session:
        handover = fabric.broker.take(only_offer(session.hello()), "right")
        with mmap.mmap(handover.region_fd, 0) as memory:
            rings = _rings_offset(port)
            struct.pack_into("<BBHIHHI", memory, rings + CONTROL_SIZE, *descriptor)
            struct.pack_into("<Q", memory, rings, head)
        with pytest.raises(RegionBrokenError) as caught:
            waiting.result(timeout=10)
        handover.discard()
    assert caught.value.cause is cause
    assert port.broken is cause
    there_and_back(agent.port("q"), [bytes(60)] * 20)
    shown = json.loads(run_ringway("show", "--json", "--runtime", str(fabric.runtime)).stdout)
    assert {link["name"]: link["state"] for link in shown["links"]} == {"wire": "broken", "beside": "up"}
    (left,) = (vm for vm in shown["vms"] if vm["name"] == "left")
    ports = {port["port"]: (port["state"], port["cause"]) for port in left["ports"]}
    assert ports == {"p": ("broken", cause.name.lower()), "q": ("attached", "")}
    fabric.apply(PAIR)  # a broken link is recreated
    fabric.peer("echo", "right")
    there_and_back(agent.port("p"), [bytes(60)])


def _rings_offset(port: Port) -> int:
    """Where the rings begin that side b, the hostile one, produces."""
    shape = ffi.new("struct rway_shape *")
    assert lib.rway_geometry_shape(port.region.geometry.native(), shape, ffi.NULL) == 0
    return int(shape.rings_offset[1])


def test_idle_agents_use_less_than_a_hundredth_of_a_core(fabric: Fabric) -> None:
    forward = '[vm.left.stack]\nforward = [["p", "q"]]\ndefault = "allow"\n'
    fabric.apply(PAIR + BESIDE + forward)
    agents = [fabric.agent(vm) for vm in ("left", "right")]
    (before,) = fabric.broker.vm("left").loops
    ticks, started = [agent.cpu_ticks() for agent in agents], time.monotonic()
    time.sleep(3)  # being idle is what is measured
    seconds = time.monotonic() - started
    used = [agent.cpu_ticks() - tick for agent, tick in zip(agents, ticks, strict=True)]
    (after,) = fabric.broker.vm("left").loops
    assert all(ticks <= seconds * os.sysconf("SC_CLK_TCK") / 100 for ticks in used), used
    # Bounded sleeps: it looks now and then even when no bell rings.
    assert 1 <= (after.counters["sleeps"] - before.counters["sleeps"]) / seconds <= 250


def test_the_books_of_two_applications_balance_after_both_were_killed(fabric: Fabric) -> None:
    fabric.apply(PAIR + "slots = 64")
    applications = [fabric.peer("echo", "left"), fabric.peer("echo", "right")]
    for application in applications:
        application.kill()
        application.wait(10)
    port = fabric.port("left")
    fabric.peer("echo", "right")
    there_and_back(port, [bytes(60)] * 40)
    for ring in fabric.quiet("wire").rings:
        check_books(ring)
        assert ring.delivered == 40
