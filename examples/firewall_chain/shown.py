"""What the demo shows, step by step; each step yields lines to print and raises StepError when it is not so."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator

from chain import HERE, RUNTIME, Chain, ping
from namespaces import run, start

CLIENT, SERVER, SERVER_MANAGEMENT = "10.77.0.1", "10.77.0.2", "192.0.2.3"
_CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2).close()"
_GET = "import sys, urllib.request as u; sys.stdout.buffer.write(u.urlopen(sys.argv[1], timeout=30).read())"
_LISTEN = (
    "import socket, sys; s = socket.create_server(('', int(sys.argv[1]))); print('up', flush=True)\n"
    "while True: s.accept()[0].close()"
)


class StepError(Exception):
    pass


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise StepError(what)


def can_connect(address: str, port: int) -> bool:
    return run(sys.executable, "-c", _CONNECT, address, str(port), namespace="client", check=False).returncode == 0


def pings(chain: Chain) -> Iterator[str]:
    """ping from client to server, through the firewall's two links"""
    received, summary = ping(SERVER)
    expect(received == 5, summary)
    yield summary


def management(chain: Chain) -> Iterator[str]:
    """ping over the management network, the ordinary bridge beside it"""
    received, summary = ping(SERVER_MANAGEMENT)
    expect(received == 5, summary)
    yield summary


def download(chain: Chain) -> Iterator[str]:
    """an HTTP download, compared byte for byte"""
    folder = RUNTIME / "www"
    folder.mkdir()
    content = os.urandom(32 << 20)
    (folder / "file").write_bytes(content)
    server = start(sys.executable, "-u", "-m", "http.server", "8000", "--directory", str(folder), namespace="server")
    while not can_connect(SERVER, 8000):
        expect(server.poll() is None, "the HTTP server ended")
    got = RUNTIME / "got"
    fetch = f"{sys.executable} -c '{_GET}' http://{SERVER}:8000/file > {got}"
    run("sh", "-c", fetch, namespace="client")
    expect(got.read_bytes() == content, f"{got.stat().st_size} bytes came, and not the {len(content)} that were sent")
    yield f"{len(content)} bytes, all alike; sha256 {hashlib.sha256(content).hexdigest()[:16]}…"


def throughput(chain: Chain) -> Iterator[str]:
    """iperf3: TCP in large segments, each one frame over many slots"""
    start("iperf3", "-s", "-B", SERVER, namespace="server")
    while not can_connect(SERVER, 5201):
        pass
    before = chain.show()["links"]
    report = json.loads(run("iperf3", "-c", SERVER, "-t", "3", "--json", namespace="client").stdout)
    rate = report["end"]["sum_received"]["bits_per_second"] / 1e9
    for old, new in zip(before, chain.show()["links"], strict=True):
        ring, ring_before = new["rings"][0], old["rings"][0]
        frames = ring["published"] - ring_before["published"]
        size = (ring["produced"]["bytes"] - ring_before["produced"]["bytes"]) / max(frames, 1)
        expect(size > 10000, f"frames of {size:.0f} bytes on {new['name']}: segments were cut")
        yield f"{new['name']}: {frames} frames of {size / 1024:.1f} KiB on average"
    yield f"{rate:.2f} Gbit/s through both links and the firewall"


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


STEPS = (pings, management, download, throughput, blocked, changed, without_bridge, without_firewall, books)
