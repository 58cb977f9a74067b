"""A tap's interface stays while its link does: over the end of its agent, changes of its settings, another region."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from ringway.agent import tap
from ringway.agent.interface import Owner
from ringway.control.kinds import Tap
from tests.support.fabric import AgentProcess, Fabric
from tests.support.network import (
    await_carriers,
    has_carrier,
    in_namespace,
    link_counters,
    namespaces,
    ping,
    run,
    socket_in,
)
from tests.support.waiting import until

pytestmark = pytest.mark.needs_root
WEST, EAST = "10.9.0.1", "10.9.0.2"
WEST6, EAST6 = "fd00:9::1", "fd00:9::2"


@pytest.fixture
def joined(fabric: Fabric) -> Iterator[Fabric]:
    """With the kernel's own setting of duplicate address detection, which takes more than a second."""
    with namespaces("west", "east", ipv6=True):
        for name in ("west", "east"):
            run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/accept_dad", namespace=name)
        yield fabric


def taps(west: str = "", link: str = "", addresses: tuple[str, ...] = (f"{WEST}/24", f"{WEST6}/64")) -> str:
    return f"""
[vm.west.port.p]
kind = "tap"
address = {json.dumps(addresses)}
{west if "interface" in west else 'interface = "fast0"' + chr(10) + west}
[vm.east.port.p]
kind = "tap"
interface = "fast0"
address = ["{EAST}/24", "{EAST6}/64"]
[link.wire]
ends = ["west.p", "east.p"]
{link}
"""


def start(fabric: Fabric, text: str) -> list[AgentProcess]:
    fabric.apply(text)
    agents = [fabric.agent(vm, namespace=vm) for vm in ("west", "east")]
    await_carriers()
    return agents


def kill(agent: AgentProcess) -> None:
    agent.process.kill()
    agent.process.wait(10)


def add_by_hand() -> None:
    """A route, a queueing discipline and addresses, as a user or a routing daemon would."""
    for words in (
        f"route add 10.99.0.0/16 via {EAST}",
        f"route add fd00:99::/64 via {EAST6}",
        "address add 10.9.0.77/24 dev fast0",
        "address add 192.168.7.7/24 dev fast0",
        "address add fd00:9::77/64 dev fast0",
    ):
        run("ip", *words.split(), namespace="west")
    run("tc", "qdisc", "replace", "dev", "fast0", "root", "pfifo", "limit", "77", namespace="west")


def check_by_hand() -> None:
    assert "via" in run("ip", "route", "show", "10.99.0.0/16", namespace="west").stdout
    assert "via" in run("ip", "-6", "route", "show", "fd00:99::/64", namespace="west").stdout
    assert "limit 77p" in run("tc", "qdisc", "show", "dev", "fast0", namespace="west").stdout
    assert {"10.9.0.77/24", "192.168.7.7/24", "fd00:9::77/64"} <= addresses_of("west")


def addresses_of(namespace: str, interface: str = "fast0") -> set[str]:
    (shown,) = json.loads(run("ip", "-j", "address", "show", interface, namespace=namespace).stdout)
    found = {f"{entry['local']}/{entry['prefixlen']}" for entry in shown["addr_info"]}
    return {address for address in found if not address.startswith("fe80")}


def setting(interface: str, name: str, namespace: str = "west") -> Any:
    return link_counters(namespace, interface)[name]


def has_interface(namespace: str, interface: str = "fast0") -> bool:
    return run("ip", "link", "show", interface, namespace=namespace, check=False).returncode == 0


def bind(namespace: str, address: str) -> None:
    with socket_in(namespace, family=10) as server:
        server.bind((address, 0))


@pytest.mark.parametrize("ending", ["killed", pytest.param("stopped", marks=pytest.mark.full)])
def test_an_agent_leaves_its_interface_with_routes_and_qdiscs_to_the_next_and_ipv6_works_when_that_is_ready(
    joined: Fabric, ending: str
) -> None:
    west, _ = start(joined, taps())
    bind("west", WEST6)
    add_by_hand()
    index = setting("fast0", "ifindex")
    if ending == "killed":
        kill(west)
    else:
        assert west.stop() == 0
    assert not has_carrier("west")
    check_by_hand()
    joined.agent("west", namespace="west")
    bind("west", WEST6)
    assert setting("fast0", "ifindex") == index
    check_by_hand()
    await_carriers()
    assert ping("west", EAST6) == 3
    assert ping("west", EAST) == 3


def test_settings_change_in_place_and_what_others_put_on_the_interface_stays(joined: Fabric) -> None:
    start(joined, taps())
    add_by_hand()
    link_id, index = joined.broker.link("wire").link_id, setting("fast0", "ifindex")
    new = ("10.9.0.5/24", f"{WEST6}/64", "fd00:9::5/64")
    changes = [
        (taps('mac = "02:00:00:00:00:05"'), "address", "02:00:00:00:00:05"),
        (taps("mtu = 1400"), "mtu", 1400),
        (taps("offload = false"), "gso_max_size", None),
        (taps(addresses=new), "ifindex", index),
    ]
    for text, name, value in changes:
        joined.apply(text)
        if value is not None:
            assert setting("fast0", name) == value
        assert (joined.broker.link("wire").link_id, setting("fast0", "ifindex")) == (link_id, index)
        await_carriers()
        assert ping("west", EAST6) == 3
    check_by_hand()
    assert addresses_of("west") == {*new, "10.9.0.77/24", "192.168.7.7/24", "fd00:9::77/64"}
    joined.apply(taps('interface = "fast1"', addresses=new))
    assert not has_interface("west")
    assert addresses_of("west", "fast1") == set(new)
    assert joined.broker.link("wire").link_id == link_id
    await_carriers("west", interface="fast1")
    assert ping("west", EAST) == 3
    joined.quiet("wire")


def test_what_changed_while_an_agent_was_dead_is_done_by_the_next_one(joined: Fabric) -> None:
    west, _ = start(joined, taps())
    add_by_hand()
    kill(west)
    joined.broker.apply(taps("mtu = 1400", addresses=("10.9.0.5/24",)))
    joined.agent("west", namespace="west")
    check_by_hand()
    assert addresses_of("west") == {"10.9.0.5/24", "10.9.0.77/24", "192.168.7.7/24", "fd00:9::77/64"}
    assert setting("fast0", "mtu") == 1400
    await_carriers()
    assert ping("west", EAST) == 3


def test_an_interface_stays_when_its_link_is_replaced_and_goes_with_its_link(joined: Fabric) -> None:
    west, _ = start(joined, taps())
    add_by_hand()
    index = setting("fast0", "ifindex")
    for number, link in enumerate(("slots = 512", "slots = 256")):
        joined.apply(taps(link=link))
        await_carriers()
        assert setting("fast0", "ifindex") == index
        assert str(joined.broker.link("wire").link_id) in setting("fast0", "ifalias")
        if number == 0:  # the next is replaced while there is no agent
            kill(west)
            west = joined.agent("west", namespace="west")
    check_by_hand()
    joined.apply(taps(link="queues = 2"))  # an interface has one queue or several for good
    await_carriers()
    assert ping("west", EAST) == 3
    kill(west)
    joined.apply(taps().partition("[link")[0])
    until(lambda: not has_interface("east"), "the agent that hears of it removes the interface")
    assert has_interface("west")
    joined.agent("west", namespace="west")
    assert not has_interface("west"), "the next agent does it otherwise"


def test_an_interface_that_was_made_beforehand_is_used_and_not_marked_and_never_deleted(joined: Fabric) -> None:
    run("ip", "tuntap", "add", "fast0", "mode", "tap", namespace="west")
    run("ip", "link", "set", "fast0", "alias", "my own", namespace="west")
    run("ip", "tuntap", "add", "other0", "mode", "tap", namespace="west")
    west, _ = start(joined, taps())
    assert ping("west", EAST) == 3
    assert setting("fast0", "ifalias") == "my own"
    kill(west)
    west = joined.agent("west", namespace="west")
    joined.apply(taps().partition("[link")[0])
    west.await_line("detached port p")
    assert west.stop() == 0
    joined.agent("west", namespace="west")
    assert has_interface("west")
    assert has_interface("west", "other0")


def test_the_carrier_follows_the_peer_and_a_delay_bridges_its_absence(joined: Fabric) -> None:
    joined.apply(taps("carrier_delay = 0.2"))
    joined.agent("west", namespace="west")
    assert not has_carrier("west"), "there is no peer yet"
    assert joined.broker.vm("west").ports[0].cause == "no carrier: the other end is away"
    east = joined.agent("east", namespace="east")
    await_carriers()
    assert joined.broker.vm("west").ports[0].cause == ""
    kill(east)
    until(lambda: not has_carrier("west"), "the carrier goes off with the peer")
    east = joined.agent("east", namespace="east")
    await_carriers()
    joined.apply(taps("carrier_delay = 600"))
    before = setting("fast0", "carrier_changes") if "carrier_changes" in link_counters("west", "fast0") else None
    kill(east)
    joined.agent("east", namespace="east")
    await_carriers()
    assert ping("west", EAST) == 3
    if before is not None:
        assert setting("fast0", "carrier_changes") == before


def test_where_ipv6_is_switched_off_ipv4_works_and_the_port_says_what_does_not(joined: Fabric) -> None:
    for name in ("all", "default"):
        run("sh", "-c", f"echo 1 > /proc/sys/net/ipv6/conf/{name}/disable_ipv6", namespace="west")
    start(joined, taps())
    assert ping("west", EAST) == 3
    until(lambda: "no IPv6 here for" in joined.broker.vm("west").ports[0].cause, "the port says so")
    assert joined.broker.vm("west").ports[0].state == "attached"
    index = setting("fast0", "ifindex")
    run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/fast0/disable_ipv6", namespace="west")
    until(lambda: ping("west", EAST6, count=1) == 1, "what the kernel takes by now is put there")
    until(lambda: joined.broker.vm("west").ports[0].cause == "", "and nothing is missing any more")
    assert setting("fast0", "ifindex") == index


def test_flows_that_go_on_while_the_next_agent_opens_the_queues_stay_in_order(
    joined: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel spreads flows over the queues that are open: with each that an agent opens, flows move to it."""
    queues, flows = 4, 32
    run("ip", "tuntap", "add", "fast0", "mode", "tap", "multi_queue", namespace="west")
    for words in ("address 02:00:00:00:00:01 txqueuelen 2000", "up"):
        run("ip", "link", "set", "dev", "fast0", *words.split(), namespace="west")
    out = socket_in("west", socket.SOCK_RAW, socket.AF_PACKET)
    out.bind(("fast0", 0))
    numbers = itertools.count()
    open_queue = tap._open_queue

    def open_and_send(name: str, flags: int) -> int:
        """A queue more, and meanwhile each flow sends another frame."""
        fd = open_queue(name, flags)
        send_flows()
        return fd

    def send_flows() -> None:
        number = next(numbers)
        for flow in range(flows):
            out.send(udp_frame(flow, number))

    monkeypatch.setattr(tap, "_open_queue", open_and_send)
    settings, owner = Tap(interface="fast0", offload=False), Owner("f", "west")
    opened = in_namespace("west", lambda: tap.TapInterface(settings, owner, 1, queues, 2000, carrier=True))
    try:
        assert sum(opened.missed) > 0, "what the first queues held is gone, and counted"
        send_flows()
        seen: dict[int, list[int]] = {}
        for fd in reversed(opened.fds):  # the worst order an agent can read them in
            for flow, number in frames_in(fd):
                seen.setdefault(flow, []).append(number)
    finally:
        opened.close()
        out.close()
    assert len(seen) == flows
    assert all(numbers == sorted(numbers) for numbers in seen.values()), seen


def udp_frame(flow: int, number: int) -> bytes:
    ethernet = bytes.fromhex("02000000000102000000000208004500002000000000401100000a0900020a090001")
    return ethernet + struct.pack("!HHHHI", 1000 + flow, 80, 12, 0, number)


def frames_in(fd: int) -> Iterator[tuple[int, int]]:
    """(flow, number) of the frames of ours that a queue holds."""
    with contextlib.suppress(BlockingIOError):
        while True:
            frame = os.read(fd, 2048)[10:]  # behind struct virtio_net_hdr
            if len(frame) == 46 and frame[:6] == bytes.fromhex("020000000001"):
                port, _, _, _, number = struct.unpack_from("!HHHHI", frame, 34)
                yield port - 1000, number
