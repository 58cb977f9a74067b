"""The two chains between the same two namespaces, client and server. They end with the bench's namespaces."""

from __future__ import annotations

from pathlib import Path

from chain import Chain, ping
from namespaces import run

from bench.race.fabric import FAST, fabric_text, nft_text

OUR_SERVER = "10.77.0.2"
KERNEL_SERVER = "10.78.2.2"
SPIN_US = 50  # for the firewall between fast ends, which has a core to itself


def make_ours() -> Chain:
    """The demo's chain; its fabric has room for another with fast ends."""
    fabric = Path("/run/race.toml")
    fabric.write_text(fabric_text(), encoding="utf-8")
    chain = Chain(fabric)
    for vm in ("client", "server"):
        # Else each window would begin with a slow start, on either chain.
        run("sh", "-c", "echo 0 > /proc/sys/net/ipv4/tcp_slow_start_after_idle", namespace=vm)
    _check_way(OUR_SERVER)
    return chain


def add_fast_firewall(chain: Chain) -> None:
    """The firewall between fast ends, which attach when they are started."""
    chain.start_agent(FAST["firewall"], "--spin-us", str(SPIN_US), namespace="firewall")


def make_kernels() -> None:
    """Router and bridges, with veth between all of them. RuntimeError when the kernel does not let us."""
    run("ip", "netns", "add", "router")
    for side, vm in enumerate(("client", "server"), start=1):
        bridge = f"br-{vm}"
        run("ip", "link", "add", bridge, "type", "bridge", namespace="switch")
        run("ip", "link", "set", bridge, "up", namespace="switch")
        _plug(vm, "slow0", bridge, f"10.78.{side}.2/24")
        _plug("router", vm, bridge, f"10.78.{side}.1/24")
        run("ip", "route", "add", "10.78.0.0/16", "via", f"10.78.{side}.1", namespace=vm)
    run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward", namespace="router")
    rules = Path("/run/race.nft")
    rules.write_text(nft_text(), encoding="utf-8")
    run("nft", "-f", str(rules), namespace="router")
    _check_way(KERNEL_SERVER)


def _plug(vm: str, interface: str, bridge: str, address: str) -> None:
    port = f"{bridge[3:]}-{vm}"
    run("ip", "link", "add", interface, "netns", vm, "type", "veth", "peer", "name", port, "netns", "switch")
    run("ip", "link", "set", port, "master", bridge, "up", namespace="switch")
    run("ip", "addr", "add", address, "dev", interface, namespace=vm)
    run("ip", "link", "set", interface, "up", namespace=vm)


def _check_way(address: str) -> None:
    """Also resolves addresses, so that no first datagram waits for it."""
    received, summary = ping(address, 2)
    if received == 0:
        raise RuntimeError(f"nothing passes from client to {address}: {summary}")


def steer(spread: bool) -> bool:
    """Let the router's packets be taken up by another core than the sender's (RPS), or not. False: not allowed."""
    script = f"for q in /sys/class/net/*/queues/rx-*/rps_cpus; do echo {2 if spread else 0} > $q || exit 1; done"
    return run("ip", "netns", "exec", "router", "sh", "-c", script, check=False).returncode == 0
