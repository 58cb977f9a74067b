"""Both directions of a flow hash alike, all fragments of a datagram do, and flows spread evenly over queues."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from ringway.shm._native import ffi, lib

PORTS = lib.RWAY_HEADERS_PORTS
BUCKETS = 256
Endpoint = tuple[bytes, int]


def headers(source: Endpoint, target: Endpoint, version: int, protocol: int = 6, flags: int = PORTS) -> Any:
    made = ffi.new("struct rway_headers *")
    made.ether = {4: 0x0800, 6: 0x86DD}[version]
    made.ip_version, made.protocol, made.flags = version, protocol, flags
    ffi.memmove(made.source, source[0], len(source[0]))
    ffi.memmove(made.destination, target[0], len(target[0]))
    made.source_port, made.destination_port = source[1], target[1]
    return made


def flow_hash(source: Endpoint, target: Endpoint, version: int, protocol: int = 6, flags: int = PORTS) -> int:
    return int(lib.rway_flow_hash(headers(source, target, version, protocol, flags)))


def hash_of(packet: Packet) -> int:
    data = bytes(packet)
    made = ffi.new("struct rway_headers *")
    assert lib.rway_parse(data, min(len(data), lib.RWAY_HEADERS_MAX), len(data), made) == lib.RWAY_WELL_FORMED
    return int(lib.rway_flow_hash(made))


def endpoints(version: int) -> st.SearchStrategy[Endpoint]:
    size = 4 if version == 4 else 16
    return st.tuples(st.binary(min_size=size, max_size=size), st.integers(0, 65535))


TWO_ENDS = st.sampled_from([4, 6]).flatmap(lambda v: st.tuples(endpoints(v), endpoints(v), st.just(v)))


@given(TWO_ENDS, st.integers(0, 255), st.integers(0, 7))
def test_both_directions_have_the_same_hash(ends: tuple[Endpoint, Endpoint, int], protocol: int, flags: int) -> None:
    one, other, version = ends
    assert flow_hash(one, other, version, protocol, flags) == flow_hash(other, one, version, protocol, flags)


@given(TWO_ENDS, st.tuples(st.integers(0, 65535), st.integers(0, 65535)), st.integers(0, 255))
@pytest.mark.parametrize("flag", [lib.RWAY_HEADERS_FIRST_FRAGMENT, lib.RWAY_HEADERS_LATER_FRAGMENT])
def test_a_fragments_ports_and_protocol_do_not_count(
    flag: int, ends: tuple[Endpoint, Endpoint, int], ports: tuple[int, int], protocol: int
) -> None:
    (one, _), (other, _), version = ends
    without = flow_hash((one, 0), (other, 0), version, 0, flag)
    assert flow_hash((one, ports[0]), (other, ports[1]), version, protocol, flag | PORTS) == without


def test_all_fragments_of_a_datagram_have_one_hash() -> None:
    whole = IP(src="10.0.0.1", dst="10.0.0.2", id=7) / UDP(sport=1000, dport=53) / Raw(bytes(4000))
    pieces = [Ether() / piece for piece in fragment(whole, 1400)]
    assert len({hash_of(piece) for piece in pieces}) == 1
    assert hash_of(pieces[0]) != hash_of(Ether() / whole), "a datagram in one piece goes by its ports"


def test_later_ipv6_fragments_that_hide_the_protocol_have_the_hash_of_the_first() -> None:
    ends = Ether() / IPv6(src="fd00::1", dst="fd00::2")
    first = ends / IPv6ExtHdrFragment(m=1, id=9, nh=60) / IPv6ExtHdrDestOpt(nh=17) / UDP(sport=5, dport=6, len=2008)
    later = ends / IPv6ExtHdrFragment(offset=100, id=9, nh=60) / Raw(bytes(1000))
    assert hash_of(first / Raw(bytes(784))) == hash_of(later)


def test_both_directions_of_real_packets_agree_whatever_is_around_them() -> None:
    there = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=40000, dport=80)
    back = IP(src="10.0.0.2", dst="10.0.0.1", tos=4, ttl=9) / TCP(sport=80, dport=40000, options=[("NOP", None)])
    assert hash_of(Ether() / there) == hash_of(Ether() / Dot1Q(vlan=7) / back)


def test_ports_swapped_alone_are_another_flow() -> None:
    one, other = b"\x0a\0\0\1", b"\x0a\0\0\2"
    assert flow_hash((one, 1000), (other, 80), 4) != flow_hash((one, 80), (other, 1000), 4)


def test_flows_without_ports_and_frames_that_are_not_ip_have_hashes_too() -> None:
    pings = {hash_of(Ether() / IP(src="10.0.0.1", dst=f"10.0.1.{number}") / ICMP()) for number in range(100)}
    assert len(pings) == 100
    assert hash_of(Ether() / ARP(pdst="10.0.0.1")) == hash_of(Ether() / ARP(pdst="10.0.0.9"))


def random_flows(version: int, ports: bool) -> Iterator[int]:
    chosen = random.Random(4)
    size = 4 if version == 4 else 16
    while True:
        one, other = ((chosen.randbytes(size), chosen.randrange(65536) if ports else 0) for _ in range(2))
        yield flow_hash(one, other, version, flags=PORTS if ports else 0)


def clients_of_one_server(version: int) -> Iterator[int]:
    """One network of 100 clients, each with ports one after the other: what a server sees."""
    width = 4 if version == 4 else 16
    server = (b"\x0a\0\0\1".rjust(width, b"\xfd"), 443)
    for port, client in itertools.product(range(32768, 65536), range(100)):
        yield flow_hash((bytes([10, 0, 1, client]).rjust(width, b"\xfd"), port), server, version)


def pairs_of_addresses(version: int) -> Iterator[int]:
    """Two networks talk, each host with each, without ports."""
    width = 4 if version == 4 else 16
    for one, other in itertools.product(range(250), range(250)):
        ends = [(bytes([10, 0, network, host]).rjust(width, b"\xfd"), 0) for network, host in ((1, one), (2, other))]
        yield flow_hash(ends[0], ends[1], version, flags=0)


KINDS: dict[str, Callable[[int], Iterator[int]]] = {
    "random": lambda version: random_flows(version, ports=True),
    "random-without-ports": lambda version: random_flows(version, ports=False),
    "clients-of-one-server": clients_of_one_server,
    "pairs-of-addresses": pairs_of_addresses,
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_flows_spread_evenly_over_2_to_16_queues(kind: str, version: int) -> None:
    flows = list(itertools.islice(KINDS[kind](version), 10_000))
    for queues in range(2, 17):
        found = Counter(flow % BUCKETS % queues for flow in flows)
        chi_square = 0.0
        for queue in range(queues):
            share = len(range(queue, BUCKETS, queues)) / BUCKETS  # of the buckets, which 256 / queues need not divide
            chi_square += (found[queue] - len(flows) * share) ** 2 / (len(flows) * share)
        # Wilson and Hilferty 1931: the cube root of chi square over its degrees of freedom is normal. 4.75 standard
        # deviations are passed by chance once in a million.
        free = queues - 1
        bound = free * (1 - 2 / (9 * free) + 4.75 * (2 / (9 * free)) ** 0.5) ** 3
        assert chi_square < bound, (queues, sorted(found.items()))


def test_the_hash_is_the_same_in_all_releases() -> None:
    """Both ends of a chain must agree: a change of these numbers is a change of what they agree on."""
    one, other = (b"\x0a\0\0\1", 1000), (b"\x0a\0\0\2", 80)
    six = (b"\xfd" + bytes(14) + b"\1", 1000), (b"\xfd" + bytes(14) + b"\2", 80)
    assert [flow_hash(one, other, 4), flow_hash(*six, 6)] == EXPECTED


EXPECTED = [2582860935, 2788433952]
