"""Client, firewall, server: whole segments cross both links, and no frame of theirs crosses the switch beside them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conftest import require
from tests.support.fabric import AgentProcess, Fabric
from tests.support.fabrics import CLIENT, SERVER, kernels_and_firewall
from tests.support.network import await_carriers, link_counters, namespaces, ping, run, socket_in, transfer

pytestmark = pytest.mark.needs_root
SERVER_MANAGEMENT = "192.0.2.3"
LINKS = ("one", "two")
VMS = ("client", "firewall", "server")
CHAIN = kernels_and_firewall()
FOUR_QUEUES = kernels_and_firewall(one="queues = 4\n", two="queues = 4\n")


@dataclass
class Chain:
    fabric: Fabric
    agents: dict[str, AgentProcess]

    def switch_counters(self) -> dict[str, tuple[int, int]]:
        """Packets of the bridge and all its ports, in and out."""
        counters = {name: link_counters("switch", name)["stats64"] for name in ("br0", *VMS)}
        return {name: (stats["rx"]["packets"], stats["tx"]["packets"]) for name, stats in counters.items()}


@pytest.fixture
def chain(fabric: Fabric) -> Iterator[Chain]:
    with namespaces("switch", *VMS):
        run("ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0", namespace="switch")
        run("ip", "link", "set", "br0", "up", namespace="switch")
        for number, vm in enumerate(VMS, start=1):
            run("ip", "link", "add", "mgmt0", "netns", vm, "type", "veth", "peer", "name", vm, "netns", "switch")
            run("ip", "link", "set", vm, "master", "br0", "up", namespace="switch")
            run("ip", "addr", "add", f"192.0.2.{number}/24", "dev", "mgmt0", namespace=vm)
            run("ip", "link", "set", "mgmt0", "up", namespace=vm)
        fabric.apply(CHAIN)
        agents = {vm: fabric.agent(vm, namespace=vm) for vm in VMS}
        await_carriers("client", "server")
        yield Chain(fabric, agents)


def test_a_64_kib_segment_crosses_the_chain_as_one_frame(chain: Chain) -> None:
    transfer("client", "server", SERVER, 64 << 20)
    for link in LINKS:
        ring = chain.fabric.quiet(link).rings[0]
        assert ring.produced["bytes"] > 64 << 20
        assert ring.produced["bytes"] / ring.published > 30 * 1024


def test_a_tunnel_through_the_chain_carries_tcp(chain: Chain) -> None:
    """Newer kernels leave the inner checksum to a tap: it lies behind the headers that the firewall judges."""
    for vm, near, far in (("client", CLIENT, SERVER), ("server", SERVER, CLIENT)):
        tunnel = ("type", "vxlan", "id", "7", "local", near, "remote", far, "dstport", "4789")
        made = run("ip", "link", "add", "tunnel0", *tunnel, namespace=vm, check=False)
        require(made.returncode == 0, f"this kernel makes no VXLAN interfaces: {made.stderr.strip()}")
        run("ip", "addr", "add", f"10.99.0.{near[-1]}/24", "dev", "tunnel0", namespace=vm)
        run("ip", "link", "set", "tunnel0", "up", namespace=vm)
    transfer("client", "server", "10.99.0.2", 8 << 20)
    for link in LINKS:
        chain.fabric.quiet(link)


def test_the_switch_sees_nothing_of_what_the_links_carry(chain: Chain) -> None:
    before = chain.switch_counters()
    transfer("client", "server", SERVER, 16 << 20)
    transfer("server", "client", CLIENT, 16 << 20)
    assert ping("client", SERVER) == 3
    assert chain.switch_counters() == before
    assert ping("client", SERVER_MANAGEMENT) == 3
    assert chain.switch_counters()["client"] > before["client"], "the counters count"
    for link in LINKS:
        assert all(ring.produced["bytes"] > 16 << 20 for ring in chain.fabric.quiet(link).rings)


def test_the_links_go_on_with_the_switch_down(chain: Chain) -> None:
    assert ping("client", SERVER_MANAGEMENT) == 3
    run("ip", "link", "set", "br0", "down", namespace="switch")
    assert ping("client", SERVER_MANAGEMENT) == 0
    assert ping("client", SERVER) == 3
    transfer("client", "server", SERVER, 8 << 20)


def test_the_links_go_on_with_the_broker_killed(chain: Chain) -> None:
    chain.fabric.broker.process.kill()
    chain.fabric.broker.process.wait(10)
    assert ping("client", SERVER) == 3
    transfer("client", "server", SERVER, 8 << 20)


@pytest.mark.parametrize("vm", VMS)
def test_nothing_passes_while_an_agent_is_down(chain: Chain, vm: str) -> None:
    assert ping("client", SERVER) == 3
    assert chain.agents[vm].stop() == 0
    assert ping("client", SERVER) == 0
    assert ping("client", SERVER_MANAGEMENT) == 3, "the switch is another way"
    chain.fabric.agent(vm, namespace=vm)
    await_carriers("client", "server")
    assert ping("client", SERVER) == 3
    for link in LINKS:
        chain.fabric.quiet(link)


def test_a_killed_firewall_carries_on_when_started_again(chain: Chain) -> None:
    chain.agents["firewall"].process.kill()
    chain.agents["firewall"].process.wait(10)
    assert ping("client", SERVER) == 0
    chain.fabric.agent("firewall", namespace="firewall")
    await_carriers("client", "server")
    assert ping("client", SERVER) == 3
    transfer("client", "server", SERVER, 8 << 20)
    for link in LINKS:
        chain.fabric.quiet(link)


def test_each_flow_stays_in_order_through_a_chain_of_four_queues(fabric: Fabric) -> None:
    """Its agents run fewer loops than there are queues: every descriptor of a tap is served all the same."""
    flows, bursts, burst = 16, 30, 16
    with namespaces(*VMS):
        fabric.apply(FOUR_QUEUES)
        for vm, loops in (("client", 2), ("firewall", 3), ("server", 1)):
            fabric.agent(vm, vm, "--loops", str(loops))
        await_carriers("client", "server")
        assert ping("client", SERVER) == 3
        with socket_in("server", socket.SOCK_DGRAM) as server:
            server.bind((SERVER, 0))
            clients = [socket_in("client", socket.SOCK_DGRAM) for _ in range(flows)]
            for client in clients:
                client.connect(server.getsockname())
            for first in range(0, bursts * burst, burst):
                numbers = range(first, first + burst)
                for number in numbers:
                    for client in clients:
                        client.send(number.to_bytes(4, "big"))
                for _ in range(flows * burst):
                    server.sendto(*server.recvfrom(64))
                for client in clients:
                    assert [int.from_bytes(client.recv(64), "big") for _ in numbers] == list(numbers)
            for client in clients:
                client.close()
        transfer("client", "server", SERVER, 8 << 20)
        transfer("server", "client", CLIENT, 8 << 20)
        used = [ring.queue for ring in fabric.quiet("one").rings if ring.producing_side == 0 and ring.published > 100]
        assert len(used) > 1, "the kernel has put all into one queue"
        fabric.quiet("two")


def test_an_idle_chain_uses_less_than_a_hundredth_of_a_core_per_agent(chain: Chain) -> None:
    assert ping("client", SERVER) == 3
    before = [agent.cpu_ticks() for agent in chain.agents.values()]
    started = time.monotonic()
    time.sleep(3)  # being idle is what is measured
    allowed = (time.monotonic() - started) * os.sysconf("SC_CLK_TCK") / 100
    used = [agent.cpu_ticks() - ticks for agent, ticks in zip(chain.agents.values(), before, strict=True)]
    assert all(ticks <= allowed for ticks in used), used
