"""A firewall that denies by default and remembers connections: answers pass, strangers do not."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.support.fabric import AgentProcess, Fabric
from tests.support.fabrics import CLIENT, SERVER, kernels_and_firewall
from tests.support.network import await_carriers, namespaces, ping, socket_in
from tests.support.waiting import until

pytestmark = pytest.mark.needs_root
VMS = ("client", "firewall", "server")


def allow(name: str, says: str) -> str:
    return f'[[vm.firewall.stack.rule]]\nname = "{name}"\naction = "allow"\n{says}\n'


ARP = allow("arp", 'ether = "arp"')
WEB = allow("web", 'from = "inside"\nprotocol = "tcp"\ndestination_port = 80')
PING = allow("ping", 'from = "inside"\nprotocol = "icmp"')
NAMES = allow("names", 'from = "inside"\nprotocol = "udp"\ndestination_port = 53')


FROM_INSIDE = allow("out", 'from = "inside"')
REST = '[[vm.firewall.stack.rule]]\nname = "rest"\naction = "deny"\n'


def fabric_text(*rules: str, connections: int = 4096) -> str:
    return kernels_and_firewall(f'default = "deny"\nconnections = {connections}\n{"".join(rules)}')


@pytest.fixture
def firewall(fabric: Fabric) -> Iterator[AgentProcess]:
    with namespaces("client", "server"):
        fabric.apply(fabric_text(ARP, WEB, PING, NAMES))
        agents = [fabric.agent(vm, namespace=None if vm == "firewall" else vm) for vm in VMS]
        await_carriers("client", "server")
        yield agents[VMS.index("firewall")]


@pytest.fixture
def chain(fabric: Fabric, firewall: AgentProcess) -> Fabric:
    return fabric


def listening(namespace: str, address: str, port: int) -> socket.socket:
    listener = socket_in(namespace)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen()
    return listener


def can_connect(namespace: str, address: str, port: int) -> bool:
    with socket_in(namespace) as client:
        client.settimeout(1.5)
        try:
            client.connect((address, port))
        except TimeoutError:
            return False
        return True


def test_a_web_server_is_reached_and_reaches_nobody(chain: Fabric) -> None:
    with listening("server", SERVER, 80), listening("server", SERVER, 81), listening("client", CLIENT, 80):
        assert can_connect("client", SERVER, 80)
        assert not can_connect("client", SERVER, 81)
        assert not can_connect("server", CLIENT, 80)
    rules = chain.rules("firewall")
    assert rules["web"] == 1, "its first frame alone asked the rules"
    assert rules["established"] > 2
    assert rules["default"] > 0
    connections = chain.broker.vm("firewall").connections
    assert connections is not None
    assert (connections.in_use, connections.made, connections.refused) == (1, 1, 0)


def test_bytes_go_both_ways_on_an_allowed_connection(chain: Fabric) -> None:
    with listening("server", SERVER, 80) as listener, socket_in("client") as client:
        client.connect((SERVER, 80))
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            client.settimeout(20)
            connection.sendall(b"x")
            assert client.recv(1) == b"x"
            client.sendall(bytes(1 << 16))
            got = 0
            while got < 1 << 16:
                got += len(connection.recv(1 << 16))
    for link in ("one", "two"):
        chain.quiet(link)


def test_pings_are_answered_one_way_only(chain: Fabric) -> None:
    assert ping("client", SERVER) == 3
    assert ping("server", CLIENT) == 0


def test_an_answer_over_udp_comes_back_and_a_question_does_not(chain: Fabric) -> None:
    with socket_in("server", socket.SOCK_DGRAM) as server, socket_in("client", socket.SOCK_DGRAM) as client:
        server.bind((SERVER, 53))
        client.bind((CLIENT, 5000))
        before = chain.rules("firewall")["default"]
        server.sendto(b"unasked", (CLIENT, 5000))
        until(lambda: chain.rules("firewall")["default"] == before + 1, "it was denied")
        client.sendto(b"question", (SERVER, 53))
        assert server.recvfrom(100) == (b"question", (CLIENT, 5000))
        server.sendto(b"answer", (CLIENT, 5000))
        assert client.recv(100) == b"answer"


def test_an_answer_in_fragments_comes_back_and_a_strange_one_does_not(chain: Fabric) -> None:
    with socket_in("server", socket.SOCK_DGRAM) as server, socket_in("client", socket.SOCK_DGRAM) as client:
        server.bind((SERVER, 53))
        client.bind((CLIENT, 5000))
        server.settimeout(20)
        client.settimeout(20)
        before = chain.rules("firewall")["default"]
        server.sendto(bytes(4000), (CLIENT, 5000))
        until(lambda: chain.rules("firewall")["default"] == before + 3, "all three were denied")
        client.sendto(b"question" * 500, (SERVER, 53))
        assert server.recv(5000) == b"question" * 500
        server.sendto(b"answer" * 500, (CLIENT, 5000))
        assert client.recv(5000) == b"answer" * 500
    assert chain.rules("firewall")["established.fragments"] == 2 + 2


def test_an_icmp_error_about_a_connection_reaches_who_opened_it(chain: Fabric) -> None:
    with socket_in("client", socket.SOCK_DGRAM) as client:
        client.connect((SERVER, 53))
        client.send(b"nobody listens")
        with pytest.raises(ConnectionRefusedError):
            client.recv(100)


def test_rules_that_deny_a_connection_end_it_and_others_go_on(chain: Fabric) -> None:
    with listening("server", SERVER, 80) as listener, socket_in("client") as client:
        client.connect((SERVER, 80))
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            client.sendall(b"before")
            assert connection.recv(100) == b"before"
            chain.apply(fabric_text(ARP, WEB, NAMES))
            client.sendall(b"kept")
            assert connection.recv(100) == b"kept"
            chain.apply(fabric_text(ARP, NAMES))
            before = chain.rules("firewall")["default"]
            client.sendall(b"after")
            until(lambda: chain.rules("firewall")["default"] > before, "it was denied")
            connection.settimeout(0.5)
            with pytest.raises(TimeoutError):
                connection.recv(100)
            chain.apply(fabric_text(ARP, WEB))
            connection.settimeout(20)
            assert connection.recv(100) == b"after", "sent again, once the rules allow it again"


def test_a_connection_goes_on_when_its_firewall_has_forgotten_it(chain: Fabric) -> None:
    with listening("server", SERVER, 80) as listener, socket_in("client") as client:
        client.connect((SERVER, 80))
        connection, _ = listener.accept()
        with connection:
            chain.apply(fabric_text(ARP, WEB, PING, NAMES, connections=8192))
            connections = chain.broker.vm("firewall").connections
            assert connections is not None
            assert (connections.in_use, connections.places) == (0, 8192 * 3 // 2)
            connection.settimeout(20)
            client.sendall(b"who opened it speaks first")
            assert connection.recv(100) == b"who opened it speaks first"
            connection.sendall(b"and is answered")
            assert client.recv(100) == b"and is answered"


def test_a_closing_rule_does_not_hold_up_a_connection_under_way(chain: Fabric, firewall: AgentProcess) -> None:
    chain.apply(fabric_text(ARP, FROM_INSIDE, REST))
    with listening("server", SERVER, 80) as listener, socket_in("client") as client:
        client.connect((SERVER, 80))
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            client.settimeout(20)
            firewall.stop()
            chain.agent("firewall")
            client.sendall(b"after a restart")
            assert connection.recv(100) == b"after a restart"
            connection.sendall(b"answered")
            assert client.recv(100) == b"answered"
            chain.apply(fabric_text(ARP, FROM_INSIDE, REST, connections=8192))
            client.sendall(b"with an empty table")
            assert connection.recv(100) == b"with an empty table"


def test_a_tunnel_that_rules_turn_round_is_opened_from_the_other_end(chain: Fabric) -> None:
    def tunnel(end: str) -> str:
        return allow("tunnel", f'from = "{end}"\nprotocol = "udp"\ndestination_port = 51820')

    chain.apply(fabric_text(ARP, tunnel("inside")))
    with socket_in("server", socket.SOCK_DGRAM) as server, socket_in("client", socket.SOCK_DGRAM) as client:
        server.bind((SERVER, 51820))
        client.bind((CLIENT, 51820))
        client.settimeout(20)
        client.sendto(b"from inside", (SERVER, 51820))
        assert server.recvfrom(100) == (b"from inside", (CLIENT, 51820))
        chain.apply(fabric_text(ARP, tunnel("outside")))
        before = chain.rules("firewall")["default"]
        client.sendto(b"denied by now", (SERVER, 51820))
        until(lambda: chain.rules("firewall")["default"] > before, "it was denied")
        server.sendto(b"from outside", (CLIENT, 51820))
        assert client.recv(100) == b"from outside"
        client.sendto(b"its answer", (SERVER, 51820))
        assert server.recv(100) == b"its answer"


def test_without_connections_answers_need_a_rule_of_their_own(chain: Fabric) -> None:
    chain.apply(fabric_text(ARP, PING, connections=0))
    assert ping("client", SERVER) == 0
    assert "established" not in chain.rules("firewall")
    chain.apply(fabric_text(ARP, PING))
    assert ping("client", SERVER) == 3
