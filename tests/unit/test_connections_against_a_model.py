"""Random datagrams, echoes and TCP under way while time passes and rules change: C and a plain model decide alike.

The model is a dictionary that is looked through whole; it knows what it asked scapy to build, and no parsed header.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from ringway.broker.limits import CONNECTIONS_MIN
from ringway.control.rules import Rule, Timeouts
from ringway.shm._native import ffi, lib
from ringway.stack.filter import Filter

PORTS = ("inside", "outside")
OPPOSITE = {"inside": "outside", "outside": "inside"}
TIMEOUTS = Timeouts(tcp_opening=15, tcp_established=60, tcp_closing=25, udp=20, udp_answered=50, icmp=10)


def rule(name: str, action: Literal["allow", "deny"], by: str | None = None, protocol: int | None = None) -> Rule:
    return Rule(name=name, action=action, from_port=by, protocol=protocol)


UDP_OUT, UDP_IN = rule("udp-out", "allow", "inside", 17), rule("udp-in", "allow", "outside", 17)
TCP_OUT, TCP_IN = rule("tcp-out", "allow", "inside", 6), rule("tcp-in", "allow", "outside", 6)
ECHO_OUT, ECHO6_OUT = rule("echo", "allow", "inside", 1), rule("echo6", "allow", "inside", 58)
REST = rule("rest", "deny")
RULES: tuple[tuple[list[Rule], str], ...] = (
    ([UDP_OUT, TCP_OUT], "deny"),
    ([ECHO_OUT, ECHO6_OUT], "deny"),
    ([UDP_OUT, ECHO_OUT, ECHO6_OUT], "deny"),
    ([], "deny"),
    ([], "allow"),
    ([UDP_IN, TCP_IN], "deny"),
    ([rule("out", "allow", "inside"), REST], "allow"),
    ([rule("no-out", "deny", "inside")], "allow"),
    ([TCP_OUT, rule("no-tcp", "deny", protocol=6)], "allow"),
    ([TCP_IN, UDP_IN, rule("no-out", "deny", "inside")], "allow"),
    ([rule("no-in", "deny", "outside"), rule("all", "allow")], "deny"),
)


@dataclass(frozen=True)
class Sent:
    """One frame. `client` is inside and `server` outside; `number` is the client's port, or the echo's identifier."""

    version: int
    kind: str  # udp, echo; tcp: an ACK
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


@dataclass(frozen=True)
class NewRules:
    index: int


@dataclass
class Model:
    now: int = 0
    rules: int = 0  # how often they have changed
    index: int = 0  # in RULES
    known: dict[object, Known] = field(default_factory=dict)

    def matches(self, candidate: Rule, sent: Sent, by: str) -> bool:
        protocol = {"udp": 17, "tcp": 6, "echo": 1 if sent.version == 4 else 58}[sent.kind]
        return candidate.from_port in (None, by) and candidate.protocol in (None, protocol)

    def says(self, sent: Sent, by: str) -> tuple[bool, bool]:
        """Do rules allow it by that port, and does the rule that decides tell that direction from the other?"""
        rules, default = RULES[self.index]
        for candidate in rules:
            if self.matches(candidate, sent, by):
                return candidate.action == "allow", not self.matches(candidate, sent, OPPOSITE[by])
        return default == "allow", False

    def allows(self, sent: Sent, by: str) -> bool:
        return self.says(sent, by)[0]

    def judge(self, sent: Sent) -> bool:
        answers = sent.kind == "echo" and sent.reply
        asked_by = OPPOSITE[sent.by] if answers else sent.by
        whose = asked_by if sent.kind == "echo" else ""  # both ends may use an identifier
        key = (sent.version, sent.kind, sent.client, sent.server, sent.number, sent.vlan, whose)
        known = self.known.get(key)
        if known is None or known.deadline < self.now:
            return self._judge_unknown(sent, key)
        if known.rules != self.rules:
            known.rules = self.rules
            known.denied = not self.allows(sent, known.opened_by)
        if known.denied:
            return self._judge_denied(sent, key, known)
        known.answered |= sent.kind != "echo" and sent.by != known.opened_by
        self._kept(sent, known)
        return True

    def _judge_unknown(self, sent: Sent, key: object) -> bool:
        if not self.allows(sent, sent.by):
            return False
        if self._opens(sent):
            self.known[key] = self._kept(sent, Known(sent.by, 0, rules=self.rules))
        return True

    def _opens(self, sent: Sent) -> bool:
        if sent.kind != "tcp":
            return not (sent.kind == "echo" and sent.reply)
        other_allowed, other_told = self.says(sent, OPPOSITE[sent.by])
        return other_allowed or not other_told or self.says(sent, sent.by)[1]

    def _judge_denied(self, sent: Sent, key: object, known: Known) -> bool:
        allowed, told = self.says(sent, sent.by)
        far = sent.by != known.opened_by
        if sent.kind != "tcp" and far and allowed and told:
            return self._judge_unknown(sent, key)
        if sent.kind == "tcp" or (far and allowed):
            self._kept(sent, known)
        return False

    def _kept(self, sent: Sent, known: Known) -> Known:
        lasts = {
            "udp": TIMEOUTS.udp_answered if known.answered else TIMEOUTS.udp,
            "echo": TIMEOUTS.icmp,
            "tcp": TIMEOUTS.tcp_established if known.answered else TIMEOUTS.tcp_opening,
        }
        known.deadline = self.now + (TIMEOUTS.tcp_closing if sent.kind == "tcp" and known.denied else lasts[sent.kind])
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
    ports = (sent.number, 53) if outward else (53, sent.number)
    if sent.kind == "udp":
        return bytes(packet / UDP(sport=ports[0], dport=ports[1]) / Raw(b"payload"))
    if sent.kind == "tcp":
        return bytes(packet / TCP(sport=ports[0], dport=ports[1], flags="A") / Raw(b"payload"))
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
    flows = lib.rway_filter_conntrack(filter_.native, reader)
    lib.rway_conntrack_turn(flows, table, counts[0], now)
    headers = ffi.new("struct rway_headers *")
    kept: Any = ffi.from_buffer(frame)
    assert lib.rway_parse(kept, len(frame), len(frame), headers) == lib.RWAY_WELL_FORMED
    judged = ffi.new("struct rway_judged *", [kept, headers, len(frame), len(frame)])
    in_port = PORTS.index(by)
    lib.rway_conntrack_judge(flows, in_port, 1 - in_port, judged, 1)
    lib.rway_filter_leave(filter_.native, reader)
    return bool(judged.stopped == lib.RWAY_PASSES)


frames = st.builds(
    Sent,
    version=st.sampled_from((4, 6)),
    kind=st.sampled_from(("udp", "tcp", "echo")),
    client=st.integers(1, 2),
    server=st.just(3),
    number=st.just(1),
    vlan=st.sampled_from((0, 0, 5)),
    by=st.sampled_from(PORTS),
    reply=st.booleans(),
)
steps = st.one_of(frames, frames, st.integers(0, 30), st.builds(NewRules, st.integers(0, len(RULES) - 1)))


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=60))
def test_connections_are_judged_as_the_model_judges_them(asked: list[Sent | int | NewRules]) -> None:
    model = Model()
    with Filter(PORTS, CONNECTIONS_MIN, TIMEOUTS) as filter_:
        filter_.replace(*RULES[0])
        with reader_of(filter_) as reader:
            for step in asked:
                if isinstance(step, int):
                    model.now += step
                elif isinstance(step, NewRules):
                    model.rules, model.index = model.rules + 1, step.index
                    filter_.replace(*RULES[step.index])
                else:
                    expected = model.judge(step)
                    assert passes(filter_, reader, build(step), step.by, model.now) == expected, step
