"""One firewall before three hosts, as a bridge: they reach each other, past its filter, and it shows what it does."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from ringway.agent import Port
from ringway.shm import RingSnapshot, read_region
from tests.support.broker_process import run_ringway
from tests.support.fabric import AgentProcess, Fabric
from tests.support.network import await_carriers, namespaces, ping, transfer
from tests.support.waiting import until

pytestmark = pytest.mark.needs_root
HOSTS = ("one", "two", "three")
ADDRESSES = {host: f"10.78.0.{number}" for number, host in enumerate(HOSTS, start=1)}
RULE = """
[[vm.firewall.stack.rule]]
name = "no-{0}"
action = "deny"
from = "{0}"
"""
FABRIC = (
    "".join(
        f"""
[vm.{host}.port.net]
kind = "tap"
interface = "fast0"
address = ["{address}/24"]
[vm.firewall.port.{host}]
kind = "local"
[link.{host}]
ends = ["{host}.net", "firewall.{host}"]
"""
        for host, address in ADDRESSES.items()
    )
    + """
[vm.firewall.stack]
mode = "bridge"
bridge = { ports = ["one", "two", "three"], ageing = 30 }
default = "allow"
"""
)


@pytest.fixture
def bridge(fabric: Fabric) -> Iterator[Fabric]:
    with namespaces(*HOSTS):
        fabric.apply(FABRIC)
        fabric.agent("firewall")
        for host in HOSTS:
            fabric.agent(host, namespace=host)
        await_carriers(*HOSTS)
        yield fabric


def counters(fabric: Fabric) -> dict[str, int]:
    functions = fabric.broker.vm("firewall").functions
    return {name: value for function in functions for name, value in function.counters.items()}


def test_hosts_on_one_bridge_reach_each_other_and_nobody_else_sees_it(bridge: Fabric) -> None:
    for source in HOSTS:
        for target in HOSTS:
            if source != target:
                assert ping(source, ADDRESSES[target]) == 3
    flooded = counters(bridge)["flooded"]
    before = bridge.quiet("three").rings[1].published
    transfer("one", "two", ADDRESSES["two"], 32 << 20)
    assert bridge.quiet("three").rings[1].published - before <= counters(bridge)["flooded"] - flooded
    now = counters(bridge)
    assert now["learnt"] >= len(HOSTS)
    assert now["flood_limited"] == now["bad_source"] == 0


def test_the_filter_applies_by_port_and_changes_under_traffic(bridge: Fabric) -> None:
    assert ping("three", ADDRESSES["one"]) == 3
    bridge.apply(FABRIC + RULE.format("three"))
    assert ping("three", ADDRESSES["one"], count=1) == 0
    assert ping("one", ADDRESSES["two"]) == 3
    bridge.apply(FABRIC)
    assert ping("three", ADDRESSES["one"]) == 3


def test_a_host_that_leaves_and_comes_back_is_bridged_again(bridge: Fabric) -> None:
    assert ping("one", ADDRESSES["three"]) == 3
    bridge.apply(FABRIC.replace('[link.three]\nends = ["three.net", "firewall.three"]\n', ""))
    assert ping("one", ADDRESSES["three"], count=1) == 0
    assert ping("one", ADDRESSES["two"]) == 3
    bridge.apply(FABRIC)
    await_carriers(*HOSTS)
    until(lambda: ping("one", ADDRESSES["three"], count=1) == 1, "the third host is back")


def test_its_connections_pass_whatever_the_rules_say_of_answers(bridge: Fabric) -> None:
    stateful = FABRIC.replace('default = "allow"', 'default = "deny"\nconnections = 4096')
    arp = '[[vm.firewall.stack.rule]]\nname = "arp"\naction = "allow"\nether = "arp"\n'
    opens = '[[vm.firewall.stack.rule]]\nname = "opens"\naction = "allow"\nfrom = "one"\n'
    bridge.apply(stateful + arp + opens)
    assert ping("one", ADDRESSES["two"]) == 3
    transfer("one", "three", ADDRESSES["three"], 8 << 20)
    assert ping("two", ADDRESSES["one"], count=1) == 0


def test_show_has_a_table_of_its_counters(bridge: Fabric) -> None:
    assert ping("one", ADDRESSES["two"]) == 3
    shown = run_ringway("show", "--runtime", str(bridge.runtime))
    assert shown.returncode == 0, shown.stderr
    assert "packet functions" in shown.stdout
    assert "flood_limited" in shown.stdout


LOCAL = (
    "".join(
        f"""
[vm.{host}.port.p]
kind = "local"
[vm.firewall.port.{host}]
kind = "local"
[link.{host}]
ends = ["{host}.p", "firewall.{host}"]
slots = 256
"""
        for host in HOSTS
    )
    + """
[vm.firewall.stack]
mode = "bridge"
bridge = { ports = ["one", "two", "three"], flood_rate = 100000000 }
default = "allow"
"""
)
KILLS = 8
CATCHES = 300  # how often it is stopped, at most, to find it between its rings
BURSTS = 20  # that have to arrive between two kills


class Talker:
    """One frame to everybody for each to the next host, from one port until told to end; and what comes is taken."""

    def __init__(self, port: Port, number: int) -> None:
        self.received = 0
        self.sent = 0
        self._port = port
        self._ending = threading.Event()
        source = bytes([2, 0, 0, 0, 0, number])
        neighbour = bytes([2, 0, 0, 0, 0, (number + 1) % len(HOSTS)])
        self._frames = [target + source + bytes([0x88, 0xB5]) + bytes(46) for target in (b"\xff" * 6, neighbour)] * 16
        self._threads = [threading.Thread(target=work) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        while not self._ending.is_set():
            self.sent += self._port.send(self._frames, timeout=0.1)

    def _receive(self) -> None:
        """Until nothing has come for a while after the end of all sending."""
        while frames := self._port.receive(timeout=0.5) or not self._ending.is_set():
            self.received += len(frames) if isinstance(frames, list) else 0

    def end(self) -> None:
        self._ending.set()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(30)


def have_received(talkers: list[Talker], frames: list[int]) -> bool:
    return all(talker.received >= due for talker, due in zip(talkers, frames, strict=True))


def rings_of(regions: list[int]) -> list[RingSnapshot]:
    return [ring for fd in regions for ring in read_region(fd).rings]


def owed_less_paid(regions: list[int]) -> int:
    """By the firewall, over all its ports: what it has taken out for good and not offered, while it stands still."""
    rings = rings_of(regions)
    owed = sum(ring.owed for ring in rings if ring.producing_side == 0)
    return owed - sum(ring.paid for ring in rings if ring.producing_side == 1)


def kill_between(regions: list[int], agent: AgentProcess) -> int:
    """Kill it while it holds frames that it has released and not published; returns how many, copies counted."""
    for _ in range(CATCHES):
        agent.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, agent.process.pid, os.WSTOPPED)
        if (held := owed_less_paid(regions)) != 0:
            break
        agent.process.send_signal(signal.SIGCONT)
    agent.stop(signal.SIGKILL)
    return held


@pytest.mark.timeout(240)
def test_the_books_of_a_bridge_that_is_killed_under_traffic_balance_to_the_copy(fabric: Fabric) -> None:
    fabric.apply(LOCAL)
    talkers = [Talker(fabric.port(host), number) for number, host in enumerate(HOSTS)]
    regions = [fabric.region_fd(host) for host in HOSTS]
    held = []
    try:
        for _ in range(KILLS):
            agent = fabric.agent("firewall")
            due = [talker.received + BURSTS * 64 for talker in talkers]
            until(functools.partial(have_received, talkers, due), "frames go on after a restart")
            held.append(kill_between(regions, agent))
        fabric.agent("firewall")
    finally:
        for talker in talkers:
            talker.end()
        for talker in talkers:
            talker.join()
    for host in HOSTS:
        fabric.quiet(host)
    lost = [ring.produced.drops.get("restart", 0) for ring in rings_of(regions)]
    assert any(held), "it was never caught between its rings"
    assert owed_less_paid(regions) == 0
    assert sum(lost) == sum(held)
