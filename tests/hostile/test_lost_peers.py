"""A peer that dies, stops, or takes memory away costs its own link and nobody waits for it."""

from __future__ import annotations

import ctypes
import os
import signal

import pytest

from ringway.shm import BreakCause, RegionBrokenError, read_region
from ringway.shm._native import ffi, lib
from tests.support.carrier import SMALL, carrier
from tests.support.victim import FRAME, Victim, after_ten_frames

SLOTS = SMALL.slot_count


def test_a_peer_that_dies_between_claim_and_publish_leaves_nothing_to_clean_up() -> None:
    with carrier() as made, made.attach(0) as a:
        claimed, saying = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                b = made.attach(1)
                frames = ffi.new("struct rway_frame[]", 4)
                for frame in frames:
                    frame.len = 1000
                b.producers[0].send([FRAME])
                os.write(saying, bytes([lib.rway_ring_claim(b.producers[0].native, frames, 4)]))
                signal.pause()
            finally:
                os._exit(1)
        assert os.read(claimed, 1) == b"\x04"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(claimed)
        os.close(saying)
        assert a.consumers[0].receive() == [FRAME]
        assert a.consumers[0].receive() == []
        with made.attach(1, incarnation=2) as b:
            assert a.peer().incarnation == 2
            assert b.producers[0].send([FRAME] * SLOTS) == SLOTS
            assert a.consumers[0].receive() == [FRAME] * SLOTS
        assert all(ring.balanced for ring in read_region(made.fd).rings)


def test_a_peer_that_stops_consuming_fills_its_ring_and_costs_nothing_else(victim: Victim) -> None:
    producer = victim.region.producers[0]
    assert producer.send([FRAME] * SLOTS) == SLOTS
    for _ in range(1000):
        assert producer.send([FRAME]) == 0
    assert not producer.wait(0)
    near, far = victim.others
    assert near.producers[0].send([FRAME]) == 1
    assert far.consumers[0].receive() == [FRAME]


@pytest.mark.parametrize("target", ["descriptors", "slots", "header", "own side", "peer's side"])
def test_holes_punched_into_a_live_region_break_the_link_or_read_as_zeros(victim: Victim, target: str) -> None:
    made = victim.carrier
    after_ten_frames(victim)
    victim.publish(*[{}] * 10)
    places = {
        "descriptors": (victim.inward, 8192),
        "slots": (victim.inward + 4096, SMALL.shape().queue_size - 4096),
        "header": (0, 4096),
        "own side": (made.side(0), 4096),
        "peer's side": (made.side(1), 4096),
    }
    start, length = places[target]
    punch_hole(made.fd, start, length)
    if target == "descriptors":  # the head is on the same page
        with pytest.raises(RegionBrokenError):
            victim.receive()
        victim.breaks_with(BreakCause.HEAD)
        return
    frames = victim.receive()
    assert len(frames) == 10
    assert target != "slots" or frames[-1] == bytes(60)
    assert not victim.region.broken


def punch_hole(fd: int, offset: int, length: int) -> None:
    """fallocate(2) with PUNCH_HOLE and KEEP_SIZE, which Python does not offer. Seals do not forbid it."""
    libc = ctypes.CDLL(None, use_errno=True)
    kept = libc.fallocate(fd, 3, ctypes.c_int64(offset), ctypes.c_int64(length))
    assert kept == 0, os.strerror(ctypes.get_errno())
