"""An end that is killed under traffic is continued by one of the other release, on the same region, and back again."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.system.fabric_fixtures import until
from tests.upgrade.conftest import Releases
from tests.upgrade.end import BURST, logged
from tests.upgrade.link import SMALL, A, B, EndProcess, Link
from tests.upgrade.release import Release

pytestmark = pytest.mark.timeout(300)  # the first test may have to build the release before

QUEUES = range(SMALL[0])
INCARNATION = 24  # bits of a frame's number that are below those for the incarnation that sent it


class Succession:
    """One side's end stays. At the other, each is killed when it has sent and received on all queues, for the next."""

    def __init__(self, link: Link, side: int, staying: Release, logs: Path) -> None:
        self.link = link
        self.side = side
        self.kills = 0
        self._logs = logs
        self._staying = self._started(staying, 1 - side, 1)
        self._current: EndProcess | None = None
        self._incarnation = 0

    def _log(self, side: int, incarnation: int) -> Path:
        return self._logs / f"{'ab'[side]}{incarnation}"

    def _started(self, release: Release, side: int, incarnation: int) -> EndProcess:
        end = self.link.end(release, side, incarnation)
        end.ask("stream", first=incarnation << INCARNATION, log=str(self._log(side, incarnation)))
        return end

    def next(self, release: Release) -> None:
        """Kill who is there, and continue with an end of that release until frames pass both ways on all queues."""
        if self._current is not None:
            self._current.kill()
            self.kills += 1
        self._incarnation += 1
        self._current = self._started(release, self.side, self._incarnation)
        until(self._passes_both_ways, f"frames pass both ways on all queues of incarnation {self._incarnation}")

    def _passes_both_ways(self) -> bool:
        come = {queue for queue, _ in logged(self._log(self.side, self._incarnation))}
        arrived = logged(self._log(1 - self.side, 1))
        gone = {queue for queue, number in arrived if number >> INCARNATION == self._incarnation}
        return come == gone == set(QUEUES)

    def end(self) -> tuple[list[int], list[int]]:
        """Send no more, and let all arrive; the next numbers of the end that stayed, and of the last of the others."""
        assert self._current is not None
        both = (self._staying, self._current)
        sent = (self._staying.ask("halt"), self._current.ask("halt"))
        until(lambda: all(ring["in_flight"] == 0 for ring in self._rings()), "all has arrived")
        for end in both:
            end.ask("finish")
        return sent

    def _rings(self) -> list[Any]:
        assert self._current is not None
        rings: list[Any] = self._current.ask("read", fd=self.link.fd)["rings"]
        return rings

    def arrived(self, side: int, queue: int) -> list[int]:
        """Numbers of the frames that ends of that side have received, in order."""
        incarnations = range(1, self._incarnation + 1 if side == self.side else 2)
        found = [entry for each in incarnations for entry in logged(self._log(side, each))]
        return [number for of, number in found if of == queue]


def check_arrived(numbers: list[int], last: int, lost_most: int) -> None:
    """At most once, in order, no gap but what killed receivers had in hand, and all up to the last."""
    assert all(before < after for before, after in pairwise(numbers))
    assert numbers[-1] == last
    for incarnation in {number >> INCARNATION for number in numbers}:
        own = [number for number in numbers if number >> INCARNATION == incarnation]
        assert own[0] - (incarnation << INCARNATION) <= lost_most
        assert own[-1] - own[0] + 1 - len(own) <= lost_most


def check_books(link: Link, releases: Releases, kills: int) -> None:
    """Both releases read the same. A kill between a count and its counter leaves them a burst apart."""
    books = link.books(releases["tree"])
    assert link.books(releases["before"]) == books
    for ring in books["rings"]:
        assert ring["in_flight"] == 0
        assert abs(ring["produced"]["frames"] - ring["consumed"]["frames"]) <= 2 * BURST * kills
    incarnations = sorted(side[2] for side in books["sides"])
    assert incarnations == [1, kills + 1]


def succeed(releases: Releases, logs: Path, maker: str, staying: str, side: int, names: list[str]) -> None:
    with Link(releases[maker]) as link:
        succession = Succession(link, side, releases[staying], logs)
        for name in names:
            succession.next(releases[name])
        stayed, followed = succession.end()
        for queue in QUEUES:
            check_arrived(succession.arrived(1 - side, queue), followed[queue] - 1, lost_most=0)
            at_most = BURST * succession.kills
            check_arrived(succession.arrived(side, queue), stayed[queue] - 1, lost_most=at_most)
        check_books(link, releases, succession.kills)


UP_AND_DOWN = ["before", "tree", "before", "tree"]
DOWN_AND_UP = ["tree", "before", "tree", "before"]


@pytest.mark.parametrize(
    ("maker", "staying", "side", "names"),
    [
        pytest.param("tree", "tree", A, UP_AND_DOWN, id="before a new end"),
        pytest.param("before", "before", B, DOWN_AND_UP, id="before an old end, on an old region"),
    ],
)
def test_a_killed_end_is_continued_by_the_other_release(
    releases: Releases, tmp_path: Path, maker: str, staying: str, side: int, names: list[str]
) -> None:
    succeed(releases, tmp_path, maker, staying, side, names)


@pytest.mark.full
@pytest.mark.parametrize("maker", ["before", "tree"])
@pytest.mark.parametrize("staying", ["before", "tree"])
@pytest.mark.parametrize("side", [A, B])
def test_releases_that_follow_each_other_for_long_lose_nothing_but_bursts(
    releases: Releases, tmp_path: Path, maker: str, staying: str, side: int
) -> None:
    succeed(releases, tmp_path, maker, staying, side, UP_AND_DOWN * 5)


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param([1, 2, 2, 3, 9], id="one twice"),
        pytest.param([1, 3, 2, 4, 9], id="two the wrong way round"),
        pytest.param([1, 2, 8, 9], id="more missing than were lost"),
        pytest.param([1, 2, 3], id="the last missing"),
        pytest.param([5, 6, 7, 8, 9], id="the first missing"),
    ],
)
def test_the_check_of_what_arrived_finds(numbers: list[int]) -> None:
    check_arrived([1, 2, 4, 6, 8, 9], 9, lost_most=3)
    with pytest.raises(AssertionError):
        check_arrived(numbers, 9, lost_most=3)
