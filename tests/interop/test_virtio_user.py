"""DPDK's virtio-user, an unmodified virtio-net driver with a front end of its own, as the guest of a vhost port.

testpmd passes frames on from one of its two ports to the other, so that each frame that comes back has gone into a
guest by a receive ring and out of it by a transmit ring, and its bytes can be compared.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from ringway.agent import Port
from tests.support.fabric import Fabric
from tests.support.testpmd import Testpmd
from tests.support.waiting import until

FABRIC = """
[vm.guest.port.in]
kind = "vhost"
socket = "{folder}/in"
[vm.guest.port.out]
kind = "vhost"
socket = "{folder}/out"
[vm.app.port.to]
kind = "local"
[vm.app.port.from]
kind = "local"
[link.in]
ends = ["app.to", "guest.in"]
queues = {queues}
[link.out]
ends = ["guest.out", "app.from"]
queues = {queues}
"""
WINDOW = 64  # frames on their way at once: fewer than any ring holds, so that nobody has a reason to drop one


@pytest.fixture
def folder(tmp_path: Path, fabric: Fabric) -> Path:
    return fabric.runtime.parent


def frames_of(lengths: list[int], seed: int) -> list[bytes]:
    """Frames of many flows: IPv4 and UDP from as many ports, numbered, with random bytes behind."""
    draw = random.Random(seed)
    made = []
    for number, length in enumerate(lengths):
        head = bytes.fromhex("020000000002 020000000001 0800 4500") + (length - 14).to_bytes(2, "big")
        head += bytes.fromhex("0000 0000 4011 0000 0a000001 0a000002")
        head += (1024 + number % 37).to_bytes(2, "big") + (9).to_bytes(2, "big") + (length - 34).to_bytes(2, "big")
        made.append((head + bytes(2) + number.to_bytes(4, "big") + draw.randbytes(length))[:length])
    return made


def exchange(sender: Port, receiver: Port, frames: list[bytes]) -> None:
    """All of them arrive, whole and once; in order where they have one queue."""
    arrived: list[bytes] = []
    for at in range(0, len(frames), WINDOW):
        window = frames[at : at + WINDOW]
        assert sender.send(window, timeout=20) == len(window)
        deadline = time.monotonic() + 8
        while len(arrived) < at + len(window):
            assert time.monotonic() < deadline, f"{len(arrived)} of {at + len(window)} frames"
            arrived += receiver.receive(timeout=1)
    if sender.region.geometry.queues == 1:
        assert arrived == frames
    assert Counter(arrived) == Counter(frames)


def started(fabric: Fabric, folder: Path, queues: int = 1) -> tuple[Port, Port]:
    fabric.apply(FABRIC.format(folder=folder, queues=queues))
    fabric.agent("guest")
    app = fabric.local("app")
    return app.port("to"), app.port("from")


def vhost_told(fabric: Fabric, port: str) -> str:
    return next(told.cause for told in fabric.broker.vm("guest").ports if told.port == port)


SPLIT = "packed_vq=0"
PACKED = "packed_vq=1"


@pytest.mark.parametrize(
    "device",
    [
        f"{SPLIT},mrg_rxbuf=1,in_order=1",
        f"{SPLIT},mrg_rxbuf=0,in_order=1",
        f"{SPLIT},mrg_rxbuf=1,in_order=0",
        f"{SPLIT},mrg_rxbuf=0,in_order=0",
        f"{SPLIT},mrg_rxbuf=0,in_order=0,vectorized=1",
        f"{PACKED},mrg_rxbuf=1,in_order=1",
        f"{PACKED},mrg_rxbuf=0,in_order=1",
        f"{PACKED},mrg_rxbuf=1,in_order=0",
        f"{PACKED},mrg_rxbuf=0,in_order=0",
        f"{PACKED},mrg_rxbuf=0,in_order=1,vectorized=1",
    ],
)
def test_frames_go_through_a_guest_whole(fabric: Fabric, folder: Path, device: str) -> None:
    sender, receiver = started(fabric, folder)
    with Testpmd([f"path={folder}/{name},{device}" for name in ("in", "out")]) as guest:
        guest.say("start")
        draw = random.Random(7)
        exchange(sender, receiver, frames_of([draw.randint(60, 1514) for _ in range(3000)], 1))
        exchange(receiver, sender, frames_of([60] * 1000, 2))
        assert vhost_told(fabric, "in") == ""
    until(lambda: vhost_told(fabric, "in") == "no front end is connected", "the port has seen the guest go")
    for link in ("in", "out"):
        assert all(ring.drops_produced == {} and ring.drops_consumed == {} for ring in fabric.quiet(link).rings)


@pytest.mark.parametrize("ring", [SPLIT, PACKED])
@pytest.mark.parametrize("queues", [2, 4])
def test_as_many_queue_pairs_as_the_link_has_queues(fabric: Fabric, folder: Path, queues: int, ring: str) -> None:
    sender, receiver = started(fabric, folder, queues)
    devices = [f"path={folder}/{name},queues={queues},{ring}" for name in ("in", "out")]
    with Testpmd(devices, f"--rxq={queues}", f"--txq={queues}") as guest:
        guest.say("start")
        exchange(sender, receiver, frames_of([100] * 2000, 3))
        exchange(receiver, sender, frames_of([100] * 2000, 4))
        moved = [shown.offered for shown in fabric.quiet("in").rings]
        assert all(moved), f"a queue has carried nothing: {moved}"


@pytest.mark.parametrize("ring", [SPLIT, PACKED])
def test_frames_longer_than_a_buffer_take_several(fabric: Fabric, folder: Path, ring: str) -> None:
    sender, receiver = started(fabric, folder)
    devices = [f"path={folder}/{name},mrg_rxbuf=1,{ring}" for name in ("in", "out")]
    with Testpmd(devices, "--max-pkt-len=9018", "--enable-scatter", "--tx-offloads=0x8000") as guest:
        guest.say("start")
        draw = random.Random(9)
        exchange(sender, receiver, frames_of([draw.randint(60, 9014) for _ in range(640)], 5))


@pytest.mark.parametrize("ring", [SPLIT, PACKED])
def test_front_ends_that_listen_are_met_again_and_again(fabric: Fabric, folder: Path, ring: str) -> None:
    fabric.apply(FABRIC.format(folder=folder, queues=1).replace('kind = "vhost"', 'kind = "vhost"\nconnect = true'))
    fabric.agent("guest")
    app = fabric.local("app")
    sender, receiver = app.port("to"), app.port("from")
    for seed in range(2):
        with Testpmd([f"path={folder}/{name},server=1,{ring}" for name in ("in", "out")]) as guest:
            guest.say("start")
            exchange(sender, receiver, frames_of([200] * 500, seed))
        until(lambda: vhost_told(fabric, "out") == "no front end is connected", "the port has seen the guest go")
        for name in ("in", "out"):
            (folder / name).unlink()  # testpmd leaves it, and does not listen where one is


@pytest.mark.parametrize("ring", [SPLIT, PACKED])
def test_guests_that_are_killed_under_load_are_followed_by_others(fabric: Fabric, folder: Path, ring: str) -> None:
    """Nothing is left of any, and the books balance."""
    sender, receiver = started(fabric, folder)
    for seed in range(4):
        with Testpmd([f"path={folder}/{name},{ring}" for name in ("in", "out")]) as guest:
            guest.say("start")
            exchange(sender, receiver, frames_of([500] * 300, seed))
            guest.say("stop")
            guest.say("set fwd flowgen")
            guest.say("start")
            assert receiver.receive(timeout=20)
            guest.kill()
        until(lambda: vhost_told(fabric, "out") == "no front end is connected", "the port has seen the guest go")
        while receiver.receive(timeout=0.2) or sender.receive(timeout=0.2):
            pass
    fabric.quiet("in")
    fabric.quiet("out")


@pytest.mark.parametrize("ring", [SPLIT, PACKED])
def test_all_that_a_guest_has_sent_arrives(fabric: Fabric, folder: Path, ring: str) -> None:
    """At full rate: what finds no room stays in the guest's ring, and it drops itself what it cannot queue."""
    _, receiver = started(fabric, folder)
    arrived = 0
    with Testpmd([f"path={folder}/{name},{ring}" for name in ("in", "out")]) as guest:
        guest.say("set fwd txonly")
        guest.say("start")
        while arrived < 200_000:
            arrived += len(receiver.receive(timeout=1))
        guest.say("stop")
        sent = guest.counts(1)[1]
        while frames := receiver.receive(timeout=0.5):
            arrived += len(frames)
        assert arrived == sent
    assert all(shown.drops_produced == {} for shown in fabric.quiet("out").rings)
