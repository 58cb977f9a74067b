"""Random rules over random packets that scapy has built: C and a plain model of the rules must decide alike.

The model never sees a parsed header of ours: it knows what it asked scapy to build.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from ringway.shm._native import ffi, lib
from ringway.stack.filter import Filter

PORTS = ("inside", "outside", "management")
TCP_NUMBER, UDP_NUMBER, ICMP_NUMBER, ICMP6_NUMBER = 6, 17, 1, 58


@dataclass(frozen=True)
class Rule:
    name: str
    action: str
    from_port: str | None
    ether: int | None
    protocol: int | None
    source: str | None
    destination: str | None
    source_port: tuple[int, int] | None
    destination_port: tuple[int, int] | None
    tcp_mask: int
    tcp_value: int
    icmp_type: int | None
    icmp_code: int | None
    vlan: int | None


@dataclass(frozen=True)
class Sent:
    """What a frame was asked to be."""

    from_port: str
    ether: int
    vlans: tuple[int, ...] = ()  # ids, the outer one first
    source: str | None = None
    destination: str | None = None
    protocol: int | None = None
    source_port: int = 0
    destination_port: int = 0
    tcp_flags: int = 0
    icmp: tuple[int, int] | None = None  # type and code, where the frame has them
    extensions: int = 0
    fragment: str = "whole"  # whole, first, later

    @property
    def version(self) -> int:
        return {0x0800: 4, 0x86DD: 6}.get(self.ether, 0)


def within(address: str | None, prefix: str | None) -> bool:
    if prefix is None:
        return True
    return address is not None and ipaddress.ip_address(address) in ipaddress.ip_network(prefix)


def between(port: int, ports: tuple[int, int] | None) -> bool:
    return ports is None or ports[0] <= port <= ports[1]


def agrees(rule: Rule, sent: Sent) -> bool:
    if rule.from_port not in (None, sent.from_port) or rule.ether not in (None, sent.ether):
        return False
    if rule.protocol not in (None, sent.protocol):
        return False
    if rule.vlan not in (None, next((vlan for vlan in sent.vlans if vlan), 0)):
        return False
    if rule.icmp_type is not None and (sent.icmp is None or sent.icmp[0] != rule.icmp_type):
        return False
    if rule.icmp_code is not None and (sent.icmp is None or sent.icmp[1] != rule.icmp_code):
        return False
    if not within(sent.source, rule.source) or not within(sent.destination, rule.destination):
        return False
    asks_transport = rule.source_port or rule.destination_port or rule.tcp_mask
    if asks_transport and sent.fragment == "later":
        return False
    if not between(sent.source_port, rule.source_port) or not between(sent.destination_port, rule.destination_port):
        return False
    return sent.tcp_flags & rule.tcp_mask == rule.tcp_value


def decide(rules: list[Rule], default: str, sent: Sent) -> tuple[str, str]:
    """The action, and the name under which it is counted."""
    for rule in rules:
        if agrees(rule, sent):
            return rule.action, rule.name
    return default, "default"


def transport(sent: Sent) -> Packet:
    if sent.protocol == TCP_NUMBER:
        return TCP(sport=sent.source_port, dport=sent.destination_port, flags=sent.tcp_flags, options=[("MSS", 1400)])
    if sent.protocol == UDP_NUMBER:
        return UDP(sport=sent.source_port, dport=sent.destination_port)
    assert sent.icmp is not None
    return Raw(bytes((*sent.icmp, *bytes(14))))


def ip4(sent: Sent) -> Packet:
    header = IP(src=sent.source, dst=sent.destination, proto=sent.protocol)
    if sent.fragment == "later":
        header.frag = 100
        return header / Raw(b"\xa5" * 40)
    header.flags = "MF" if sent.fragment == "first" else 0
    return header / transport(sent) / Raw(b"payload")


def ip6(sent: Sent) -> Packet:
    packet: Packet = IPv6(src=sent.source, dst=sent.destination)
    if not sent.extensions and sent.fragment == "whole" and sent.icmp is not None:
        packet.nh = sent.protocol
    for number in range(sent.extensions):
        packet /= IPv6ExtHdrHopByHop() if number == 0 else IPv6ExtHdrDestOpt()
        if number == sent.extensions - 1 and sent.icmp is not None:
            packet.lastlayer().nh = sent.protocol if sent.fragment == "whole" else 44
    if sent.fragment == "later":
        return packet / IPv6ExtHdrFragment(nh=sent.protocol, offset=100) / Raw(b"\xa5" * 40)
    if sent.fragment == "first":
        packet /= IPv6ExtHdrFragment(m=1, nh=sent.protocol)
    return packet / transport(sent) / Raw(b"payload")


def build(sent: Sent) -> bytes:
    packet: Packet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    for vlan in sent.vlans:
        packet /= Dot1Q(vlan=vlan)
    if sent.version == 4:
        packet /= ip4(sent)
    elif sent.version == 6:
        packet /= ip6(sent)
    elif sent.ether == 0x0806:
        packet /= ARP()
    else:
        packet.lastlayer().type = sent.ether
        packet /= Raw(b"something else")
    return bytes(packet)


def addresses(version: int) -> st.SearchStrategy[str]:
    """Few of them and near each other, so that prefixes hit and miss."""
    base = ("10.0.0.0", "10.128.0.0", "192.0.2.0") if version == 4 else ("fd00::", "fd00:8000::", "2001:db8::")
    return st.builds(
        lambda start, more: str(ipaddress.ip_address(start) + more), st.sampled_from(base), st.integers(0, 3)
    )


@st.composite
def prefixes(draw: st.DrawFn, version: int) -> str:
    longest = 32 if version == 4 else 128
    bits = draw(st.integers(0, longest) | st.sampled_from((0, 8, 9, 31, longest)))
    return str(ipaddress.ip_network(f"{draw(addresses(version))}/{bits}", strict=False))


ports = st.integers(0, 5) | st.sampled_from((1023, 1024, 65535))
flags = st.integers(0, 255)
vlans_few = st.sampled_from((0, 1, 2, 4094))
icmp_few = st.sampled_from((0, 3, 8, 128, 255))


@st.composite
def sent_frames(draw: st.DrawFn) -> Sent:
    from_port, vlans = draw(st.sampled_from(PORTS)), tuple(draw(st.lists(vlans_few, max_size=2)))
    ether = draw(st.sampled_from((0x0800, 0x0800, 0x86DD, 0x86DD, 0x0806, 0x88CC)))
    version = {0x0800: 4, 0x86DD: 6}.get(ether, 0)
    if version == 0:
        return Sent(from_port, ether, vlans)
    protocol = draw(st.sampled_from((TCP_NUMBER, UDP_NUMBER, ICMP_NUMBER if version == 4 else ICMP6_NUMBER)))
    fragment = draw(st.sampled_from(("whole", "whole", "first", "later")))
    is_icmp = protocol in (ICMP_NUMBER, ICMP6_NUMBER)
    has_ports = fragment != "later" and not is_icmp
    return Sent(
        from_port,
        ether,
        vlans,
        source=draw(addresses(version)),
        destination=draw(addresses(version)),
        protocol=protocol,
        source_port=draw(ports) if has_ports else 0,
        destination_port=draw(ports) if has_ports else 0,
        tcp_flags=draw(flags) if has_ports and protocol == TCP_NUMBER else 0,
        icmp=draw(st.tuples(icmp_few, icmp_few)) if is_icmp and fragment != "later" else None,
        extensions=draw(st.integers(0, 3)) if version == 6 else 0,
        fragment=fragment,
    )


@st.composite
def rules(draw: st.DrawFn, number: int) -> Rule:
    version = draw(st.sampled_from((4, 6)))
    protocol = draw(st.none() | st.sampled_from((TCP_NUMBER, UDP_NUMBER, ICMP_NUMBER, ICMP6_NUMBER)))
    ranges = st.none() | st.tuples(ports, ports).map(lambda pair: (min(pair), max(pair)))
    has_ports = protocol in (TCP_NUMBER, UDP_NUMBER)
    mask = draw(st.just(0) | flags) if protocol == TCP_NUMBER else 0
    return Rule(
        name=f"rule-{number}",
        action=draw(st.sampled_from(("allow", "deny"))),
        from_port=draw(st.none() | st.sampled_from(PORTS)),
        ether=draw(st.none() | st.sampled_from((0x0800, 0x86DD, 0x0806, 0x88CC))),
        protocol=protocol,
        source=draw(st.none() | prefixes(version)),
        destination=draw(st.none() | prefixes(version)),
        source_port=draw(ranges) if has_ports else None,
        destination_port=draw(ranges) if has_ports else None,
        tcp_mask=mask,
        tcp_value=mask & draw(flags),
        icmp_type=draw(st.none() | icmp_few) if protocol in (ICMP_NUMBER, ICMP6_NUMBER) else None,
        icmp_code=draw(st.none() | icmp_few) if protocol in (ICMP_NUMBER, ICMP6_NUMBER) else None,
        vlan=draw(st.none() | vlans_few),
    )


rule_lists = st.integers(0, 6).flatmap(lambda count: st.tuples(*(rules(number) for number in range(count))).map(list))


def judge(filter_: Filter, reader: int, frame: bytes, in_port: int) -> str:
    """Parse and judge as a loop does."""
    headers = ffi.new("struct rway_headers *")
    counts = ffi.new("struct rway_rule_counts **")
    judged = frame[: lib.RWAY_HEADERS_MAX]
    cause = lib.rway_parse(judged, len(judged), len(frame), headers)
    assert cause == lib.RWAY_WELL_FORMED, f"refused as malformed ({cause}): {frame.hex()}"
    table = lib.rway_filter_enter(filter_.native, reader, counts)
    verdict = lib.rway_filter_judge(table, headers, in_port, counts[0], len(frame))
    lib.rway_filter_leave(filter_.native, reader)
    return "allow" if verdict == lib.RWAY_ALLOW else "deny"


@settings(max_examples=400, deadline=None)
@given(rule_lists, st.sampled_from(("allow", "deny")), st.lists(sent_frames(), min_size=1, max_size=12))
def test_the_filter_decides_and_counts_as_the_model_does(asked: list[Rule], default: str, frames: list[Sent]) -> None:
    expected: dict[str, list[int]] = {name: [0, 0] for name in (*(rule.name for rule in asked), "default")}
    with Filter(PORTS) as filter_:
        filter_.replace(asked, default)
        reader = lib.rway_filter_reader_add(filter_.native)
        for sent in frames:
            frame = build(sent)
            action, name = decide(asked, default, sent)
            assert judge(filter_, reader, frame, PORTS.index(sent.from_port)) == action, (sent, name)
            expected[name][0] += 1
            expected[name][1] += len(frame)
        lib.rway_filter_reader_remove(filter_.native, reader)
        assert {count.name: [count.frames, count.bytes] for count in filter_.counts()} == expected


@settings(max_examples=400, deadline=None)
@given(sent_frames())
def test_the_parser_reads_what_scapy_was_asked_to_build(sent: Sent) -> None:
    frame = build(sent)
    headers: Any = ffi.new("struct rway_headers *")
    judged = frame[: lib.RWAY_HEADERS_MAX]
    assert lib.rway_parse(judged, len(judged), len(frame), headers) == lib.RWAY_WELL_FORMED
    assert (headers.ether, headers.vlan_count, headers.ip_version) == (sent.ether, len(sent.vlans), sent.version)
    if sent.version != 0:
        size = 4 if sent.version == 4 else 16
        assert bytes(headers.source)[:size] == ipaddress.ip_address(str(sent.source)).packed
        assert bytes(headers.destination)[:size] == ipaddress.ip_address(str(sent.destination)).packed
        assert headers.protocol == sent.protocol
    assert (headers.source_port, headers.destination_port) == (sent.source_port, sent.destination_port)
    assert headers.tcp_flags == sent.tcp_flags
    assert headers.vlan == next((vlan for vlan in sent.vlans if vlan), 0)
    assert bool(headers.flags & lib.RWAY_HEADERS_ICMP) == (sent.icmp is not None)
    assert (headers.icmp_type, headers.icmp_code) == (sent.icmp or (0, 0))


@settings(max_examples=200, deadline=None)
@given(sent_frames().filter(lambda sent: sent.version != 0 and sent.fragment == "whole"))
def test_a_frame_cut_before_its_end_is_malformed_at_every_length(sent: Sent) -> None:
    frame = build(sent)
    headers = ffi.new("struct rway_headers *")
    for length in range(len(frame)):
        copied = min(length, lib.RWAY_HEADERS_MAX)
        assert lib.rway_parse(frame[:copied], copied, length, headers) != lib.RWAY_WELL_FORMED
