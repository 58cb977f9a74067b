"""A broker makes links between agents of its own release and of the other one; each may be exchanged under way."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.system.broker_process import short_directory
from tests.system.fabric_fixtures import await_carriers, namespaces, ping, socket_in, transfer, until
from tests.upgrade.application import FRAMES
from tests.upgrade.conftest import Releases
from tests.upgrade.fabric import PAIR, MixedFabric, rings_of

pytestmark = pytest.mark.timeout(300)  # the first test may have to build the release before

CLIENT, SERVER = "10.78.0.1", "10.78.0.2"
VMS = ("client", "firewall", "server")
WIRE = f"""
[vm.client.port.net]
kind = "tap"
interface = "fast0"
address = ["{CLIENT}/24"]
[vm.server.port.net]
kind = "tap"
interface = "fast0"
address = ["{SERVER}/24"]
[link.wire]
ends = ["client.net", "server.net"]
queues = 2
"""
CHAIN = (
    WIRE.partition("[link.wire]")[0]
    + """
[vm.firewall.port.inside]
kind = "local"
[vm.firewall.port.outside]
kind = "local"
[vm.firewall.stack]
forward = [["inside", "outside"]]
default = "deny"
connections = 1024
[[vm.firewall.stack.rule]]
name = "arp"
action = "allow"
ether = "arp"
[[vm.firewall.stack.rule]]
name = "from-inside"
action = "allow"
from = "inside"
[link.one]
ends = ["client.net", "firewall.inside"]
queues = 2
[link.two]
ends = ["firewall.outside", "server.net"]
queues = 2
"""
)


@pytest.fixture
def path() -> Iterator[Path]:
    with short_directory() as made:
        yield made


@pytest.mark.parametrize(
    ("broker", "left", "right"),
    [
        ("tree", "before", "tree"),
        ("before", "tree", "before"),
        pytest.param("tree", "tree", "before", marks=pytest.mark.full),
        pytest.param("tree", "before", "before", marks=pytest.mark.full),
        pytest.param("before", "before", "tree", marks=pytest.mark.full),
        pytest.param("before", "tree", "tree", marks=pytest.mark.full),
    ],
)
def test_applications_of_two_releases_exchange_frames(
    releases: Releases, path: Path, broker: str, left: str, right: str
) -> None:
    with MixedFabric(releases[broker], path) as fabric:
        fabric.apply(PAIR)
        fabric.application(releases[right], "echo", "right")
        asking = fabric.application(releases[left], "ask", "left")
        asking.a_round()
        shown = fabric.shown_quiet()
        assert [link["state"] for link in shown["links"]] == ["up"]
        assert all(ring["delivered"] == len(FRAMES) for ring in rings_of(shown))
        assert [vm["name"] for vm in shown["vms"]] == ["left", "right"]
        for vm in shown["vms"]:
            assert (vm["state"], vm["problem"]) == ("present", "")
            assert [port["state"] for port in vm["ports"]] == ["attached"]


@pytest.mark.parametrize(
    ("broker", "first", "second"),
    [
        ("tree", "before", "tree"),
        pytest.param("tree", "tree", "before", marks=pytest.mark.full),
        pytest.param("before", "before", "tree", marks=pytest.mark.full),
        pytest.param("before", "tree", "before", marks=pytest.mark.full),
    ],
)
def test_a_killed_application_is_continued_by_the_other_release(
    releases: Releases, path: Path, broker: str, first: str, second: str
) -> None:
    with MixedFabric(releases[broker], path) as fabric:
        fabric.apply(PAIR)
        echo = fabric.application(releases[first], "echo", "right")
        asking = fabric.application(releases[first], "ask", "left")
        asking.a_round()
        (link,) = fabric.show()["links"]
        echo.kill()
        fabric.application(releases[second], "echo", "right")
        asking.a_round()
        (continued,) = fabric.shown_quiet()["links"]
        assert continued["link_id"] == link["link_id"]
        assert [end["incarnation"] for end in continued["ends"]] == [1, 2]
        assert all(ring["delivered"] == 2 * len(FRAMES) for ring in continued["rings"])


def test_agents_of_both_releases_go_over_from_the_broker_before_to_the_new_one(releases: Releases, path: Path) -> None:
    with MixedFabric(releases["before"], path) as fabric:
        fabric.apply(PAIR)
        fabric.application(releases["before"], "echo", "right")
        asking = fabric.application(releases["tree"], "ask", "left")
        asking.a_round()
        fabric.replace_broker(releases["tree"])
        asking.a_round()  # the link is there without a broker
        fabric.apply(PAIR)
        until(lambda: fabric.show()["links"][0]["state"] == "up", "both agents have come back", seconds=30)
        asking.a_round()
        assert all(ring["delivered"] == len(FRAMES) for ring in rings_of(fabric.shown_quiet()))


@pytest.mark.full  # the chain below has such links too, with a firewall on the way
@pytest.mark.needs_root
@pytest.mark.parametrize(("client", "server"), [("before", "tree"), ("tree", "before")])
def test_kernels_behind_taps_of_two_releases_exchange_segments(
    releases: Releases, path: Path, client: str, server: str
) -> None:
    with namespaces("client", "server"), MixedFabric(releases["tree"], path) as fabric:
        fabric.apply(WIRE)
        fabric.agent(releases[client], "client", "client")
        fabric.agent(releases[server], "server", "server")
        await_carriers("client", "server")
        assert ping("client", SERVER) == 3
        transfer("client", "server", SERVER, 8 << 20)
        transfer("server", "client", CLIENT, 8 << 20)
        rings = rings_of(fabric.shown_quiet())
        for side in (0, 1):  # whole segments: checksum and segmentation data is read as it was written
            own = [ring for ring in rings if ring["producing_side"] == side]
            carried = sum(ring["produced"]["bytes"] for ring in own)
            assert carried > 8 << 20
            assert carried / sum(ring["published"] for ring in own) > 4096


class Datagrams:
    """Numbered ones of one flow from client to server, sent on and on by a thread; at most once and in order."""

    def __init__(self) -> None:
        self._target = socket_in("server", socket.SOCK_DGRAM)
        self._source = socket_in("client", socket.SOCK_DGRAM)
        self._target.bind((SERVER, 0))
        self._source.connect(self._target.getsockname())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._sent = 0
        self._last = -1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._source.close()
        self._target.close()

    def _send(self) -> None:
        while not self._ended.wait(0.001):
            self._source.send(self._sent.to_bytes(4, "big"))
            self._sent += 1

    def arrive(self) -> None:
        """Take in what comes until a hundred have come that were sent after this call."""
        enough = self._sent + 100
        while self._last < enough:
            number = int.from_bytes(self._target.recv(64), "big")
            assert number > self._last
            self._last = number


@pytest.mark.needs_root
@pytest.mark.parametrize(
    ("first", "second"), [("before", "tree"), pytest.param("tree", "before", marks=pytest.mark.full)]
)
def test_a_killed_firewall_is_continued_by_the_other_release(
    releases: Releases, path: Path, first: str, second: str
) -> None:
    """Its rules are told by a broker of the tree to both, and its neighbours are of either release."""
    with namespaces(*VMS), MixedFabric(releases["tree"], path) as fabric:
        fabric.apply(CHAIN)
        fabric.agent(releases["before"], "client", "client")
        fabric.agent(releases["tree"], "server", "server")
        firewall = fabric.agent(releases[first], "firewall", "firewall")
        await_carriers("client", "server")
        assert ping("client", SERVER) == 3
        transfer("client", "server", SERVER, 8 << 20)
        fabric.shown_quiet()
        with Datagrams() as datagrams:
            datagrams.arrive()
            firewall.process.kill()
            firewall.process.wait(10)
            fabric.agent(releases[second], "firewall", "firewall")
            datagrams.arrive()
        transfer("client", "server", SERVER, 8 << 20)
        assert ping("server", CLIENT, count=1) == 0, "nothing of the server's own passes"
        shown = fabric.show()
        (told,) = (vm for vm in shown["vms"] if vm["name"] == "firewall")
        assert {rule["name"]: rule["frames"] for rule in told["rules"]}["from-inside"] > 0
        incarnations = {end["vm"]: end["incarnation"] for link in shown["links"] for end in link["ends"]}
        assert incarnations == {"client": 1, "firewall": 2, "server": 1}
