"""Random datagrams and echoes, both ways, while time passes and rules change: C and a plain model decide alike.

The model is a dictionary that is looked through whole; it knows what it asked scapy to build, and no parsed header.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from ringway.control.rules import CONNECTIONS_MAX, CONNECTIONS_MIN, Rule, Timeouts, connections_size
from ringway.shm._native import ffi, lib
from ringway.stack.filter import Filter

PORTS = ("inside", "outside")
TIMEOUTS = Timeouts(udp=20, udp_answered=50, icmp=10)
UDP_OUT = Rule(name="udp", action="allow", from_port="inside", protocol=17)
ECHO_OUT = Rule(name="echo", action="allow", from_port="inside", protocol=1, ether=0x0800)
ECHO6_OUT = Rule(name="echo6", action="allow", from_port="inside", protocol=58, ether=0x86DD)
RULES: tuple[list[Rule], ...] = ([UDP_OUT], [ECHO_OUT, ECHO6_OUT], [UDP_OUT, ECHO_OUT, ECHO6_OUT], [])


@dataclass(frozen=True)
class Sent:
    """One frame. `client` is inside and `server` outside; `number` is the client's port, or the echo's identifier."""

    version: int
    kind: str  # udp, echo
    client: int
    server: int
    number: int
    vlan: int
    by: str  # the port it comes in by
    reply: bool  # of an echo: the answer


@dataclass
class Known:
    opened_by: str
    deadline: int
    answered: bool = False
    denied: bool = False
    rules: int = 0


@dataclass
class Model:
    now: int = 0
    rules: int = 0
    known: dict[object, Known] = field(default_factory=dict)

    def allows(self, sent_kind: str, version: int, by: str) -> bool:
        wanted = {("udp", 4): UDP_OUT, ("udp", 6): UDP_OUT, ("echo", 4): ECHO_OUT, ("echo", 6): ECHO6_OUT}
        return by == "inside" and wanted[sent_kind, version] in RULES[self.rules % len(RULES)]

    def judge(self, sent: Sent) -> bool:
        answers = sent.kind == "echo" and sent.reply
        asked_by = {"inside": "outside", "outside": "inside"}[sent.by] if answers else sent.by
        whose = asked_by if sent.kind == "echo" else ""  # both ends may use an identifier
        key = (sent.version, sent.kind, sent.client, sent.server, sent.number, sent.vlan, whose)
        known = self.known.get(key)
        if known is None or known.deadline < self.now:
            if not self.allows(sent.kind, sent.version, sent.by):
                return False
            if not answers:
                self.known[key] = self._kept(sent, Known(sent.by, 0, rules=self.rules))
            return True
        if known.rules != self.rules:
            known.rules = self.rules
            known.denied = not self.allows(sent.kind, sent.version, known.opened_by)
        if not known.denied:
            known.answered |= sent.kind == "udp" and sent.by != known.opened_by
        self._kept(sent, known)
        return not known.denied

    def _kept(self, sent: Sent, known: Known) -> Known:
        udp = TIMEOUTS.udp_answered if known.answered else TIMEOUTS.udp
        known.deadline = self.now + (udp if sent.kind == "udp" else TIMEOUTS.icmp)
        return known


def build(sent: Sent) -> bytes:
    outward = sent.by == "inside"
    base = "10.0.0." if sent.version == 4 else "fd00::"
    client, server = f"{base}{sent.client}", f"{base}{sent.server}"
    source, destination = (client, server) if outward else (server, client)
    packet: Packet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    if sent.vlan:
        packet /= Dot1Q(vlan=sent.vlan)
    packet /= IP(src=source, dst=destination) if sent.version == 4 else IPv6(src=source, dst=destination)
    if sent.kind == "udp":
        ports = (sent.number, 53) if outward else (53, sent.number)
        return bytes(packet / UDP(sport=ports[0], dport=ports[1]) / Raw(b"payload"))
    if sent.version == 4:
        return bytes(packet / ICMP(type=0 if sent.reply else 8, id=sent.number))
    return bytes(packet / (ICMPv6EchoReply if sent.reply else ICMPv6EchoRequest)(id=sent.number))


@contextmanager
def reader_of(filter_: Filter) -> Iterator[int]:
    reader = lib.rway_filter_reader_add(filter_.native)
    yield reader
    lib.rway_filter_reader_remove(filter_.native, reader)


def passes(filter_: Filter, reader: int, frame: bytes, by: str, now: int) -> bool:
    """As a loop does it, one frame a turn."""
    counts = ffi.new("struct rway_rule_counts **")
    table = lib.rway_filter_enter(filter_.native, reader, counts)
    flows = lib.rway_filter_flows(filter_.native, reader)
    lib.rway_flow_turn(flows, table, counts[0], now)
    headers = ffi.new("struct rway_headers *")
    kept: Any = ffi.from_buffer(frame)
    assert lib.rway_parse(kept, len(frame), len(frame), headers) == lib.RWAY_WELL_FORMED
    judged = ffi.new("struct rway_judged *", [kept, headers, len(frame), len(frame)])
    in_port = PORTS.index(by)
    lib.rway_flow_judge(flows, in_port, 1 - in_port, judged, 1)
    lib.rway_filter_leave(filter_.native, reader)
    return bool(judged.stopped == lib.RWAY_PASSES)


frames = st.builds(
    Sent,
    version=st.sampled_from((4, 6)),
    kind=st.sampled_from(("udp", "echo")),
    client=st.integers(1, 2),
    server=st.integers(3, 4),
    number=st.integers(1, 2),
    vlan=st.sampled_from((0, 0, 5)),
    by=st.sampled_from(PORTS),
    reply=st.booleans(),
)
steps = st.one_of(frames, st.integers(0, 30), st.just("rules"))


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=60))
def test_connections_are_judged_as_the_model_judges_them(asked: list[Sent | int | str]) -> None:
    model = Model()
    with Filter(PORTS, CONNECTIONS_MIN, TIMEOUTS) as filter_:
        filter_.replace(RULES[0], "deny")
        with reader_of(filter_) as reader:
            for step in asked:
                if isinstance(step, int):
                    model.now += step
                elif isinstance(step, str):
                    model.rules += 1
                    filter_.replace(RULES[model.rules % len(RULES)], "deny")
                else:
                    expected = model.judge(step)
                    assert passes(filter_, reader, build(step), step.by, model.now) == expected, step


def test_the_memory_that_is_told_is_what_is_taken() -> None:
    for connections in (CONNECTIONS_MIN, CONNECTIONS_MIN + 1, 65536, 1_000_003, CONNECTIONS_MAX):
        assert connections_size(connections) == lib.rway_flows_size(connections)
    assert (CONNECTIONS_MIN, CONNECTIONS_MAX) == (lib.RWAY_CONNECTIONS_MIN, lib.RWAY_CONNECTIONS_MAX)
