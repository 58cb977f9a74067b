"""A broker makes links between agents of its own release and of the other one; each may be exchanged under way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.broker_process import short_directory
from tests.system.fabric_fixtures import namespaces, ping, transfer, until
from tests.upgrade.conftest import Releases
from tests.upgrade.fabric import PAIR, MixedFabric

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
        link = fabric.check_books("wire")
        assert link["state"] == "up"
        assert all(ring["delivered"] == link["rings"][0]["delivered"] > 100 for ring in link["rings"])
        for vm in ("left", "right"):
            shown = fabric.vm(vm)
            assert shown["state"] == "present"
            assert shown["problem"] == ""
            assert [port["state"] for port in shown["ports"]] == ["attached"]


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
        link_id = fabric.link("wire")["link_id"]
        echo.kill()
        fabric.application(releases[second], "echo", "right")
        asking.a_round()
        link = fabric.check_books("wire")
        assert link["link_id"] == link_id, "the link goes on"
        assert [end["incarnation"] for end in link["ends"]] == [1, 2]


def test_agents_of_both_releases_go_over_from_the_broker_before_to_the_new_one(releases: Releases, path: Path) -> None:
    with MixedFabric(releases["before"], path) as fabric:
        fabric.apply(PAIR)
        fabric.application(releases["before"], "echo", "right")
        asking = fabric.application(releases["tree"], "ask", "left")
        asking.a_round()
        fabric.replace_broker(releases["tree"])
        asking.a_round()  # the link is there without a broker
        fabric.apply(PAIR)
        until(lambda: bool(fabric.link("wire")["state"] == "up"), "both agents have come back", seconds=30)
        asking.a_round()
        link = fabric.check_books("wire")
        assert all(ring["delivered"] > 100 for ring in link["rings"])


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
        assert ping("client", SERVER) == 3
        transfer("client", "server", SERVER, 8 << 20)
        transfer("server", "client", CLIENT, 8 << 20)
        rings = fabric.check_books("wire")["rings"]
        for side in (0, 1):  # whole segments: checksum and segmentation data is read as it was written
            own = [ring for ring in rings if ring["producing_side"] == side]
            carried = sum(ring["produced"]["bytes"] for ring in own)
            assert carried > 8 << 20
            assert carried / sum(ring["published"] for ring in own) > 4096


@pytest.mark.needs_root
@pytest.mark.parametrize(
    ("first", "second"), [("before", "tree"), pytest.param("tree", "before", marks=pytest.mark.full)]
)
def test_a_firewall_is_exchanged_for_one_of_the_other_release(
    releases: Releases, path: Path, first: str, second: str
) -> None:
    """Its rules are told by a broker of the tree to both, and its neighbours are of either release."""
    with namespaces(*VMS), MixedFabric(releases["tree"], path) as fabric:
        fabric.apply(CHAIN)
        fabric.agent(releases["before"], "client", "client")
        fabric.agent(releases["tree"], "server", "server")
        for name in (first, second):
            firewall = fabric.agent(releases[name], "firewall", "firewall")
            assert ping("client", SERVER) == 3
            transfer("client", "server", SERVER, 8 << 20)
            assert {rule["name"] for rule in fabric.vm("firewall")["rules"]} >= {"arp", "from-inside"}
            if name == first:
                assert firewall.stop() == 0
        assert ping("server", CLIENT, count=1) == 0, "nothing of the server's own passes"
        for link in ("one", "two"):
            fabric.check_books(link)
