"""A peer that writes counters that cannot be breaks its own link, by name, and nothing else."""

from __future__ import annotations

import os

import pytest

from ringway.shm import BreakCause, RegionBrokenError, SideState, read_region
from tests.support.carrier import SMALL, WORD, peek
from tests.support.victim import FRAME, Victim, after_ten_frames

SLOTS = SMALL.slot_count


BAD_HEADS = [9, 0, 10 + SLOTS + 1, 10 + 2 * SLOTS, 2**32 + 10, 2**63, WORD - 1]


@pytest.mark.parametrize("head", BAD_HEADS)
def test_a_head_that_goes_back_or_too_far_breaks_the_link(victim: Victim, head: int) -> None:
    after_ten_frames(victim)
    victim.carrier.set_head(victim.inward, head)
    assert victim.region.consumers[0].wait(1)
    with pytest.raises(RegionBrokenError):
        victim.receive()
    victim.breaks_with(BreakCause.HEAD)


def test_the_reading_of_a_broken_link_names_side_and_cause(victim: Victim) -> None:
    after_ten_frames(victim)
    victim.carrier.set_head(victim.inward, 10 + SLOTS)
    victim.carrier.describe(victim.inward, 10, kind=9)
    with pytest.raises(RegionBrokenError):
        victim.receive()
    side = read_region(victim.carrier.fd).sides[0]
    assert (side.state, side.cause) == (SideState.BROKEN, BreakCause.KIND)
    assert read_region(victim.carrier.fd).sides[1].state is SideState.DETACHED


def test_a_whole_ring_of_frames_is_the_most_that_a_head_may_announce(victim: Victim) -> None:
    after_ten_frames(victim)
    victim.publish(*[{}] * SLOTS)
    assert len(victim.receive()) == SLOTS
    assert not victim.region.broken


def test_frames_still_held_count_against_what_a_head_may_announce(victim: Victim) -> None:
    victim.publish(*[{}] * SLOTS)
    assert len(peek(victim.region, count=SLOTS)) == SLOTS
    victim.carrier.set_head(victim.inward, SLOTS + 1)
    assert len(peek(victim.region)) == 0
    victim.breaks_with(BreakCause.HEAD)


def test_a_head_that_went_back_over_frames_still_held_breaks_the_link(victim: Victim) -> None:
    victim.publish(*[{}] * 10)
    assert len(peek(victim.region, count=10)) == 10
    victim.carrier.set_head(victim.inward, 9)
    assert len(peek(victim.region)) == 0
    victim.breaks_with(BreakCause.HEAD)


@pytest.mark.parametrize("tail", [SLOTS + 1, 2 * SLOTS, 2**32, 2**63, WORD - 1])
def test_a_tail_past_our_head_breaks_the_link(victim: Victim, tail: int) -> None:
    assert victim.region.producers[0].send([FRAME] * SLOTS) == SLOTS
    victim.carrier.set_tail(victim.outward, tail)
    with pytest.raises(RegionBrokenError):
        victim.region.producers[0].send([FRAME])
    victim.breaks_with(BreakCause.TAIL)


@pytest.mark.parametrize("tail", [0, 9, WORD - 1])
def test_a_tail_that_goes_back_breaks_the_link(victim: Victim, tail: int) -> None:
    producer = victim.region.producers[0]
    assert producer.send([FRAME] * SLOTS) == SLOTS
    victim.carrier.set_tail(victim.outward, 10)
    assert producer.send([FRAME] * SLOTS) == 10
    victim.carrier.set_tail(victim.outward, tail)
    with pytest.raises(RegionBrokenError):
        producer.send([FRAME])
    victim.breaks_with(BreakCause.TAIL)


def test_a_tail_that_stays_fills_the_ring_and_no_more(victim: Victim) -> None:
    assert victim.region.producers[0].send([FRAME] * 200) == SLOTS
    assert victim.region.producers[0].send([FRAME]) == 0
    assert not victim.region.broken


@pytest.mark.parametrize("junk", [0, 1, 2**63, WORD - 1])
def test_what_we_publish_is_never_read_back(victim: Victim, junk: int) -> None:
    made, producer = victim.carrier, victim.region.producers[0]
    for turn in range(100):
        made.set_head(victim.outward, junk)
        made.set_tail(victim.inward, junk)
        for struct, at in (("produced", victim.outward), ("consumed", victim.inward)):
            made.write(junk, at, "rway_ring_control", struct, "frames")
        made.write(junk, made.side(0), "rway_side", "state")
        assert producer.send([FRAME]) == 1
        made.set_tail(victim.outward, turn + 1)
        victim.publish({})
        assert len(victim.receive()) == 1
    assert made.read(victim.outward, "rway_ring_control", "head") == 100
    assert made.read(victim.inward, "rway_ring_control", "tail") == 100
    assert made.read(victim.outward, "rway_ring_control", "produced", "frames") == 100
    assert made.read(victim.inward, "rway_ring_control", "consumed", "frames") == 100
    assert not victim.region.broken


@pytest.mark.parametrize("junk", [0, 1, 2**63, WORD - 1])
def test_wake_words_of_any_value_change_only_who_is_woken(victim: Victim, junk: int) -> None:
    made = victim.carrier
    for turn in range(100):
        made.write(junk, victim.outward, "rway_ring_control", "wake_consumer")
        made.write(junk, victim.inward, "rway_ring_control", "wake_producer")
        assert victim.region.producers[0].send([FRAME]) == 1
        made.set_tail(victim.outward, turn + 1)
        victim.publish({})
        assert len(victim.receive()) == 1
    assert not victim.region.broken


@pytest.mark.parametrize("junk", [b"\xff", b"\x7f", b"\x02"])
def test_a_peers_word_about_itself_is_only_shown(victim: Victim, junk: bytes) -> None:
    os.pwrite(victim.carrier.fd, junk * 4096, victim.carrier.side(1))
    peer = victim.region.peer()
    assert peer.state in SideState
    assert peer.cause in BreakCause
    snapshot = read_region(victim.carrier.fd)
    assert snapshot.sides[1] == peer
    victim.publish({})
    assert len(victim.receive()) == 1
