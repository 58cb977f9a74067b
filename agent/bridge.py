"""A stack of mode "bridge" as it runs: one loop for each queue, and each serves all ports."""

from __future__ import annotations

from collections.abc import Callable

from ringway.agent.losses import Losses
from ringway.agent.port import Port
from ringway.agent.runner import close_loops, closed_on_error, give_back, new_loop, serve, start_loops
from ringway.agent.wire import way_out
from ringway.control.messages import WhenFull
from ringway.engine.loop import Loop
from ringway.shm import Consumer
from ringway.stack.bridge import Bridge
from ringway.stack.filter import Filter
from ringway.stack.pipeline import Pipeline


class BridgeRunner:
    """Joins those of a bridge's ports that are there. Loop i of n serves the queues i, i + n, … of all of them."""

    def __init__(
        self,
        ports: tuple[Port, ...],
        packet_filter: Filter,
        bridge: Bridge,
        spin_us: int,
        most_loops: int,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.ports = ports
        self.loops: list[Loop] = []
        self._losses: Losses | None = None
        self._bridge = bridge
        self._numbers = {port: packet_filter.number_of(port.name) for port in ports}
        count = min(most_loops, *(port.region.geometry.queues for port in ports))
        for port in ports:
            port.run_by_agent(True)
            serve(port, count)
        with closed_on_error(self):
            self._losses = Losses(ports, [(ports, ports)], log)
            for index in range(count):
                loop = new_loop(self.loops, f"bridge/{index}", spin_us)
                self._run_in(loop, packet_filter, index, count)
            start_loops(self.loops)

    def _run_in(self, loop: Loop, packet_filter: Filter, index: int, count: int) -> None:
        pipeline = Pipeline(loop)
        pipeline.filter(packet_filter.native)
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
