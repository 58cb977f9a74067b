"""Steps of the demo that carry traffic. A step yields lines to print, and raises StepError when it is not so."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator

from chain import RUNTIME, Chain, ping
from namespaces import run, start

SERVER, SERVER_MANAGEMENT = "10.77.0.2", "192.0.2.3"
_CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2).close()"
_GET = "import sys, urllib.request as u; open(sys.argv[2], 'wb').write(u.urlopen(sys.argv[1], timeout=30).read())"


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
    run(sys.executable, "-c", _GET, f"http://{SERVER}:8000/file", str(got), namespace="client")
    expect(got.read_bytes() == content, f"{got.stat().st_size} bytes came, and not the {len(content)} that were sent")
    yield f"{len(content)} bytes, all alike; sha256 {hashlib.sha256(content).hexdigest()[:16]}…"


def throughput(chain: Chain) -> Iterator[str]:
    """iperf3: TCP in large segments, each one frame over many slots"""
    server = start("iperf3", "-s", "-B", SERVER, namespace="server")
    while not can_connect(SERVER, 5201):
        expect(server.poll() is None, "the iperf3 server ended")
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
