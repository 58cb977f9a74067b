"""The form of every bench: contestants that run in turn, windows, paired ratios, and rows.

All contestants stay running from beginning to end, stopped (SIGSTOP) but one at a time. A window is a few hundred
milliseconds of one contestant, its counters read at both edges with their time. A round is one window of each, so the
windows of a round are less than a few seconds apart. Beside each window stands the distance of the two cores at that
moment: on many virtual machines it changes from minute to minute, and only windows of one class are compared.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bench.native import lib

NEAR_NS = 200.0  # a cache line there and back: below it two cores share a cache (85-110 seen), above they do not
PATIENCE_S = 1.0  # that a window without a result is longer, at most: on a busy machine a process waits for its core
EXTRA_ROUNDS = 12  # at most, to find one in which the cores kept their distance
SETTLE_S = 0.05  # from SIGCONT until rings and caches are as they are in the long run


class BenchError(Exception):
    """A bench that cannot say anything: what failed and what to do about it."""


@dataclass(frozen=True)
class Snapshot:
    """A contestant's counters at one moment; each only grows."""

    time_ns: int
    frames: int  # delivered, and checked where the row says so
    lost: int = 0
    cpu_ns: int = 0


class Contestant(Protocol):
    """Something that does the work: a set of processes that stay running."""

    name: str

    def resume(self) -> None: ...
    def pause(self) -> None: ...
    def read(self) -> Snapshot: ...


@dataclass(frozen=True)
class Window:
    """What one contestant did in one window."""

    distance_ns: float
    seconds: float
    frames: int
    lost: int
    cpu_ns: int

    @property
    def near(self) -> bool:
        return self.distance_ns < NEAR_NS

    @property
    def rate(self) -> float:
        """Frames per second."""
        return self.frames / self.seconds


Round = dict[str, Window]  # by the contestants' names


@dataclass(frozen=True)
class Row:
    """One comparison. `ratio` is the median of paired windows, and always the more the better."""

    case: str
    unit: str
    ours: float
    peer: float
    ratio: float
    windows: int
    spread: dict[str, list[float]]  # quartiles of ours, peer and ratio; `lowest`: ours' worst window over its median
    against: str = "peer"  # the peer's name; "limit" where ours is held against a stated number
    notes: str = ""


@dataclass(frozen=True)
class Report:
    name: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)


def distance_ns() -> float:
    """A cache line from core to core and back, now."""
    return float(lib.bench_core_distance(0, 1))


def await_result(there: Callable[[], bool], seconds: float) -> None:
    """Return when it is there, or after so long: callers that need it look for themselves."""
    deadline = time.monotonic() + seconds
    while not there() and time.monotonic() < deadline:
        time.sleep(0.01)


def window(contestant: Contestant, seconds: float) -> Window:
    """Let it run for a while, alone; one that delivers nothing has a little longer, which its rate shows."""
    distance = distance_ns()
    contestant.resume()
    try:
        time.sleep(SETTLE_S)
        before = contestant.read()
        time.sleep(seconds)
        after = contestant.read()
        if after.frames == before.frames:
            await_result(lambda: contestant.read().frames > before.frames, PATIENCE_S)
            after = contestant.read()
    finally:
        contestant.pause()
    return Window(
        distance_ns=distance,
        seconds=(after.time_ns - before.time_ns) / 1e9,
        frames=after.frames - before.frames,
        lost=after.lost - before.lost,
        cpu_ns=after.cpu_ns - before.cpu_ns,
    )


def duel(contestants: Sequence[Contestant], rounds: int, seconds: float = 0.25) -> list[Round]:
    """Alternate their windows; the order changes with each round. BenchError when one of them delivers nothing.

    Where the cores changed their distance within each round, rounds are added until one can be compared: a short run
    on a restless machine would lose its rows silently. BenchError when there is still none.
    """
    played: list[Round] = []
    while len(played) < rounds or not any(map(_is_of_one_distance, played)):
        if len(played) == rounds + EXTRA_ROUNDS:
            raise BenchError(
                f"the two cores changed their distance within each of {len(played)} rounds: nothing can be compared;"
                " run it again when the machine is quieter"
            )
        at = len(played) % len(contestants)
        order = [*contestants[at:], *contestants[:at]]
        played.append({contestant.name: window(contestant, seconds) for contestant in order})
    for contestant in contestants:
        if not any(turn[contestant.name].frames for turn in played):
            raise BenchError(
                f"{contestant.name} delivered nothing in {len(played)} windows: that is an error and not a victory;"
                " look at its output in build/bench/"
            )
    return played


def _is_of_one_distance(turn: Round) -> bool:
    return len({played.near for played in turn.values()}) == 1


def quartiles(values: Sequence[float]) -> list[float]:
    """First and third."""
    if len(values) < 2:
        return [values[0], values[0]]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]


def more_is_better(
    case: str, unit: str, ours: Sequence[float], peer: Sequence[float], against: str, notes: str = ""
) -> Row:
    """A row of rates; the values are paired."""
    return _row(case, unit, ours, peer, [a / b for a, b in zip(ours, peer, strict=True) if b], against, notes)


def less_is_better(
    case: str, unit: str, ours: Sequence[float], peer: Sequence[float], against: str, notes: str = ""
) -> Row:
    """A row of latencies, costs or times; the values are paired."""
    return _row(case, unit, ours, peer, [b / a for a, b in zip(ours, peer, strict=True) if a], against, notes)


def _row(
    case: str,
    unit: str,
    ours: Sequence[float],
    peer: Sequence[float],
    ratios: Sequence[float],
    against: str,
    notes: str,
) -> Row:
    if not ratios:
        raise BenchError(f"{case}: {against} has no window with any result; see build/bench/ for what it said")
    middle = statistics.median(ours)
    return Row(
        case=case,
        unit=unit,
        ours=middle,
        peer=statistics.median(peer),
        ratio=statistics.median(ratios),
        windows=len(ratios),
        spread={
            "ours": quartiles(ours),
            "peer": quartiles(peer),
            "ratio": quartiles(ratios),
            "lowest": [min(ours) / middle if middle else 0.0],
        },
        against=against,
        notes=notes,
    )


def rate_rows(
    case: str, unit: str, scale: float, rounds: Sequence[Round], ours: str, peer: str, notes: str = ""
) -> list[Row]:
    """A row for each class of distance in which both had windows in the same round."""
    rows = []
    for near in (True, False):
        pairs = [(turn[ours], turn[peer]) for turn in rounds if turn[ours].near == turn[peer].near == near]
        if pairs:
            rows.append(
                more_is_better(
                    f"{case}, {'near' if near else 'far'}",
                    unit,
                    [a.rate / scale for a, _ in pairs],
                    [b.rate / scale for _, b in pairs],
                    peer,
                    notes,
                )
            )
    return rows


def stop(*pids: int) -> None:
    _signal(signal.SIGSTOP, pids)


def go_on(*pids: int) -> None:
    _signal(signal.SIGCONT, pids)


def _signal(number: signal.Signals, pids: Sequence[int]) -> None:
    for pid in pids:
        os.kill(pid, number)
