"""Steps of the demo that change something while traffic flows, take something away, and read the books."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from chain import HERE, Chain, ping
from namespaces import run, start
from traffic import SERVER, SERVER_MANAGEMENT, can_connect, expect

_LISTEN = (
    "import socket, sys; s = socket.create_server(('', int(sys.argv[1]))); print('up', flush=True)\n"
    "while True: s.accept()[0].close()"
)


def blocked(chain: Chain) -> Iterator[str]:
    """port 23, which the firewall blocks and counts under its rule"""
    listener = start(sys.executable, "-c", _LISTEN, "23", namespace="server")
    assert listener.stdout is not None
    listener.stdout.readline()
    expect(can_connect(SERVER_MANAGEMENT, 23), "the server does not listen")
    before = chain.rule_frames("no-telnet")
    expect(not can_connect(SERVER, 23), "the connection was not blocked")
    counted = chain.rule_frames("no-telnet") - before
    expect(counted > 0, "nothing was counted")
    yield f"over management it connects; over the links it does not: rule no-telnet counted {counted} frames"


def changed(chain: Chain) -> Iterator[str]:
    """the rule changed while traffic flows"""
    text = (HERE / "fabric.toml").read_text()
    load = start("iperf3", "-c", SERVER, "-t", "2", namespace="client")
    chain.apply_text(text.replace('action = "deny"', 'action = "allow"'))
    expect(can_connect(SERVER, 23), "still blocked")
    chain.apply_text(text)
    expect(not can_connect(SERVER, 23), "not blocked again")
    expect(load.wait(30) == 0, "the traffic was disturbed")
    yield "allowed, connected, denied again; iperf3 beside it was not disturbed"


def without_bridge(chain: Chain) -> Iterator[str]:
    """the bridge down: management stops, the links go on"""
    run("ip", "link", "set", "br0", "down", namespace="switch")
    over_management, over_links = ping(SERVER_MANAGEMENT, 2)[0], ping(SERVER)[0]
    run("ip", "link", "set", "br0", "up", namespace="switch")
    expect(over_management == 0 and over_links == 5, f"management {over_management} of 2, links {over_links} of 5")
    yield "management: 0 of 2 answers; links: 5 of 5"


def without_firewall(chain: Chain) -> Iterator[str]:
    """the firewall's agent down: nothing passes; up again: it does"""
    chain.stop_agent("firewall")
    down = ping(SERVER, 2)[0]
    chain.start_agent("firewall")
    up = ping(SERVER)[0]
    expect(down == 0 and up == 5, f"down: {down} of 2, up: {up} of 5")
    yield "down: 0 of 2 answers; up again: 5 of 5"


def books(chain: Chain) -> Iterator[str]:
    """the books of all rings, now that they are quiet"""
    for ring in chain.quiet_books():
        dropped = sum(ring["drops_produced"].values()) + sum(ring["drops_consumed"].values())
        total = ring["delivered"] + ring["in_flight"] + dropped
        expect(ring["balanced"] and ring["offered"] == total, f"{ring['link']}: {ring}")
        direction = "→" if ring["producing_side"] == 0 else "←"
        yield (
            f"{ring['link']} {direction} offered {ring['offered']} = delivered {ring['delivered']}"
            f" + in flight {ring['in_flight']} + dropped {dropped}"
        )
