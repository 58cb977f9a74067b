"""What a peer writes into the words that a restart reads costs counts at most, and no frame of another link."""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ringway.shm import (
    LossState,
    RefusalCause,
    RegionBrokenError,
    RegionError,
    count_losses,
    read_region,
    watch_losses,
)
from ringway.shm._native import lib
from tests.support.carrier import SMALL, WORD, Carrier, carrier, left_behind, place

SLOTS = SMALL.slot_count
FRAME = bytes(range(60))
JUNK = [0, 1, 10, 11, SLOTS, 2**32, 2**63 - 1, 2**63, WORD - 1]


def with_ten_frames(made: Carrier) -> None:
    """Ten frames from side b to side a, of which side a has released four; both are gone."""
    with made.attach(0) as a, made.attach(1) as b:
        assert b.producers[0].send([FRAME] * 10) == 10
        assert len(a.consumers[0].receive(4)) == 4


def goes_on(made: Carrier, left: int) -> None:
    """Side a is attached again, gets what is left, and its link and process are whole."""
    before = left_behind()
    with made.attach(0, incarnation=2) as a:
        assert len(a.consumers[0].receive()) == left
        assert a.producers[0].send([FRAME]) == 1
        with made.attach(1, incarnation=2) as b:
            assert b.producers[0].send([FRAME]) == 1
            assert a.consumers[0].receive() == [FRAME]
            assert b.consumers[0].receive() == [FRAME]
        assert not a.broken
    assert left_behind() == before


@pytest.mark.parametrize("word", ["frames", "bytes", "dropped"])
@pytest.mark.parametrize("junk", JUNK)
def test_absurd_commits_change_counts_and_nothing_else(word: str, junk: int) -> None:
    with carrier() as made:
        with_ten_frames(made)
        for ring, commits in ((made.ring(0), "published"), (made.ring(1), "released")):
            for number in (0, 1):
                made.write(junk, ring, "rway_ring_control", commits, number, word)
        read_region(made.fd)
        goes_on(made, 6)
        read_region(made.fd)


@pytest.mark.parametrize("at", JUNK)
def test_commits_of_another_counter_are_left_out_of_account(at: int) -> None:
    with carrier() as made:
        with_ten_frames(made)
        for number in (0, 1):
            made.write(at if at != 4 else 5, made.ring(1), "rway_ring_control", "released", number, "at")
            made.write(WORD - 7, made.ring(1), "rway_ring_control", "released", number, "frames")
        goes_on(made, 6)
        assert read_region(made.fd).rings[2].consumed.frames == 11
        assert read_region(made.fd).rings[2].balanced


def test_two_commits_of_one_counter_are_settled_in_favour_of_the_first() -> None:
    with carrier() as made:
        with_ten_frames(made)
        for number, frames in enumerate((4, 400)):
            for word, value in (("at", 4), ("frames", frames), ("bytes", 240), ("dropped", 0)):
                made.write(value, made.ring(1), "rway_ring_control", "released", number, word)
        goes_on(made, 6)
        assert read_region(made.fd).rings[2].balanced


@pytest.mark.parametrize("begun", [0, 3, 4, 11, 12, 4 + SLOTS, 2**32, 2**63, WORD - 1])
def test_a_begun_outside_of_what_is_in_flight_is_left_out_of_account(begun: int) -> None:
    with carrier() as made:
        with_ten_frames(made)
        made.write(begun, made.ring(1), "rway_ring_control", "begun")
        goes_on(made, 6)
        assert read_region(made.fd).rings[2].consumed.drops == {}


@pytest.mark.parametrize(
    "damage",
    [
        {"kind": 0},
        {"kind": 9},
        {"flags": 255},
        {"len": 2**32 - 1},
        {"len": 700, "slots": 3},
        {"slots": 0},
        {"slots": 2**16 - 1},
        {"pushed": 2**16 - 1},
        {"kind": lib.RWAY_DESC_CONTINUATION},
    ],
    ids=str,
)
def test_a_begun_behind_a_frame_that_cannot_be_moves_nothing_and_the_frame_breaks_the_link(
    damage: dict[str, int],
) -> None:
    with carrier() as made:
        with_ten_frames(made)
        made.describe(made.ring(1), 5, **damage)
        made.write(8, made.ring(1), "rway_ring_control", "begun")
        with made.attach(0, incarnation=2) as a:
            assert made.read(made.ring(1), "rway_ring_control", "tail") == 4
            assert len(a.consumers[0].receive()) == 1
            with pytest.raises(RegionBrokenError):
                a.consumers[0].receive()
            assert a.producers[1].send([]) == 0


def test_a_begun_inside_a_frame_moves_nothing() -> None:
    with carrier() as made:
        with_ten_frames(made)
        ring = made.ring(1)
        made.describe(ring, 4, len=700, slots=3)
        for number in (5, 6):
            made.describe(ring, number, kind=lib.RWAY_DESC_CONTINUATION, slots=0, len=0)
        for begun in (5, 6):
            made.write(begun, ring, "rway_ring_control", "begun")
            with made.attach(0):
                assert made.read(ring, "rway_ring_control", "tail") == 4
        made.write(7, ring, "rway_ring_control", "begun")
        with made.attach(0):
            assert made.read(ring, "rway_ring_control", "tail") == 7
        consumed = read_region(made.fd).rings[2].consumed
        assert (consumed.frames, consumed.bytes, consumed.drops) == (5, 940, {"restart": 1})


@pytest.mark.parametrize("group", [0, 1, 2, WORD - 1])
@pytest.mark.parametrize("members", [0, 1, 2, 3, WORD - 1])
@pytest.mark.parametrize("lead", [0, 64 * SMALL.queues, 64 * SMALL.queues + 1, 2**63, WORD - 1])
def test_what_a_peer_says_of_a_forwarder_counts_no_more_than_a_kill_can_lose(
    group: int, members: int, lead: int
) -> None:
    with carrier() as made, carrier() as other:
        for one, half, base in ((made, "taken", -lead), (other, "given", 0)):
            for word, value in (("group", group), ("members", members), ("base", base)):
                one.write(value, one.side(0), "rway_side", half, word)
        with made.attach(0) as source, other.attach(0) as target:
            state, frames = count_losses([source, target])
            assert (state is LossState.UNKNOWN) == (group == 0 or members != 2)
            drops = read_region(other.fd).rings[0].produced.drops.get("restart", 0)
            assert drops == (frames if state is LossState.COUNTED else 0) <= 64 * SMALL.queues
            watch_losses([source], [target])
            assert count_losses([source, target]) == (LossState.COUNTED, 0)
            assert target.producers[0].send([FRAME]) == 1


CONTROL = place("rway_ring_control", "reserved")[0]
DAMAGE = st.lists(
    st.tuples(st.integers(0, CONTROL // 8), st.one_of(st.sampled_from(JUNK), st.integers(0, WORD - 1))), max_size=8
)


@settings(deadline=None, max_examples=300)
@given(damage=DAMAGE, side_words=st.tuples(*[st.sampled_from([*JUNK, 2])] * 3))
@example(damage=[], side_words=(0, 0, 0))
def test_random_words_over_a_rings_control_are_refused_by_name_or_taken_up(
    damage: list[tuple[int, int]], side_words: tuple[int, int]
) -> None:
    with carrier() as made:
        with_ten_frames(made)
        for ring in (made.ring(0), made.ring(1)):
            for number, word in damage:
                os.pwrite(made.fd, word.to_bytes(8, "little"), ring + 8 * number)
        for half in ("taken", "given"):
            for field, value in zip(("group", "members", "base"), side_words, strict=True):
                made.write(value, made.side(0), "rway_side", half, field)
        before, refusal = left_behind(), RefusalCause.COUNTERS
        try:
            with made.attach(0, incarnation=2) as a:
                count_losses([a])
                watch_losses([a], [a])
                a.consumers[0].receive()
                a.producers[0].send([FRAME])
        except RegionBrokenError:
            pass
        except RegionError as error:
            refusal = error.cause
        assert refusal is RefusalCause.COUNTERS
        assert left_behind() == before
