"""What remembering connections costs, with a thousand flows and with a million, in random order.

Twice: the judging alone (parse and look-up, in bursts, ns per frame), and the whole hop of `bench hop` with a firewall
that remembers, where the frames of a million flows pass between two processes.
"""

from __future__ import annotations

import time

from bench.fabric import Workers
from bench.form import BenchError, Report, Round, Row, Snapshot, duel, less_is_better, rate_rows
from bench.hop import ringway_hop
from bench.native import lib

FEW, MANY = 1 << 10, 1 << 20
ROOM = 2 * MANY  # connections that the table has places for
WARM_UP_S = 60.0
LIMIT = 2.0  # how many times the cost of few flows many of them may have


class _Flows:
    """The one chain, with so many flows while it runs."""

    def __init__(self, chain: Workers, flows: int) -> None:
        self.name = f"{flows} flows"
        self._chain = chain
        self._flows = flows

    def resume(self) -> None:
        self._chain.set_flows(self._flows)
        self._chain.resume()

    def pause(self) -> None:
        self._chain.pause()

    def read(self) -> Snapshot:
        return self._chain.read()


def _judging_ns(flows: int) -> float:
    found = float(lib.bench_flow_ns(2 * flows, flows))  # half full, as the hop's table is
    if found <= 0:
        raise BenchError(f"a filter with {flows} connections could not be made or asked: is there memory for it?")
    return found


def _judging(rounds: int) -> list[Row]:
    few, many = [], []
    for _ in range(rounds):
        few.append(_judging_ns(FEW))
        many.append(_judging_ns(MANY))
    limits = [LIMIT * one for one in few]
    note = f"{FEW} flows: {sorted(few)[len(few) // 2]:.0f} ns; the limit is {LIMIT:.0f} times that"
    return [less_is_better(f"judging a frame, {MANY} flows", "ns", many, limits, "limit", note)]


def _hop(rounds: int, seconds: float) -> list[Row]:
    with ringway_hop(f"connections = {ROOM}") as chain:
        few, many = _Flows(chain, FEW), _Flows(chain, MANY)
        # The first frame of each flow makes its connection known, which is not what is measured.
        many.resume()
        before = many.read().frames
        deadline = time.monotonic() + WARM_UP_S
        while many.read().frames - before < 8 * MANY:
            if time.monotonic() > deadline:
                raise BenchError(f"{8 * MANY} frames were not through in {WARM_UP_S:.0f} s; see build/bench/")
            time.sleep(0.05)
        many.pause()
        played: list[Round] = duel([many, few], rounds, seconds)
    note = "frames per second, so 0.5 is the limit; one hop, headers parsed, every connection remembered"
    return rate_rows(f"hop of 64 B, {MANY} flows", "Mframes/s", 1e6, played, many.name, few.name, note)


def run(quick: bool) -> Report:
    rounds, seconds = (2, 0.1) if quick else (11, 0.25)
    return Report("flow", [*_judging(rounds), *_hop(rounds, seconds)])
