"""Tap ports: two kernels joined by one link, each in a namespace of its own."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator

import pytest

from tests.support.fabric import AgentProcess, Fabric
from tests.support.network import (
    await_carriers,
    has_carrier,
    link_counters,
    namespaces,
    ping,
    run,
    send_and_end,
    socket_in,
    transfer,
)
from tests.support.waiting import until

pytestmark = pytest.mark.needs_root
WEST, EAST = "10.9.0.1", "10.9.0.2"


@pytest.fixture
def two_namespaces() -> Iterator[None]:
    with namespaces("west", "east", ipv6=True):
        yield


def taps(port: str = "", link: str = "") -> str:
    return f"""
[vm.west.port.p]
kind = "tap"
interface = "fast0"
address = ["{WEST}/24", "fd00:9::1/64"]
{port}
[vm.east.port.p]
kind = "tap"
interface = "fast0"
address = ["{EAST}/24", "fd00:9::2/64"]
{port}
[link.wire]
ends = ["west.p", "east.p"]
{link}
"""


@pytest.fixture
def joined(fabric: Fabric, two_namespaces: None) -> Fabric:
    return fabric


def start(fabric: Fabric, text: str) -> list[AgentProcess]:
    fabric.apply(text)
    agents = [fabric.agent(vm, namespace=vm) for vm in ("west", "east")]
    await_carriers()
    return agents


def datagrams_there_and_back(sizes: list[int], address: str = EAST, family: int = socket.AF_INET) -> None:
    with (
        socket_in("east", socket.SOCK_DGRAM, family) as server,
        socket_in("west", socket.SOCK_DGRAM, family) as client,
    ):
        server.bind((address, 0))
        client.connect(server.getsockname())
        for size in sizes:
            content = os.urandom(size)
            client.send(content)
            got, sender = server.recvfrom(65536)
            assert got == content
            server.sendto(got, sender)
            assert client.recv(65536) == content


KINDS = {
    # name: port options, link options, largest frame that may be seen
    "default": ("", "", 65554),
    "no-offload": ("offload = false", "", 1518),
    "jumbo": ("mtu = 9000", "", 65554),
    "jumbo-no-offload": ("mtu = 9000\noffload = false", "", 9018),
    "four-queues": ("", "queues = 4", 65554),
    "small-slots": ("", "slots = 64\nslot_payload = 256", 8192),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_talk_ping_udp_and_tcp_over_a_link(joined: Fabric, kind: str) -> None:
    port, link, largest = KINDS[kind]
    start(joined, taps(port, link))
    mtu = 9000 if "9000" in port else 1500
    assert ping("west", EAST) == 3
    assert ping("west", EAST, "-M", "do", "-s", str(mtu - 28)) == 3
    assert ping("west", "fd00:9::2") == 3
    datagrams_there_and_back([0, 1, 18, 1472, 1473, 8972, 65507])  # the longer ones in fragments
    datagrams_there_and_back([1, 1452, 20000], "fd00:9::2", socket.AF_INET6)
    transfer("west", "east", EAST, 8 << 20)
    transfer("east", "west", "fd00:9::1", 8 << 20)
    shown = joined.quiet("wire")
    for side in (0, 1):
        rings = [ring for ring in shown.rings if ring.producing_side == side]
        frames, size = sum(ring.published for ring in rings), sum(ring.produced["bytes"] for ring in rings)
        assert size > 8 << 20
        assert not any(ring.drops_produced or ring.drops_consumed for ring in rings), rings
        assert size / frames <= largest
        if largest > 60000:
            assert size / frames > 5000, "segments were cut before the link"


def test_the_kernel_is_told_how_long_a_segment_may_be(joined: Fabric) -> None:
    start(joined, taps(link="slots = 64\nslot_payload = 256"))
    assert link_counters("west", "fast0")["gso_max_size"] == 8192 - 18


def test_the_frames_of_each_flow_stay_in_order_over_several_queues(joined: Fabric) -> None:
    start(joined, taps(link="queues = 4"))
    assert ping("west", EAST) == 3
    flows, bursts, burst = 16, 50, 16
    with socket_in("east", socket.SOCK_DGRAM) as server:
        server.bind((EAST, 0))
        senders = [socket_in("west", socket.SOCK_DGRAM) for _ in range(flows)]
        for sender in senders:
            sender.connect(server.getsockname())
        got: dict[int, list[int]] = defaultdict(list)
        for first in range(0, bursts * burst, burst):
            for number in range(first, first + burst):
                for sender in senders:
                    sender.send(number.to_bytes(4, "big"))
            for _ in range(flows * burst):
                data, (_, port) = server.recvfrom(64)
                got[port].append(int.from_bytes(data, "big"))
        for sender in senders:
            sender.close()
    assert len(got) == flows
    assert all(numbers == list(range(bursts * burst)) for numbers in got.values())
    rings = joined.quiet("wire").rings
    assert sum(ring.published > 100 for ring in rings if ring.producing_side == 0) > 1, "one queue carried all"


def test_an_interface_that_is_set_down_and_up_carries_on(joined: Fabric) -> None:
    _, east = start(joined, taps())
    assert ping("west", EAST) == 3
    run("ip", "link", "set", "fast0", "down", namespace="east")
    assert ping("west", EAST) == 0
    _check_idle(east)
    run("ip", "link", "set", "fast0", "up", namespace="east")
    assert ping("west", EAST) == 3
    transfer("west", "east", EAST, 1 << 20)


def test_a_deleted_interface_is_made_again(joined: Fabric) -> None:
    _, east = start(joined, taps())
    assert ping("west", EAST) == 3
    before = index_of("east", "fast0")
    run("ip", "link", "del", "fast0", namespace="east")
    east.await_line("interface fast0 is up")
    assert index_of("east", "fast0") != before
    until(lambda: ping("west", EAST, count=1) == 1, "the new interface answers")
    joined.quiet("wire")


def test_an_interface_that_cannot_be_made_again_is_reported_and_tried_again(joined: Fabric) -> None:
    _, east = start(joined, taps())
    script = "ip link del fast0; ip link add fast0 type bridge"
    run("sh", "-c", script, namespace="east")
    until(lambda: [port.state for port in joined.broker.vm("east").ports] == ["failed"], "the broker is told")
    _check_idle(east)
    run("ip", "link", "del", "fast0", namespace="east")
    east.await_line("interface fast0 is up")
    until(lambda: ping("west", EAST, count=1) == 1, "the new interface answers")


def index_of(namespace: str, interface: str) -> int:
    return int(link_counters(namespace, interface)["ifindex"])


def _check_idle(agent: AgentProcess) -> None:
    """Nothing to wait for is no reason to spin."""
    before = agent.cpu_ticks()
    time.sleep(1)  # being idle is what is measured
    assert agent.cpu_ticks() - before <= 0.1 * os.sysconf("SC_CLK_TCK")


def test_a_killed_agent_leaves_its_interface_without_a_carrier_and_the_next_one_goes_on_with_it(joined: Fabric) -> None:
    _, east = start(joined, taps())
    assert ping("west", EAST) == 3
    index = index_of("east", "fast0")
    east.process.kill()
    east.process.wait(10)
    assert not has_carrier("east")
    assert ping("west", EAST) == 0
    joined.agent("east", namespace="east")
    await_carriers()
    assert index_of("east", "fast0") == index
    assert ping("west", EAST) == 3
    transfer("west", "east", EAST, 1 << 20)
    joined.quiet("wire")


def test_a_bulk_transfer_survives_the_restart_of_an_agent(joined: Fabric) -> None:
    """The interface comes back with the same hardware address, so TCP goes on where it was."""
    macs = 'mac = "02:00:00:00:00:0{}"'
    text = taps("@").replace("@", macs.format(1), 1).replace("@", macs.format(2), 1)
    west, _ = start(joined, text)
    with socket_in("east") as listener, socket_in("west") as client:
        listener.bind((EAST, 0))
        listener.listen()
        client.connect(listener.getsockname())
        connection, _ = listener.accept()
        connection.settimeout(30)
        content = random.Random(1).randbytes(16 << 20)
        half = len(content) // 2
        sending = threading.Thread(target=client.sendall, args=(content[:half],))
        sending.start()
        digest, received = hashlib.sha256(), 0
        with connection:
            while received < half:
                data = connection.recv(1 << 20)
                digest.update(data)
                received += len(data)
            sending.join()
            west.process.kill()
            west.process.wait(10)
            joined.agent("west", namespace="west")
            sending = threading.Thread(target=send_and_end, args=(client, content[half:]))
            sending.start()
            while data := connection.recv(1 << 20):
                digest.update(data)
            sending.join()
    assert digest.digest() == hashlib.sha256(content).digest()


def test_a_tap_of_a_removed_link_goes_and_comes_back_with_it(joined: Fabric) -> None:
    start(joined, taps())
    joined.apply("")
    until(lambda: run("ip", "link", "show", "fast0", namespace="west", check=False).returncode != 0, "the tap is gone")
    joined.apply(taps())
    await_carriers()
    assert ping("west", EAST, count=10) > 0
