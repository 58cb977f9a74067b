"""Real guests on the fabric: QEMU's front end, and the virtio-net driver of a stock Linux kernel.

The other end is a tap, so that checksums and segments of each side are the other kernel's to judge.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.fabric import AgentProcess, Fabric
from tests.support.guest import Guest, needs_guests
from tests.support.network import await_carriers, namespaces, ping, socket_in
from tests.support.waiting import until

FABRIC = """
[vm.guest.port.net]
kind = "vhost"
socket = "{folder}/net"
[vm.host.port.p]
kind = "tap"
interface = "fast0"
address = ["10.77.0.1/24"]
[link.one]
ends = ["guest.net", "host.p"]
queues = {queues}
"""
WITHOUT_OFFLOAD = (
    "csum=off,gso=off,guest_csum=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off,"
    "guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off"
)
SIZE = 4 << 20
ETH_P_ALL = 3


@contextlib.contextmanager
def started(
    fabric: Fabric, device: str = "", queues: int = 1, more: Sequence[str] = ()
) -> Iterator[tuple[Guest, AgentProcess]]:
    """A guest at 10.77.0.2, whose link's other end is fast0 in the namespace east."""
    folder = fabric.runtime.parent
    needs_guests()
    fabric.apply(FABRIC.format(folder=folder, queues=queues))
    pump = fabric.agent("guest")
    # Without MSI-X: QEMU 7.2 ends with a segmentation fault in software emulation otherwise, whatever the back end.
    options = ["-chardev", f"socket,id=net,path={folder}/net,reconnect=1"]
    options += ["-netdev", f"vhost-user,id=net,chardev=net,queues={queues}"]
    options += ["-device", ",".join(filter(None, ["virtio-net-pci,netdev=net,vectors=0,romfile=", device]))]
    with namespaces("east"):
        fabric.agent("host", "east")
        with Guest(folder, "guest", [*options, *more]) as guest:
            guest.run("ip link set eth0 up && ip address add 10.77.0.2/24 dev eth0")
            await_carriers("east")
            yield guest, pump


def pings(guest: Guest) -> None:
    until(lambda: ping("east", "10.77.0.2", count=1) == 1, "the guest answers", seconds=60)
    assert ping("east", "10.77.0.2", count=10) == 10
    assert ping("east", "10.77.0.2", "-s", "1400", count=5) == 5
    guest.run("ping -c 3 -W 5 10.77.0.1")


def send_to_guest(guest: Guest, content: bytes) -> None:
    guest.run("(nc -l -p 5000 >/tmp/in; echo done >/tmp/ended) & sleep 1")
    with socket_in("east") as client:
        client.settimeout(60)
        client.connect(("10.77.0.2", 5000))
        client.sendall(content)
    guest.run("while [ ! -e /tmp/ended ]; do sleep 0.1; done; rm /tmp/ended")
    assert guest.run("sha256sum </tmp/in").split()[0] == hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def lengths_from_guest() -> Iterator[set[int]]:
    """Of frames that come in by fast0 meanwhile, before any kernel has cut or joined them."""
    found: set[int] = set()
    over = threading.Event()

    def watch(packets: socket.socket) -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                length, address = packets.recvfrom_into(bytearray(1), 1, socket.MSG_TRUNC)
                if address[2] != socket.PACKET_OUTGOING:
                    found.add(length)

    with socket_in("east", socket.SOCK_RAW, socket.AF_PACKET) as packets, ThreadPoolExecutor(1) as thread:
        packets.bind(("fast0", ETH_P_ALL))
        packets.settimeout(0.2)
        watching = thread.submit(watch, packets)
        try:
            yield found
        finally:
            over.set()
            watching.result()


def send_from_guest(guest: Guest) -> None:
    guest.run(f"head -c {SIZE} /dev/urandom >/tmp/out")
    digest = hashlib.sha256()
    with socket_in("east") as listener, ThreadPoolExecutor(1) as thread:
        listener.bind(("10.77.0.1", 5001))
        listener.listen()
        sending = thread.submit(guest.run, "nc 10.77.0.1 5001 </tmp/out")
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(60)
            while data := connection.recv(1 << 20):
                digest.update(data)
        sending.result()
    assert guest.run("sha256sum </tmp/out").split()[0] == digest.hexdigest()


@pytest.mark.full
@pytest.mark.needs_root
@pytest.mark.timeout(300)
@pytest.mark.parametrize("device", ["", "packed=on", WITHOUT_OFFLOAD, "mrg_rxbuf=off", f"packed=on,{WITHOUT_OFFLOAD}"])
def test_a_stock_guest_speaks_with_a_tap(fabric: Fabric, device: str) -> None:
    with started(fabric, device) as (guest, _):
        pings(guest)
        send_to_guest(guest, random.Random(1).randbytes(SIZE))
        with lengths_from_guest() as lengths:
            send_from_guest(guest)
    assert (max(lengths) > 1514) == (WITHOUT_OFFLOAD not in device), (
        "segments are cut by the guest, or left to the tap's kernel"
    )
    for ring in fabric.quiet("one").rings:
        assert "offload" not in ring.drops_produced | ring.drops_consumed
        assert "malformed" not in ring.drops_produced | ring.drops_consumed


@pytest.mark.full
@pytest.mark.needs_root
@pytest.mark.timeout(300)
def test_a_guest_of_two_processors_has_two_queue_pairs(fabric: Fabric) -> None:
    with started(fabric, "mq=on", queues=2, more=["-smp", "2"]) as (guest, _):
        pings(guest)
        for _ in range(8):  # flows of their own, which either side spreads
            send_from_guest(guest)
        assert all(ring.offered for ring in fabric.quiet("one").rings)


@pytest.mark.full
@pytest.mark.needs_root
@pytest.mark.timeout(300)
def test_a_guest_that_uses_fewer_pairs_than_the_link_has_queues(fabric: Fabric) -> None:
    with started(fabric, "mq=on", queues=4, more=["-smp", "2"]) as (guest, _):
        pings(guest)
        for _ in range(4):
            send_to_guest(guest, random.Random(1).randbytes(1 << 20))
        carried = [ring.offered for ring in fabric.quiet("one").rings if ring.producing_side == 1]
        assert sum(carried) > 100, carried


@pytest.mark.full
@pytest.mark.needs_root
@pytest.mark.timeout(300)
def test_a_driver_that_is_taken_away_and_comes_back(fabric: Fabric) -> None:
    with started(fabric) as (guest, _):
        pings(guest)
        device = guest.run("basename $(readlink /sys/class/net/eth0/device)").strip()
        for _ in range(3):
            guest.run(f"echo {device} >/sys/bus/virtio/drivers/virtio_net/unbind")
            guest.run(f"echo {device} >/sys/bus/virtio/drivers/virtio_net/bind")
            guest.run("ip link set eth0 up && ip address add 10.77.0.2/24 dev eth0")
            pings(guest)


@pytest.mark.full
@pytest.mark.needs_root
@pytest.mark.timeout(300)
def test_a_killed_pump_is_followed_and_the_guest_goes_on(fabric: Fabric) -> None:
    with started(fabric) as (guest, first):
        pings(guest)
        pumps = [first]
        for _ in range(3):
            pumps[-1].stop(signal.SIGKILL)
            pumps.append(fabric.agent("guest"))
            pings(guest)
