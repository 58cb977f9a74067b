"""Round trips of one frame of 64 bytes between two processes on two cores; polling and sleeping, in C and in Python."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Sequence

from bench.board import Board, Samples
from bench.fabric import Fabric, start
from bench.form import BenchError, Report, Row, Snapshot, await_result, distance_ns, go_on, less_is_better, stop
from bench.link import FABRIC

PERCENTILES = (0.5, 0.99, 0.999)
ENOUGH = 100  # round trips in a window; some thousands are usual


class PingPong:
    """A process that pings and one that answers."""

    def __init__(self, name: str, kind: str, ping: Sequence[str], pong: Sequence[str], fds: Sequence[int] = ()) -> None:
        self.name = name
        self.samples = Samples()
        self._boards = (Board(), Board())
        self._processes = []
        # The answering one first: what is sent before it listens would be lost, with some peers.
        for board, cpu, options in ((self._boards[1], 1, pong), (self._boards[0], 0, ["--pings", *ping])):
            common = [f"--cpu={cpu}", f"--board={board.fd}", f"--samples={self.samples.fd}"]
            command = [sys.executable, "-m", "bench.pingpong", kind, *common, *options]
            inherited = (board.fd, self.samples.fd, *fds)
            self._processes.append(start(f"pingpong-{name}-{cpu}".replace(" ", "-"), command, "ready", inherited))
        self._pids = [process.pid for process in self._processes]
        self.pause()

    def resume(self) -> None:
        go_on(*self._pids)

    def pause(self) -> None:
        stop(*self._pids)

    def read(self) -> Snapshot:
        return Snapshot(time.monotonic_ns(), self.samples.native.count)

    def close(self) -> None:
        """Nothing of theirs is of use any more."""
        for process in self._processes:
            process.kill()
            process.wait()


def _window(contestant: PingPong, seconds: float) -> tuple[float, list[float]]:
    """Distance of the cores, and percentiles of what came in that time, in microseconds."""
    distance = distance_ns()
    contestant.resume()
    try:
        time.sleep(0.02)
        first = contestant.read().frames
        time.sleep(seconds)
        await_result(lambda: contestant.read().frames >= first + ENOUGH, 10)
        last = contestant.read().frames
    finally:
        contestant.pause()
    trips = sorted(contestant.samples.between(first, last))
    if len(trips) < ENOUGH:
        raise BenchError(f"{contestant.name}: {len(trips)} round trips in 10 s; see build/bench/")
    return distance, [trips[min(len(trips) - 1, int(len(trips) * share))] / 1e3 for share in PERCENTILES]


def _rows(case: str, ours: PingPong, peers: Sequence[PingPong], rounds: int, seconds: float) -> list[Row]:
    contestants = [ours, *peers]
    found: dict[str, list[list[float]]] = {one.name: [] for one in contestants}
    distances = []
    for number in range(rounds):
        at = number % len(contestants)
        for one in (*contestants[at:], *contestants[:at]):
            distance, percentiles = _window(one, seconds)
            found[one.name].append(percentiles)
            distances.append(distance)
    note = f"cores {statistics.median(distances):.0f} ns apart ({min(distances):.0f} to {max(distances):.0f})"
    rows = []
    for peer in peers:
        for index, label in enumerate(("p50", "p99", "p99.9")):
            mine = [one[index] for one in found[ours.name]]
            theirs = [one[index] for one in found[peer.name]]
            rows.append(less_is_better(f"{case}, {label}", "us", mine, theirs, peer.name, note))
    return rows


@contextlib.contextmanager
def _link(name: str, kind: str) -> Iterator[PingPong]:
    with Fabric(FABRIC) as fabric:
        ping, pong = ([f"--runtime={fabric.runtime}", f"--vm={vm}"] for vm in ("left", "right"))
        with contextlib.closing(PingPong(name, kind, ping, pong)) as contestant:
            yield contestant


@contextlib.contextmanager
def _pipes() -> Iterator[PingPong]:
    there, back = os.pipe(), os.pipe()
    fds = (*there, *back)
    ping, pong = [f"{there[1]}", f"{back[0]}"], [f"{back[1]}", f"{there[0]}"]
    try:
        with contextlib.closing(PingPong("pipe", "kernel", ["--fds", *ping], ["--fds", *pong], fds)) as contestant:
            yield contestant
    finally:
        for fd in fds:
            os.close(fd)


@contextlib.contextmanager
def _datagrams() -> Iterator[PingPong]:
    with contextlib.ExitStack() as stack:
        left, right = (stack.enter_context(one) for one in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
        fds = (left.fileno(), right.fileno())
        ping, pong = (["--fds", str(fd), str(fd)] for fd in fds)
        yield stack.enter_context(contextlib.closing(PingPong("unix datagram", "kernel", ping, pong, fds)))


@contextlib.contextmanager
def _iceoryx2() -> Iterator[PingPong]:
    if importlib.util.find_spec("iceoryx2") is None:
        raise BenchError("iceoryx2 is not installed: ./run bench installs it once there is network; start it again")
    named = [f"--name=ringway-bench-{os.getpid()}"]
    with contextlib.closing(PingPong("iceoryx2", "iceoryx2", named, named)) as contestant:
        yield contestant


def run(quick: bool) -> Report:
    rounds, seconds = (2, 0.1) if quick else (15, 0.2)
    with _link("ringway", "polling") as ours, _iceoryx2() as peer, _datagrams() as datagram:
        rows = _rows("polling, C against Python", ours, [peer], rounds, seconds)
        with _link("ringway", "sleeping") as ours_sleeping, _pipes() as pipe:
            rows += _rows("sleeping, C", ours_sleeping, [pipe, datagram], rounds, seconds)
        with _link("ringway", "python") as ours_python:
            rows += _rows("polling, Python", ours_python, [peer], rounds, seconds)
    return Report("latency", rows, ["iceoryx2 from PyPI has a Python interface only: the like comparison is Python's."])
