"""Checksums and segments where a kernel meets a local port: what was left to do is done, once, by somebody."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from ringway.agent import Port
from ringway.shm._native import ffi, lib
from tests.support.fabric import Fabric
from tests.support.network import await_carriers, namespaces, run, socket_in
from tests.support.waiting import until

pytestmark = pytest.mark.needs_root
LEFT_MAC, RIGHT_MAC, NEAR_MAC, FAR_MAC = (f"02:00:00:00:00:0{number}" for number in range(1, 5))
LEFT, NEAR, FAR, RIGHT = "10.1.0.2", "10.1.0.1", "10.2.0.1", "10.2.0.2"
# A router: its kernel forwards between two taps, and the second one is given complete frames only.
ROUTER = f"""
[vm.left.port.p]
kind = "local"
[vm.right.port.p]
kind = "local"
[vm.router.port.near]
kind = "tap"
interface = "near"
mac = "{NEAR_MAC}"
address = ["{NEAR}/24"]
[vm.router.port.far]
kind = "tap"
interface = "far"
mac = "{FAR_MAC}"
address = ["{FAR}/24"]
offload = false
[link.one]
ends = ["left.p", "router.near"]
[link.two]
ends = ["router.far", "right.p"]
"""


@pytest.fixture
def router(fabric: Fabric) -> Iterator[Fabric]:
    with namespaces("router"):
        fabric.apply(ROUTER)
        fabric.agent("router", namespace="router")
        run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward", namespace="router")
        for address, mac, interface in ((LEFT, LEFT_MAC, "near"), (RIGHT, RIGHT_MAC, "far")):
            run("ip", "neigh", "replace", address, "lladdr", mac, "dev", interface, namespace="router")
        yield fabric


def send_partial(port: Port, frame: bytes, csum_offset: int, gso_size: int = 0) -> None:
    """Publish a frame whose transport checksum, behind 34 bytes of Ethernet and IPv4, is still to be finished."""
    producer = port.region.producers[0].native
    header = 54 if gso_size else 0
    flags = lib.RWAY_EXT_CSUM | (lib.RWAY_EXT_GSO if gso_size else 0)
    kind = lib.RWAY_GSO_TCP4 if gso_size else 0
    offload = ffi.new("struct rway_offload *", [flags, kind, gso_size, header, 34, csum_offset])
    claimed = ffi.new("struct rway_frame[]", [{"len": len(frame)}])
    assert lib.rway_ring_claim(producer, claimed, 1) == 1
    assert lib.rway_frame_set_offload(producer, claimed, offload) == 0
    pieces = ffi.new("struct rway_piece[]", lib.RWAY_PIECES_MAX)
    at = 0
    for piece in pieces[0 : lib.rway_producer_pieces(producer, claimed, pieces)]:
        ffi.memmove(piece.data, frame[at : at + piece.len], piece.len)
        at += piece.len
    lib.rway_ring_publish(producer, claimed, 1)


def pseudo_header_sum(frame: Ether) -> int:
    """What a kernel leaves in the checksum field for the finisher: RFC 768, RFC 9293 3.1, not complemented."""
    packet = frame[IP]
    length = len(bytes(packet)) - 20
    words = socket.inet_aton(packet.src) + socket.inet_aton(packet.dst) + bytes([0, packet.proto])
    total = sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, 10, 2)) + length
    return (total & 0xFFFF) + (total >> 16)


def receive_from(port: Port, source: str) -> Ether:
    """The next IPv4 frame from there; kernels say other things too."""
    while frames := port.receive(count=1, timeout=5):
        got = Ether(frames[0])
        if IP in got and got[IP].src == source:
            return got
    raise AssertionError(f"nothing came from {source}")


def assert_checksums_are_right(got: Ether) -> None:
    again = Ether(bytes(got))
    layer = TCP if TCP in again else UDP
    del again[IP].chksum, again[layer].chksum
    right = Ether(bytes(again))
    assert (got[IP].chksum, got[layer].chksum) == (right[IP].chksum, right[layer].chksum)


def test_an_application_gets_complete_checksums_from_a_kernel(router: Fabric) -> None:
    port = router.port("left")
    await_carriers("router", interface="near")
    with socket_in("router", socket.SOCK_DGRAM) as udp, socket_in("router") as tcp:
        for size in (0, 1, 17, 1472):
            udp.sendto(random.randbytes(size), (LEFT, 9))
            assert_checksums_are_right(receive_from(port, NEAR))
        tcp.setblocking(False)
        tcp.connect_ex((LEFT, 9))
        while TCP not in (got := receive_from(port, NEAR)):
            pass
        assert_checksums_are_right(got)


def test_a_kernel_finishes_the_checksum_an_application_left_to_it(router: Fabric) -> None:
    left, right = router.port("left"), router.port("right")
    await_carriers("router", interface="near")
    await_carriers("router", interface="far")
    content = random.randbytes(1001)
    frame = Ether(src=LEFT_MAC, dst=NEAR_MAC) / IP(src=LEFT, dst=RIGHT) / UDP(sport=9, dport=9) / Raw(content)
    frame[UDP].chksum = pseudo_header_sum(frame)
    send_partial(left, bytes(frame), csum_offset=6)
    got = receive_from(right, LEFT)
    assert bytes(got[UDP].payload) == content
    assert_checksums_are_right(got)


def test_a_kernel_cuts_the_segment_an_application_left_whole(router: Fabric) -> None:
    left, right = router.port("left"), router.port("right")
    await_carriers("router", interface="near")
    await_carriers("router", interface="far")
    content = random.randbytes(40_000)
    segment = TCP(sport=9, dport=9, seq=1000, flags="PA")
    frame = Ether(src=LEFT_MAC, dst=NEAR_MAC) / IP(src=LEFT, dst=RIGHT) / segment / Raw(content)
    frame[TCP].chksum = pseudo_header_sum(frame)
    send_partial(left, bytes(frame), csum_offset=16, gso_size=1448)
    got = b""
    while len(got) < len(content):
        piece = receive_from(right, LEFT)
        assert_checksums_are_right(piece)
        assert piece[TCP].seq == 1000 + len(got)
        got += bytes(piece[TCP].payload)
    assert got == content


def test_a_datagram_with_a_wrong_checksum_does_not_reach_a_socket(router: Fabric) -> None:
    """The control: it is the checksum that lets the others through."""
    left = router.port("left")
    await_carriers("router", interface="near")
    with socket_in("router", socket.SOCK_DGRAM) as udp:
        udp.bind((NEAR, 0))
        head = Ether(src=LEFT_MAC, dst=NEAR_MAC) / IP(src=LEFT, dst=NEAR)
        port = udp.getsockname()[1]
        wrong = head / UDP(sport=9, dport=port, chksum=0x1234) / Raw(b"wrong")
        right = head / UDP(sport=9, dport=port) / Raw(b"right")
        left.send([bytes(wrong), bytes(right)])
        assert udp.recv(64) == b"right"
    until(lambda: router.ring("one").delivered >= 2, "both were delivered to the tap")
