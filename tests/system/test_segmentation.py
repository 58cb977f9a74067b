"""What a kernel leaves whole arrives as on a wire: through an application, and through the forwarder."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from ringway.agent import AgentError, Port
from tests.support.fabric import Fabric
from tests.support.network import namespaces, run, socket_in, transfer
from tests.support.waiting import until

pytestmark = pytest.mark.needs_root
UDP_SEGMENT = 103  # linux/udp.h
NEAR, FAR, ROUTER, HOST = "10.77.0.1", "10.77.0.2", "10.88.0.1", "10.88.0.2"
CHAIN = f"""
[vm.left.port.net]
kind = "tap"
interface = "fast0"
address = ["{NEAR}/24"]
[vm.middle.port.a]
kind = "local"
[vm.middle.port.b]
kind = "local"
[vm.right.port.net]
kind = "tap"
interface = "fast0"
address = ["{FAR}/24"]
[link.one]
ends = ["left.net", "middle.a"]
[link.two]
ends = ["middle.b", "right.net"]
"""
FORWARD = CHAIN + '[vm.middle.stack]\nforward = [["a", "b"]]\ndefault = "allow"\n'
VETH = "veth"


def pass_on(source: Port, target: Port, whole: bool) -> None:
    """Until the link is taken away: an application as anybody would write it."""
    with contextlib.suppress(AgentError):
        while True:
            if whole:
                target.send(source.receive(whole=True))
            else:
                target.send(source.receive())


@contextlib.contextmanager
def application(fabric: Fabric, whole: bool) -> Iterator[None]:
    agent = fabric.local("middle")
    a, b = agent.port("a"), agent.port("b")
    threads = [threading.Thread(target=pass_on, args=(*ends, whole)) for ends in ((a, b), (b, a))]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        agent.stop()
        for thread in threads:
            thread.join()


@pytest.fixture
def middle(fabric: Fabric, request: pytest.FixtureRequest) -> Iterator[Fabric]:
    """Two taps, and between them what the test names: an application, one that asks for whole frames, the forwarder."""
    kind = request.param
    with namespaces("left", "right"), contextlib.ExitStack() as stack:
        if kind == VETH:
            ends = ("link", "add", "fast0", "netns", "left", "type", "veth", "peer", "name", "fast0", "netns", "right")
            run("ip", *ends)
            for namespace, address in (("left", NEAR), ("right", FAR)):
                run("ip", "addr", "add", f"{address}/24", "dev", "fast0", namespace=namespace)
                run("ip", "link", "set", "fast0", "up", namespace=namespace)
        else:
            fabric.apply(FORWARD if kind == "forwarder" else CHAIN)
            for vm in ("left", "right"):
                fabric.agent(vm, namespace=vm)
            if kind == "forwarder":
                fabric.agent("middle")
            else:
                stack.enter_context(application(fabric, kind == "whole frames"))
        yield fabric


def sizes_received(segment: int, length: int) -> list[int]:
    """One send with UDP_SEGMENT in one namespace: the datagrams that come out in the other."""
    with socket_in("right", socket.SOCK_DGRAM) as receiver, socket_in("left", socket.SOCK_DGRAM) as sender:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        receiver.bind((FAR, 0))
        sender.connect(receiver.getsockname())
        sender.send(b"here")  # so that the address is known
        assert receiver.recv(1 << 16) == b"here"
        sender.setsockopt(socket.SOL_UDP, UDP_SEGMENT, segment)
        content = bytes(number % 251 for number in range(length))
        sender.send(content)
        sender.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 0)
        sender.send(b"end")
        got = []
        while (datagram := receiver.recv(1 << 16)) != b"end":
            got.append(datagram)
    assert b"".join(got) == content
    return [len(datagram) for datagram in got]


@pytest.mark.parametrize("middle", ["application", "whole frames", "forwarder", VETH], indirect=True)
def test_datagrams_sent_at_once_arrive_one_by_one(middle: Fabric) -> None:
    """Of 1000 bytes, and of 1 to 7: what a veth delivers is delivered."""
    assert sizes_received(1000, 10_300) == [1000] * 10 + [300]
    for segment in range(1, 9):
        assert sizes_received(segment, 64 * segment - (segment > 1)) == [segment] * 63 + [segment - (segment > 1)]


@pytest.mark.parametrize("middle", ["application", "whole frames", "forwarder"], indirect=True)
def test_tcp_reaches_a_host_behind_a_hop_of_1500_bytes(middle: Fabric) -> None:
    with namespaces("host"):
        run("ip", "link", "add", "lan", "netns", "right", "type", "veth", "peer", "name", "lan", "netns", "host")
        for namespace, address in (("right", ROUTER), ("host", HOST)):
            run("ip", "addr", "add", f"{address}/24", "dev", "lan", namespace=namespace)
            run("ip", "link", "set", "lan", "up", namespace=namespace)
        run("ip", "route", "add", "default", "via", FAR, namespace="left")
        run("ip", "route", "add", "default", "via", ROUTER, namespace="host")
        run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward", namespace="right")
        transfer("left", "host", HOST, 16 << 20)
        transfer("host", "left", NEAR, 16 << 20)
    until(lambda: middle.ring("one").in_flight == 0, "all of it was taken")
    for link in ("one", "two"):
        middle.quiet(link)
