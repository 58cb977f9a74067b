"""Ends of this release and of the one before share a region, whichever of them made it."""

from __future__ import annotations

import os
import select
from typing import Any

import pytest

from ringway.shm import Geometry, read_region
from ringway.shm._native import ffi, lib
from tests.system.fabric_fixtures import until
from tests.upgrade.conftest import Releases
from tests.upgrade.end import BURST, frame
from tests.upgrade.link import SMALL, A, B, Link

pytestmark = pytest.mark.timeout(300)  # the first test may have to build the release before

MIXED = [
    ("tree", "before", "tree"),
    ("tree", "tree", "before"),
    ("before", "before", "tree"),
    ("before", "tree", "before"),
    ("before", "tree", "tree"),
    ("tree", "before", "before"),
]
COUNT = 400
SHORT = 30  # number of a frame of 14 bytes, one slot


def exchange(link: Link, ends: list[Any], count: int) -> None:
    for end in ends:
        end.start("exchange", count=count)
    for end in ends:
        end.answer()


def check_books(link: Link, releases: Releases, count: int) -> None:
    """After an exchange: each ring has carried what was sent, and readers of both releases read the same."""
    books = link.books(releases["tree"])
    assert link.books(releases["before"]) == books
    for ring in books["rings"]:
        assert ring["balanced"]
        assert ring["offered"] == ring["delivered"] == count
        assert ring["in_flight"] == 0
        assert ring["head"] == ring["tail"] > count  # some took several slots
        assert ring["produced"]["bytes"] == ring["consumed"]["bytes"]
        assert ring["produced"]["drops"] == ring["consumed"]["drops"] == {}


@pytest.mark.parametrize(("maker", "a", "b"), MIXED)
def test_frames_of_all_lengths_cross_in_both_directions(releases: Releases, maker: str, a: str, b: str) -> None:
    with Link(releases[maker]) as link:
        ends = [link.end(releases[a], A), link.end(releases[b], B)]
        exchange(link, ends, COUNT)
        check_books(link, releases, COUNT)
        for end in ends:
            end.ask("finish")
        check_books(link, releases, COUNT)
        assert [side[0] for side in link.books(releases["before"])["sides"]] == ["DETACHED"] * 2


@pytest.mark.full
@pytest.mark.parametrize(("maker", "a", "b"), MIXED)
@pytest.mark.parametrize("geometry", [(1, 1024, 2048, 64), (16, 64, 256, 64), (4, 256, 1024, 512)])
def test_many_frames_cross_in_every_shape(
    releases: Releases, maker: str, a: str, b: str, geometry: tuple[int, int, int, int]
) -> None:
    with Link(releases[maker], geometry) as link:
        exchange(link, [link.end(releases[a], A), link.end(releases[b], B)], 3_000)
        check_books(link, releases, 3_000)


@pytest.mark.parametrize(("sleeper", "ringer"), [("before", "tree"), ("tree", "before")])
def test_a_sleeping_consumer_is_rung_by_the_other_release(releases: Releases, sleeper: str, ringer: str) -> None:
    """It is stopped once it sleeps, so that its bell is seen before it is heard."""
    with Link(releases["tree"]) as link:
        a, b = link.end(releases[ringer], A), link.end(releases[sleeper], B)
        b.ask("sleep", half="consumer", queue=1)
        until(lambda: ring_of(link, A, 1).consumed.sleeps > 0, "the consumer sleeps")
        bell = link.bells[A][1][1][0]
        with b.stopped():
            assert not rung(bell, 0)
            assert a.ask("send", queue=1, numbers=[0]) == 1
            assert rung(bell, 10)
        assert b.ask("woken")
        assert b.ask("receive", queue=1) == [0]


@pytest.mark.parametrize(("sleeper", "ringer"), [("before", "tree"), ("tree", "before")])
def test_a_producer_that_waits_for_room_is_rung_by_the_other_release(
    releases: Releases, sleeper: str, ringer: str
) -> None:
    with Link(releases["tree"]) as link:
        a, b = link.end(releases[sleeper], A), link.end(releases[ringer], B)
        assert a.ask("send", queue=1, numbers=[SHORT] * SMALL[1]) == SMALL[1]
        assert a.ask("send", queue=1, numbers=[SHORT]) == 0
        a.ask("sleep", half="producer", queue=1)
        until(lambda: ring_of(link, A, 1).produced.sleeps > 0, "the producer sleeps")
        bell = link.bells[A][1][0][0]
        with a.stopped():
            assert not rung(bell, 0)
            for _ in range(SMALL[1] // BURST):  # it wants half the ring
                assert b.ask("receive", queue=1) == [SHORT] * BURST
            assert rung(bell, 10)
        assert a.ask("woken")
        assert a.ask("send", queue=1, numbers=[SHORT]) == 1


def ring_of(link: Link, side: int, queue: int) -> Any:
    return read_region(link.fd).rings[side * SMALL[0] + queue]


def rung(bell: int, seconds: float) -> bool:
    """Is there a byte in it?"""
    return bool(select.select([bell], [], [], seconds)[0])


def test_books_with_frames_in_flight_are_read_alike(releases: Releases) -> None:
    with Link(releases["before"]) as link:
        a, b = link.end(releases["before"], A), link.end(releases["tree"], B)
        assert a.ask("send", queue=2, numbers=list(range(10))) == 10
        assert b.ask("send", queue=0, numbers=list(range(5))) == 5
        books = link.books(releases["tree"])
        assert link.books(releases["before"]) == books
        in_flight = {(ring["producing_side"], ring["queue"]): ring["in_flight"] for ring in books["rings"]}
        assert in_flight == {(A, 0): 0, (A, 1): 0, (A, 2): 10, (B, 0): 5, (B, 1): 0, (B, 2): 0}
        assert all(ring["balanced"] for ring in books["rings"])


def test_ends_of_the_release_before_leave_out_of_account_what_a_later_minor_may_fill(releases: Releases) -> None:
    """Header, sides and ring controls, wherever theirs has pad or reserved bytes."""
    before = releases["before"]
    with Link(before) as link:
        writer = link.apart(before)
        read = writer.ask("read", fd=link.fd)
        filled = writer.ask("scribble", fd=link.fd)
        assert filled > 2 * 3072 + 2 * SMALL[0] * 800  # nearly all of a side, and most of a control
        os.pwrite(link.fd, b"\xff\xff", ffi.offsetof("struct rway_header", "minor"))
        os.pwrite(link.fd, b"\xff" * 4, ffi.offsetof("struct rway_header", "features_optional"))
        assert writer.ask("read", fd=link.fd) == read
        ends = [link.end(before, A), link.end(before, B)]
        exchange(link, ends, COUNT)
        for end in ends:
            end.ask("finish")
        books = writer.ask("read", fd=link.fd)
        assert all(ring["balanced"] and ring["delivered"] == COUNT for ring in books["rings"])
        assert writer.ask("scribbled", fd=link.fd), "they have written there, too"


@pytest.mark.parametrize(
    ("field", "value", "cause"),
    [("major", 2, "VERSION"), ("features_required", 1 << 31, "FEATURE"), ("features_readable", 1, "FEATURE")],
)
def test_an_end_of_the_release_before_stays_away_from_what_it_is_told_it_cannot_know(
    releases: Releases, field: str, value: int, cause: str
) -> None:
    size = ffi.sizeof(dict(ffi.typeof("struct rway_header").fields)[field].type)
    with Link(releases["tree"]) as link:
        os.pwrite(link.fd, value.to_bytes(size, "little"), ffi.offsetof("struct rway_header", field))
        assert link.offer(releases["before"], A)[1] == cause


def test_the_frames_of_these_tests_are_of_many_lengths_and_need_many_slots() -> None:
    geometry = Geometry(*SMALL)
    lengths = {len(frame(A, 0, number, geometry)) for number in range(COUNT)}
    assert {lib.RWAY_FRAME_MIN, 255, 256, 257, geometry.shape().frame_max} < lengths
    assert len(lengths) > 200
    assert frame(A, 0, 1, geometry) != frame(B, 0, 1, geometry)
    assert len(frame(A, 0, SHORT, geometry)) == lib.RWAY_FRAME_MIN
