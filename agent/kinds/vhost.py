"""Ports of kind "vhost": a stock guest's virtio-net device, whose front end comes over a socket."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ringway.agent.errors import AgentCause, AgentError
from ringway.agent.fork import let_go_when_forked
from ringway.agent.interface import Owner
from ringway.agent.port import Port
from ringway.agent.runner import (
    PortRunner,
    Terms,
    close_loops,
    closed_on_error,
    give_back,
    new_loop,
    serve,
    start_loops,
)
from ringway.control.kinds import Kind, Vhost
from ringway.control.messages import Offer, WhenFull
from ringway.engine.loop import Loop
from ringway.shm._native import lib
from ringway.vhost.back_end import QueuePairs
from ringway.vhost.server import Server, SocketError


def run(port: Port, terms: Terms) -> PortRunner | None:
    runner = VhostRunner(port, terms)
    terms.log(
        f"port {port.name}: front ends are {'met' if _settings(port.offer).connect else 'awaited'} at {runner.path}"
    )
    return runner


def tidy(_owner: Owner, _wanted: Collection[Kind]) -> list[str]:
    """A socket is removed when its pump stops; one that a killed pump has left is taken over by the next."""
    return []


def _settings(offer: Offer) -> Vhost:
    assert isinstance(offer.settings, Vhost)
    return offer.settings


class VhostRunner:
    """Joins a guest's queue pairs to the queues of a port's link. Loop i of n serves the queues i, i + n, …"""

    def __init__(self, port: Port, terms: Terms) -> None:
        settings = _settings(port.offer)
        region = port.region
        self.ports: tuple[Port, ...] = (port,)
        self.loops: list[Loop] = []
        self.problem = ""
        self.path = settings.socket or str(terms.runtime / "vhost" / f"{port.vm}.{port.name}")
        self._jobs: list[Any] = []
        self._pairs: QueuePairs | None = None
        self._server: Server | None = None
        port.run_by_agent(True)
        let_go_when_forked(self)
        with closed_on_error(self):
            for index in range(min(region.geometry.queues, terms.most_loops)):
                new_loop(self.loops, f"{port.name}/{index}", terms.spin_us)
            serve(port, len(self.loops))
            for queue, (producer, consumer) in enumerate(zip(region.producers, region.consumers, strict=True)):
                loop = self.loops[queue % len(self.loops)]
                job = lib.rway_pair_new(producer.native, consumer.native, port.frame_max)
                self._jobs.append(loop.add(job, producer, consumer))
            self._set_full(port.offer)
            consumers = [consumer.native for consumer in region.consumers]
            self._pairs = QueuePairs(self._jobs, consumers, settings.sealed, self._serve)
            start_loops(self.loops)
            try:
                mode = None if settings.connect else int(settings.mode, 8)
                self._server = Server(self.path, mode, self._pairs, f"{port.vm}.{port.name}", terms.log)
            except SocketError as error:
                raise AgentError(AgentCause.SOCKET, str(error)) from None
            self._server.start()

    def _serve(self, pairs: int) -> None:
        """The peer's frames go by the guest's queue pairs, and while it has none by a queue for each loop."""
        self.ports[0].region.serve(pairs or (1 << len(self.loops)) - 1)

    def _set_full(self, offer: Offer) -> None:
        for job in self._jobs:
            lib.rway_pair_set_full(job, offer.full == "drop")

    def takes(self, offer: Offer) -> bool:
        """What a full ring means is changed in place; all else takes a new session."""
        if _settings(offer) != _settings(self.ports[0].offer):
            return False
        self._set_full(offer)
        return True

    def try_again(self) -> None:
        """Front ends are awaited all the time."""

    def follow_peer(self, _now: float) -> float | None:
        return None

    def told(self, _port: Port, /) -> str:
        return self._server.told() if self._server is not None else ""

    def when_full(self, port: Port) -> WhenFull:
        return port.offer.full or "wait"

    def failed(self) -> bool:
        return self._server is not None and self._server.failed()

    def leave_to_parent(self) -> None:
        """In a forked child: the guest's memory is none of its business."""
        if self._server is not None:
            self._server.leave_to_parent()
            self._server = None
        if self._pairs is not None:
            self._pairs.leave_to_parent()
            self._pairs = None

    def close(self) -> None:
        """The session before the loops, and the guest's memory last."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._jobs.clear()
        close_loops(self.loops)
        if self._pairs is not None:
            self._pairs.close()
            self._pairs = None
        give_back(self.ports)
