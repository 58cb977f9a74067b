"""Ports joined in pairs: a stack of mode "wire" as it runs, one loop for each queue of a pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ringway.agent.losses import Losses
from ringway.agent.port import Port
from ringway.agent.runner import close_loops, closed_on_error, give_back, new_loop, serve, start_loops
from ringway.control.messages import WhenFull
from ringway.engine.loop import Loop
from ringway.shm import Producer
from ringway.shm._native import lib
from ringway.stack.filter import Filter
from ringway.stack.function import Function
from ringway.stack.pipeline import Pipeline
from ringway.stack.steering import Steering

# For how long a full ring may stand still before what finds no room in it is dropped: an agent is killed and started
# again, or a process runs again on a crowded machine, in less; and TCP goes on where it was after a pause of so long.
_PATIENCE_US = 1_000_000


class WireRunner:
    """Forwards between two ports, both ways, past a filter.

    Loop i of n serves the incoming queues i, i + n, … and sends to the outgoing queues i, i + n, …, each flow into one
    of them, so that each ring keeps one producer and one consumer. All incoming queues are served, and the peers are
    told that 0 to n - 1 are wanted.
    """

    def __init__(
        self,
        first: Port,
        second: Port,
        packet_filter: Filter,
        functions: Sequence[Function],
        spin_us: int,
        most_loops: int,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.ports: tuple[Port, ...] = (first, second)
        self.loops: list[Loop] = []
        self._losses: Losses | None = None
        self._can_wait: list[tuple[Port, Any]] = []  # jobs that can, with the port that they send to
        self._filter = packet_filter
        self._spin_us = spin_us
        self._log = log
        self._count = min(most_loops, *(port.region.geometry.queues for port in self.ports))
        for port in self.ports:
            port.run_by_agent(True)
            serve(port, self._count)
        with closed_on_error(self):
            self.use(functions)

    def use(self, functions: Sequence[Function]) -> None:
        self._end_loops()
        self._watch_losses(sends_back=bool(functions))
        try:
            for index in range(self._count):
                self._run_loop(index, functions)
            self.follow_settings()
            start_loops(self.loops)
        except BaseException:
            self._end_loops()
            raise

    def _watch_losses(self, sends_back: bool) -> None:
        """Each direction by itself, unless functions may send by the port that a frame came in by."""
        if self._losses is not None:
            self._losses.close()
        first, second = ((port,) for port in self.ports)
        ways = [(self.ports, self.ports)] if sends_back else [(first, second), (second, first)]
        self._losses = Losses(self.ports, ways, self._log)

    def _run_loop(self, index: int, functions: Sequence[Function]) -> None:
        first, second = self.ports
        loop = new_loop(self.loops, f"{first.name}-{second.name}/{index}", self._spin_us)
        pipeline = new_pipeline(loop, self._filter, functions)
        for port in self.ports:
            pipeline.out(self._filter.number_of(port.name), way_out(port, index, self._count))
        for source, target in ((first, second), (second, first)):
            self._join_by_wire(pipeline, source, target, index)

    def _join_by_wire(self, pipeline: Pipeline, source: Port, target: Port, index: int) -> None:
        """One loop's part of one direction."""
        numbers = self._filter.number_of(source.name), self._filter.number_of(target.name)
        count = self._count
        queues = range(index, source.region.geometry.queues, count)
        outputs = range(index, target.region.geometry.queues, count)
        for queue in queues:
            job = pipeline.wire(source.region.consumers[queue], *numbers, 0)
            if len(queues) == len(outputs) == 1:  # of several inputs the first would take all room
                self._can_wait.append((target, job))

    def follow_settings(self) -> None:
        """Wait or drop, as the links say."""
        for target, job in self._can_wait:
            lib.rway_wire_wait(job, _PATIENCE_US if target.offer.full != "drop" else 0)

    def when_full(self, port: Port) -> WhenFull:
        can_wait = any(target is port for target, _ in self._can_wait)
        return "wait" if can_wait and port.offer.full != "drop" else "drop"

    def told(self, port: Port) -> str:
        if port.offer.full == "wait" and self.when_full(port) == "drop":
            return "it does not wait when the ring is full: its queues share loops (--loops)"
        return ""

    def failed(self) -> bool:
        return False

    def _end_loops(self) -> None:
        self._can_wait.clear()
        close_loops(self.loops)

    def close(self) -> None:
        self._end_loops()
        if self._losses is not None:
            self._losses.close()
        give_back(self.ports)


def new_pipeline(loop: Loop, packet_filter: Filter, functions: Sequence[Function]) -> Pipeline:
    """With the filter first: what functions change is not what its rules are about."""
    pipeline = Pipeline(loop)
    pipeline.filter(packet_filter.native)
    for function in functions:
        pipeline.function(function, packet_filter.port_names)
    return pipeline


def way_out(port: Port, index: int, count: int) -> Producer | Steering:
    """Of loop `index` of `count`: the queues `index`, `index` + `count`, …"""
    owned = range(index, port.region.geometry.queues, count)
    if len(owned) > 1:
        return Steering(port.region, sum(1 << queue for queue in owned))
    return port.region.producers[index]
