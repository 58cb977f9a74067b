"""A firewall between two applications: every frame is counted under what was decided, exactly."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import truediv

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop, Jumbo, PadN
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from ringway.agent import Port
from ringway.shm._native import ffi, lib
from tests.support.broker_process import run_ringway
from tests.support.fabric import Fabric
from tests.support.fabrics import applications_and_firewall
from tests.support.waiting import until

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
CONTENT = Raw(bytes(range(40)))

MATCHES = {
    # what a rule says, a frame it matches, and one that it just does not
    "from": ('from = "inside"', UDP(), None),
    "arp": ('ether = "arp"', ETHER / ARP(), UDP()),
    "ether": ("ether = 0x88b5", ETHER.copy() / CONTENT, UDP()),
    "protocol": ('protocol = "udp"', UDP(), TCP()),
    "icmp": ('protocol = "icmp"', ICMP(), UDP()),
    "source": ('source = "10.1.0.0/16"', IP(src="10.1.255.255", dst="10.9.9.9"), IP(src="10.2.0.0", dst="10.1.0.1")),
    "destination": ('destination = "10.1.0.7"', IP(dst="10.1.0.7"), IP(dst="10.1.0.8")),
    "source-6": (
        'source = "fd00:1::/64"',
        IPv6(src="fd00:1::5", dst="fd00::1"),
        IPv6(src="fd00:1:0:1::5", dst="fd00::1"),
    ),
    "source-port": ('protocol = "udp"\nsource_port = 53', UDP(sport=53), UDP(sport=54, dport=53)),
    "port": ('protocol = "tcp"\ndestination_port = 23', TCP(dport=23), UDP(dport=23)),
    "port-range": ('protocol = "tcp"\ndestination_port = "1000-2000"', TCP(dport=2000), TCP(dport=2001)),
    "flags": ('protocol = "tcp"\ntcp_flags = "SYN,!ACK"', TCP(flags="S"), TCP(flags="SA")),
    "icmp-type": ('protocol = "icmp"\nicmp_type = 8', ICMP(type=8), ICMP(type=0)),
    "icmp-code": ('protocol = "icmp"\nicmp_type = 3\nicmp_code = 4', ICMP(type=3, code=4), ICMP(type=3, code=1)),
    "vlan-id": ("vlan = 5", ETHER / Dot1Q(vlan=5) / IP() / UDP(), ETHER / Dot1Q(vlan=6) / Dot1Q(vlan=5) / IP() / UDP()),
    "no-vlan": ("vlan = 0", UDP(), ETHER / Dot1Q(vlan=5) / IP() / UDP()),
    "gre": ('protocol = "gre"', IP(proto=47) / CONTENT, IP(proto=4) / CONTENT),
    "mpls": (
        'ether = "mpls"',
        Ether(type=0x8847, dst=ETHER.dst) / CONTENT,
        Ether(type=0x8848, dst=ETHER.dst) / CONTENT,
    ),
    "802.3": ('ether = "802.3"', Ether(type=40, dst=ETHER.dst) / CONTENT, Ether(type=0x88B5, dst=ETHER.dst) / CONTENT),
    "vlan": ('protocol = "tcp"\ndestination_port = 23', ETHER / Dot1Q(vlan=5) / IP() / TCP(dport=23), TCP(dport=24)),
}
_names = itertools.count()


def frame(layer: Packet) -> bytes:
    """`layer` in whatever has to stand around it."""
    if isinstance(layer, Ether):
        if layer.payload.name == "Raw" and "type" not in layer.fields:
            layer.type = 0x88B5
        return bytes(layer)
    if isinstance(layer, IP | IPv6):
        return bytes(ETHER / layer / UDP() / CONTENT)
    return bytes(ETHER / IP(src="10.8.0.1", dst="10.8.0.2") / layer / CONTENT)


def fabric_text(rules: str = "", default: str = "allow") -> str:
    return applications_and_firewall(f'default = "{default}"\n{rules}\n')


def rule(name: str, action: str, says: str) -> str:
    return f'[[vm.firewall.stack.rule]]\nname = "{name}"\naction = "{action}"\n{says}\n'


class Bench:
    """What is offered at the left end, and what comes out at the right one."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        fabric.apply(fabric_text())
        fabric.agent("firewall")
        self.left: Port = fabric.port("left")
        self.right: Port = fabric.port("right")

    def offer(self, frames: list[bytes]) -> list[bytes]:
        """Those of the frames that arrive, once the firewall has decided over all of them."""
        before = self.fabric.ring("one").published
        self.left.send(frames)
        return self.arrived(before + len(frames))

    def arrived(self, offered: int) -> list[bytes]:
        until(lambda: self._taken() == offered, "the firewall has taken all frames")
        got: list[bytes] = []
        while new := self.right.receive(timeout=0):
            got += new
        return got

    def _taken(self) -> int:
        ring = self.fabric.ring("one")
        return ring.published if ring.in_flight == 0 else -1

    def check_sums(self) -> None:
        """Each frame offered is under one rule, or was one that no rule could judge."""
        ring = self.fabric.quiet("one").rings[0]
        passed = sum(count.passed for count in self.fabric.broker.vm("firewall").unparsed)
        unjudged = passed + sum(ring.drops_consumed.get(cause, 0) for cause in ("malformed", "offload"))
        assert sum(self.fabric.rules("firewall").values()) + unjudged == ring.offered - sum(
            ring.drops_produced.values()
        )


@pytest.fixture
def bench(fabric: Fabric) -> Iterator[Bench]:
    made = Bench(fabric)
    yield made
    made.check_sums()


@pytest.fixture(scope="module")
def shared_bench(module_fabric: Fabric) -> Bench:
    return Bench(module_fabric)


@pytest.mark.parametrize("action", ["allow", "deny"])
@pytest.mark.parametrize("kind", MATCHES)
def test_a_rule_decides_over_the_frames_it_matches_and_no_others(shared_bench: Bench, kind: str, action: str) -> None:
    bench = shared_bench
    says, matched, other = MATCHES[kind]
    name, default = f"rule-{next(_names)}", {"allow": "deny", "deny": "allow"}[action]
    bench.fabric.apply(fabric_text(rule(name, action, says), default))
    before = bench.fabric.rules("firewall")
    hits, misses = [frame(matched)] * 3, [frame(other)] * 2 if other is not None else []
    assert bench.offer(hits + misses) == (hits if action == "allow" else misses)
    after = bench.fabric.rules("firewall")
    assert (after[name], after["default"] - before["default"]) == (len(hits), len(misses))


def test_the_first_rule_that_matches_decides(bench: Bench) -> None:
    first = rule("one-host", "allow", 'protocol = "tcp"\nsource = "10.8.0.1"\ndestination_port = 22')
    bench.fabric.apply(fabric_text(first + rule("no-ssh", "deny", 'protocol = "tcp"\ndestination_port = 22')))
    good = frame(TCP(dport=22))
    bad = bytes(ETHER / IP(src="10.8.0.3", dst="10.8.0.2") / TCP(dport=22))
    assert bench.offer([good, bad, bad, good, bad]) == [good, good]
    assert bench.fabric.rules("firewall") == {"one-host": 2, "no-ssh": 3, "default": 0}


def test_frames_that_cannot_be_judged_are_counted_as_malformed_and_go_nowhere(bench: Bench) -> None:
    cut_tcp = bytes(ETHER / IP(len=30, proto=6, src="10.8.0.1", dst="10.8.0.2") / Raw(bytes(10)))
    wrong_length = bytes(ETHER / IP(len=4000) / UDP())
    tiny_fragment = bytes(ETHER / IP(flags="MF", proto=6, src="10.8.0.1", dst="10.8.0.2") / Raw(bytes(8)))
    good = frame(UDP())
    assert bench.offer([cut_tcp, good, wrong_length, tiny_fragment, good]) == [good, good]
    assert bench.fabric.ring("one").drops_consumed == {"malformed": 3}
    assert bench.fabric.rules("firewall") == {"default": 2}


UNJUDGED = {
    # the parser's name, and a frame that has it
    "vlan": ETHER / Dot1Q(vlan=5) / Dot1Q(vlan=6) / Dot1Q(vlan=7) / IP() / UDP(),
    "source_route": ETHER / IP(options=[IPOption_LSRR(routers=["10.8.0.9"])]) / UDP(),
    "too_long": ETHER / IPv6() / IPv6ExtHdrDestOpt(len=31, options=[PadN(optdata=bytes(252))]) / UDP(),
    "extension": ETHER / reduce(truediv, [IPv6(), *(IPv6ExtHdrDestOpt() for _ in range(9)), UDP()]),
    "jumbogram": ETHER / IPv6(plen=0) / IPv6ExtHdrHopByHop(options=[Jumbo(jumboplen=70000)]) / UDP(),
    "arp": ETHER / ARP(hwlen=7) / CONTENT,
    "ip_length": ETHER / IP(len=0) / UDP() / CONTENT,
    "transport": ETHER / IP() / UDP(len=400) / CONTENT,
    "fragment": ETHER / IP(frag=1, proto=6) / CONTENT,
    "tiny_fragment": ETHER / IP(flags="MF", proto=6) / Raw(bytes(8)),
    "ip_version": ETHER / IP(version=5) / UDP(),
}


def unparsed_counts(fabric: Fabric) -> dict[str, tuple[int, int]]:
    return {count.cause: (count.dropped, count.passed) for count in fabric.broker.vm("firewall").unparsed}


def test_what_cannot_be_judged_is_counted_by_its_cause_and_passes_where_the_user_says_so(bench: Bench) -> None:
    frames = [bytes(layer) for layer in UNJUDGED.values()]
    assert bench.offer(frames) == []
    assert unparsed_counts(bench.fabric) == dict.fromkeys(UNJUDGED, (1, 0))
    bench.fabric.apply(fabric_text('unparsed = "allow"', default="deny"))
    assert bench.offer([*frames, frame(UDP())]) == frames
    assert unparsed_counts(bench.fabric) == dict.fromkeys(UNJUDGED, (1, 1))
    assert bench.fabric.ring("one").drops_consumed == {"malformed": len(frames), "policy": 1}
    printed = run_ringway("show", "--runtime", str(bench.fabric.runtime)).stdout
    assert "frames whose headers cannot be judged" in printed
    assert "tiny_fragment" in printed


def send_with_offload(port: Port, content: bytes, csum_start: int, csum_offset: int) -> None:
    producer = port.region.producers[0].native
    offload = ffi.new("struct rway_offload *", [lib.RWAY_EXT_CSUM, 0, 0, 0, csum_start, csum_offset])
    claimed = ffi.new("struct rway_frame[]", [{"len": len(content)}])
    assert lib.rway_ring_claim(producer, claimed, 1) == 1
    assert lib.rway_frame_set_offload(producer, claimed, offload) == 0
    ffi.memmove(claimed[0].data, content, len(content))
    lib.rway_ring_publish(producer, claimed, 1)


LIES = {
    # where the checksum is said to begin and to be stored
    "destination-port": (UDP(dport=53), 34, 2),
    "udp-length": (UDP(dport=53), 34, 4),
    "udp-as-in-tcp": (UDP(dport=53), 34, 16),
    "tcp-port": (TCP(dport=22), 34, 2),
    "tcp-flags": (TCP(dport=22), 34, 12),
    "ip-destination": (UDP(dport=53), 14, 16),
}


@pytest.mark.parametrize("lie", LIES)
def test_offload_data_that_would_rewrite_judged_bytes_is_dropped(bench: Bench, lie: str) -> None:
    layer, start, offset = LIES[lie]
    before = bench.fabric.ring("one").published
    send_with_offload(bench.left, frame(layer), start, offset)
    good = frame(UDP())
    bench.left.send([good])
    assert bench.arrived(before + 2) == [good]
    assert bench.fabric.ring("one").drops_consumed == {"offload": 1}
    assert bench.fabric.rules("firewall") == {"default": 1}


def test_offload_data_that_fits_passes_and_the_far_end_finishes_the_checksum(bench: Bench) -> None:
    unfinished = ETHER / IP(src="10.8.0.1", dst="10.8.0.2") / UDP(sport=9, dport=9) / CONTENT
    right = bytes(unfinished)
    # The pseudo header's sum, RFC 768: addresses, protocol 17, length 48.
    total = 0x0A08 + 0x0001 + 0x0A08 + 0x0002 + 17 + 48
    unfinished[UDP].chksum = total
    before = bench.fabric.ring("one").published
    send_with_offload(bench.left, bytes(unfinished), 34, 6)
    assert bench.arrived(before + 1) == [right]


def test_rules_change_a_hundred_times_under_traffic_that_loses_nothing(bench: Bench) -> None:
    deny = rule("no-telnet", "deny", 'protocol = "tcp"\ndestination_port = 23')
    telnet, burst = frame(TCP(dport=23)), 64

    def change() -> None:
        for number in range(100):
            others = "".join(
                rule(f"other-{index}", "deny", f'source = "10.99.{index}.0/24"') for index in range(number % 7)
            )
            bench.fabric.apply(fabric_text(others + deny if number % 2 else deny + others))

    bench.fabric.apply(fabric_text(deny))
    sent = 0
    with ThreadPoolExecutor(1) as thread:
        changing = thread.submit(change)
        while not changing.done():
            numbers = range(sent, sent + burst)
            passing = [
                bytes(ETHER / IP(src="10.8.0.1", dst="10.8.0.2") / UDP() / Raw(n.to_bytes(4, "big"))) for n in numbers
            ]
            bench.left.send([one for pair in zip(passing, [telnet] * burst, strict=True) for one in pair])
            got: list[bytes] = []
            while len(got) < burst:
                new = bench.right.receive(timeout=10)
                assert new, f"{burst - len(got)} frames that should pass were lost"
                got += new
            assert got == passing
            sent += burst
        changing.result()
    until(lambda: bench.fabric.rules("firewall")["no-telnet"] == sent, "all is counted")
    counted = bench.fabric.rules("firewall")
    assert (counted["no-telnet"], counted["default"]) == (sent, sent)
    assert sum(counted.values()) == 2 * sent
    assert bench.fabric.ring("one").drops_consumed == {"policy": sent}
    assert bench.fabric.ring("two").drops_produced == {}


def test_no_byte_of_a_denied_frame_is_in_the_other_region(bench: Bench) -> None:
    """Law 6."""
    bench.fabric.apply(fabric_text(rule("no-telnet", "deny", 'protocol = "tcp"\ndestination_port = 23')))
    marker = random.randbytes(16)
    for size in (16, 100, 1400, 9000, 60000):
        denied = bytes(ETHER / IP(src="10.8.0.1", dst="10.8.0.2") / TCP(dport=23) / Raw(marker * (size // 16)))
        assert bench.offer([denied] * 8) == []
    assert bench.fabric.rules("firewall")["no-telnet"] == 40
    assert marker in bench.fabric.memory("one"), "the search finds what is there"
    assert marker not in bench.fabric.memory("two")


def test_a_far_end_that_does_not_take_its_frames_costs_the_firewall_none_of_its_input(bench: Bench) -> None:
    frames = [frame(UDP())] * 1500
    before = bench.fabric.ring("one").published
    bench.left.send(frames)
    until(lambda: bench.fabric.ring("one").delivered == before + len(frames), "the firewall has taken all frames")
    ring = bench.fabric.ring("two")
    assert (ring.in_flight, ring.drops_produced) == (1024, {"full": 1500 - 1024})
    assert len(bench.arrived(before + len(frames))) == 1024
