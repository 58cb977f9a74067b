"""A stack of mode "bridge" as it runs: one loop for each queue, and each serves all ports."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ringway.agent.losses import Losses
from ringway.agent.port import Port
from ringway.agent.runner import close_loops, closed_on_error, give_back, new_loop, serve, start_loops
from ringway.agent.wire import new_pipeline, way_out
from ringway.control.messages import WhenFull
from ringway.engine.loop import Loop
from ringway.shm import Consumer
from ringway.stack.bridge import Bridge
from ringway.stack.filter import Filter
from ringway.stack.function import Function


class BridgeRunner:
    """Joins those of a bridge's ports that are there. Loop i of n serves the queues i, i + n, … of all of them."""

    def __init__(
        self,
        ports: tuple[Port, ...],
        packet_filter: Filter,
        bridge: Bridge,
        functions: Sequence[Function],
        spin_us: int,
        most_loops: int,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.ports = ports
        self.loops: list[Loop] = []
        self._losses: Losses | None = None
        self._bridge = bridge
        self._numbers = {port: packet_filter.number_of(port.name) for port in ports}
        self._filter = packet_filter
        self._spin_us = spin_us
        self._count = min(most_loops, *(port.region.geometry.queues for port in ports))
        for port in ports:
            port.run_by_agent(True)
            serve(port, self._count)
        with closed_on_error(self):
            self._losses = Losses(ports, [(ports, ports)], log)
            self.use(functions)

    def use(self, functions: Sequence[Function]) -> None:
        close_loops(self.loops)
        try:
            for index in range(self._count):
                self._run_loop(index, functions)
            start_loops(self.loops)
        except BaseException:
            close_loops(self.loops)
            raise

    def _run_loop(self, index: int, functions: Sequence[Function]) -> None:
        loop = new_loop(self.loops, f"bridge/{index}", self._spin_us)
        pipeline = new_pipeline(loop, self._filter, functions)
        count = self._count
        sources: list[tuple[Consumer, int]] = []
        for port, number in self._numbers.items():
            pipeline.out(number, way_out(port, index, count))
            queues = range(index, port.region.geometry.queues, count)
            sources += [(port.region.consumers[queue], number) for queue in queues]
        pipeline.bridge(self._bridge, sources)

    def follow_settings(self) -> None:
        """There is none that it could follow."""

    def when_full(self, _: Port) -> WhenFull:
        return "drop"

    def told(self, port: Port) -> str:
        if port.offer.full == "wait":
            return "it does not wait when the ring is full: a bridge drops, so that no port stops the others"
        return ""

    def failed(self) -> bool:
        return False

    def close(self) -> None:
        close_loops(self.loops)
        if self._losses is not None:
            self._losses.close()
        give_back(self.ports)
