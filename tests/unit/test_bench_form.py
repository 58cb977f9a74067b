"""The arithmetic of the benches: what is paired with what, which way a ratio points, and what is an error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import form, huge
from bench.board import Board
from bench.fabric import Worker, Workers
from bench.form import BenchError, Round, Snapshot, Window, duel, less_is_better, more_is_better, quartiles, rate_rows

NEAR, FAR = form.NEAR_NS / 2, form.NEAR_NS * 2
SECOND_NS = 1_000_000_000


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cores are measured, and nothing has to settle."""
    monkeypatch.setattr(form, "distance_ns", lambda: NEAR)
    monkeypatch.setattr(form, "SETTLE_S", 0.0)
    monkeypatch.setattr(form, "PATIENCE_S", 0.0)


class Scripted:
    """Delivers what is written down for each of its windows, and has a clock on which each takes two seconds."""

    def __init__(self, name: str, delivers: Sequence[int], log: list[str] | None = None) -> None:
        self.name = name
        self.log = [] if log is None else log
        self._delivers = iter(delivers)
        self._now = Snapshot(0, 0)
        self._begun = False

    def resume(self) -> None:
        self.log.append(f"{self.name} goes on")
        self._begun = False
        self._left = next(self._delivers, 0)

    def pause(self) -> None:
        self.log.append(f"{self.name} stops")

    def read(self) -> Snapshot:
        if self._begun:
            frames, self._left = self._now.frames + self._left, 0
            self._now = Snapshot(self._now.time_ns + 2 * SECOND_NS, frames, lost=frames * 2, cpu_ns=frames * 3)
        self._begun = True
        return self._now


def window(frames: int, distance_ns: float = NEAR) -> Window:
    return Window(distance_ns, seconds=0.5, frames=frames, lost=0, cpu_ns=0)


def turn(ours: Window, peer: Window) -> Round:
    return {"ours": ours, "peer": peer}


def play(delivers: dict[str, Sequence[int]], rounds: int) -> list[Round]:
    return duel([Scripted(name, each) for name, each in delivers.items()], rounds, seconds=0.0)


@pytest.mark.usefixtures("at_once")
def test_a_window_holds_what_its_counters_grew_by() -> None:
    first, second = play({"ours": [10, 70]}, rounds=2)
    assert first["ours"] == Window(NEAR, seconds=2.0, frames=10, lost=20, cpu_ns=30)
    assert second["ours"] == Window(NEAR, seconds=2.0, frames=70, lost=140, cpu_ns=210)
    assert second["ours"].rate == 35


@pytest.mark.usefixtures("at_once")
def test_one_contestant_runs_at_a_time_and_who_begins_changes() -> None:
    log: list[str] = []
    duel([Scripted("a", [1, 1], log), Scripted("b", [1, 1], log)], rounds=2, seconds=0.0)
    order = ("a", "b", "b", "a")
    assert log == [f"{name} {what}" for name in order for what in ("goes on", "stops")]


@pytest.mark.usefixtures("at_once")
def test_a_contestant_that_delivers_nothing_is_an_error_whoever_it_is() -> None:
    with pytest.raises(BenchError, match="peer delivered nothing in 2 windows"):
        play({"ours": [5, 5], "peer": [0, 0]}, rounds=2)
    with pytest.raises(BenchError, match="ours delivered nothing in 2 windows"):
        play({"ours": [0, 0], "peer": [5, 5]}, rounds=2)


@pytest.mark.usefixtures("at_once")
def test_windows_in_which_the_peer_delivers_nothing_are_no_victories() -> None:
    played = play({"ours": [8, 8, 8], "peer": [4, 0, 4]}, rounds=3)
    (row,) = rate_rows("64 B", "frames/s", 1, played, "ours", "peer")
    assert row.ratio == 2.0
    assert row.windows == 2


@pytest.mark.usefixtures("at_once")
def test_windows_in_which_ours_delivers_nothing_count_against_it() -> None:
    played = play({"ours": [8, 0, 0], "peer": [4, 4, 4]}, rounds=3)
    (row,) = rate_rows("64 B", "frames/s", 1, played, "ours", "peer")
    assert row.ratio == 0.0
    assert row.windows == 3


def distances(monkeypatch: pytest.MonkeyPatch, *said: float) -> None:
    """The cores' distances of the coming windows; the last one stays."""
    left = list(said)
    monkeypatch.setattr(form, "distance_ns", lambda: left.pop(0) if len(left) > 1 else left[0])


@pytest.mark.usefixtures("at_once")
def test_rounds_are_added_until_one_kept_its_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    distances(monkeypatch, NEAR, FAR, FAR, NEAR, NEAR, FAR, FAR)
    played = play({"ours": [8] * 9, "peer": [4] * 9}, rounds=2)
    assert len(played) == 4
    assert [row.case for row in rate_rows("64 B", "frames/s", 1, played, "ours", "peer")] == ["64 B, far"]


@pytest.mark.usefixtures("at_once")
def test_cores_that_never_keep_their_distance_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    distances(monkeypatch, *[NEAR, FAR, FAR, NEAR] * 20)
    with pytest.raises(BenchError, match="within each of 14 rounds: nothing can be compared; run it again"):
        play({"ours": [8] * 40, "peer": [4] * 40}, rounds=2)


@pytest.mark.usefixtures("at_once")
def test_a_contestant_is_stopped_when_its_counters_cannot_be_read() -> None:
    class Broken(Scripted):
        def read(self) -> Snapshot:
            raise BenchError("3 frames came damaged")

    broken = Broken("ours", [])
    with pytest.raises(BenchError, match="damaged"):
        duel([broken], rounds=1, seconds=0.0)
    assert broken.log == ["ours goes on", "ours stops"]


@pytest.mark.usefixtures("at_once")
def test_a_window_without_a_result_goes_on_until_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Scripted):
        """Its first frame comes with the fifth look."""

        looks = 0

        def read(self) -> Snapshot:
            self.looks += 1
            return Snapshot(self.looks * SECOND_NS, frames=int(self.looks >= 5))

    monkeypatch.setattr(form, "PATIENCE_S", 60.0)
    (only,) = duel([Late("ours", [])], rounds=1, seconds=0.0)
    assert only["ours"].frames == 1
    assert only["ours"].seconds >= 4, "and its rate is that of the whole time"


def test_only_windows_of_one_class_and_one_round_are_paired() -> None:
    played = [
        turn(window(30), window(10)),
        turn(window(30), window(1, FAR)),  # the cores moved between the two: compared with nothing
        turn(window(4, FAR), window(1)),
        turn(window(4, FAR), window(2, FAR)),
    ]
    near, far = rate_rows("64 B", "frames/s", 1, played, "ours", "peer")
    assert (near.case, near.ratio, near.windows) == ("64 B, near", 3.0, 1)
    assert (far.case, far.ratio, far.windows) == ("64 B, far", 2.0, 1)


def test_there_is_no_row_where_no_round_had_two_windows_of_one_class() -> None:
    assert rate_rows("64 B", "frames/s", 1, [turn(window(3), window(3, FAR))], "ours", "peer") == []


def test_rates_are_per_second_and_scaled_and_say_whom_they_are_against() -> None:
    (row,) = rate_rows("64 B", "kframes/s", 1e3, [turn(window(6000), window(3000))], "ours", "peer", "said")
    assert (row.ours, row.peer, row.unit, row.against, row.notes) == (12.0, 6.0, "kframes/s", "peer", "said")


def test_the_ratio_of_rates_is_ours_by_the_peers() -> None:
    assert more_is_better("case", "unit", [6.0], [3.0], "peer").ratio == 2.0


def test_the_ratio_of_latencies_is_the_peers_by_ours() -> None:
    assert less_is_better("case", "unit", [3.0], [6.0], "peer").ratio == 2.0


def test_the_ratio_is_the_median_of_pairs_and_not_a_ratio_of_medians() -> None:
    row = more_is_better("case", "unit", [1.0, 10.0, 30.0], [1.0, 2.0, 40.0], "peer")
    assert (row.ours, row.peer) == (10.0, 2.0)
    assert row.ratio == 1.0


def test_values_that_are_not_paired_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        more_is_better("case", "unit", [1.0, 2.0], [1.0], "peer")


def test_a_row_without_one_result_of_the_peer_is_an_error() -> None:
    with pytest.raises(BenchError, match="64 B: memif has no window with any result"):
        more_is_better("64 B", "frames/s", [1.0, 2.0], [0.0, 0.0], "memif")


def test_quartiles_are_the_first_and_the_third() -> None:
    assert quartiles([5.0, 1.0, 4.0, 2.0, 3.0]) == [2.0, 4.0]
    assert quartiles([7.0]) == [7.0, 7.0]


def test_the_spread_has_quartiles_of_all_three_and_ours_lowest_window() -> None:
    row = more_is_better("case", "unit", [4.0, 8.0, 6.0, 10.0, 2.0], [2.0] * 5, "peer")
    assert row.spread == {"ours": [4.0, 8.0], "peer": [2.0, 2.0], "ratio": [2.0, 4.0], "lowest": [2.0 / 6.0]}


class Unstarted(Worker):
    """A worker's board, and no process behind it."""

    def __init__(self, frames: int, bad: int) -> None:
        self.board = Board()
        self.board.native.frames, self.board.native.bad = frames, bad
        self.pid = 0


def test_damaged_frames_are_an_error_and_not_counted() -> None:
    assert Workers("ringway", [Unstarted(frames=5, bad=0)]).read().frames == 5
    with pytest.raises(BenchError, match="2 frames came damaged or out of order"):
        Workers("ringway", [Unstarted(frames=5, bad=2)]).read()


class Pages:
    """The kernel's count of huge pages, some of them in use; there is memory for `room` of them."""

    def __init__(self, count: Path, total: int, used: int, room: int = 1000) -> None:
        self.count = count
        self._used, self._room = used, room
        count.write_text(str(total), encoding="ascii")

    def total(self) -> int:
        return int(self.count.read_text(encoding="ascii"))

    def look(self) -> tuple[int, int]:
        there = min(self.total(), self._room)
        return there, there - self._used


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pages:
    made = Pages(tmp_path / "nr_hugepages", total=20, used=15)
    monkeypatch.setattr(huge, "_COUNT", made.count)
    monkeypatch.setattr(huge, "huge_pages", made.look)
    return made


def test_huge_pages_are_added_to_those_in_use_and_put_back(pages: Pages, capsys: pytest.CaptureFixture[str]) -> None:
    with huge.reserved(100):
        assert pages.look() == (115, 100)
    assert pages.total() == 20
    assert "set from 20 to 115 for DPDK, and set back at the end" in capsys.readouterr().err


def test_huge_pages_that_are_free_are_used_as_they_are(pages: Pages, capsys: pytest.CaptureFixture[str]) -> None:
    with huge.reserved(5):
        assert pages.total() == 20
    assert capsys.readouterr().err == ""


def test_huge_pages_are_put_back_after_an_error(pages: Pages) -> None:
    with pytest.raises(BenchError, match="testpmd"), huge.reserved(100):
        raise BenchError("testpmd: ended with 1")
    assert pages.total() == 20


def test_huge_pages_that_the_kernel_has_no_memory_for_are_put_back(
    monkeypatch: pytest.MonkeyPatch, pages: Pages
) -> None:
    full = Pages(pages.count, total=20, used=15, room=50)
    monkeypatch.setattr(huge, "huge_pages", full.look)
    with pytest.raises(BenchError, match="only 35 huge pages of 100"), huge.reserved(100):
        pass
    assert full.total() == 20


def test_who_may_not_reserve_huge_pages_is_told_what_root_would_do(
    monkeypatch: pytest.MonkeyPatch, pages: Pages, tmp_path: Path
) -> None:
    unwritable = tmp_path / "missing" / "nr_hugepages"
    monkeypatch.setattr(huge, "_COUNT", unwritable)
    remedy = r"needs 100 free huge pages and there are 5 .* as root: echo 115 > "
    with pytest.raises(BenchError, match=remedy), huge.reserved(100):
        pass
