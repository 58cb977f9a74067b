"""Ports of kind "tap": the loops that join a kernel interface to the port's link."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Collection
from typing import Any

from ringway.agent.carrier import Carrier
from ringway.agent.errors import AgentError
from ringway.agent.interface import Owner, remove_orphans
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
from ringway.control.kinds import Kind, Tap
from ringway.control.messages import Offer, WhenFull
from ringway.engine.loop import Loop
from ringway.shm import BreakCause, DropCause, SideState
from ringway.shm._native import lib


def run(port: Port, terms: Terms) -> PortRunner | None:
    runner = TapRunner(port, terms)
    terms.log(f"interface {_settings(port.offer).interface} is up")
    return runner


def tidy(owner: Owner, wanted: Collection[Kind]) -> list[str]:
    interfaces = {settings.interface for settings in wanted if isinstance(settings, Tap) and settings.interface}
    return [f"interface {name}" for name in remove_orphans(owner, interfaces)]


def _settings(offer: Offer) -> Tap:
    assert isinstance(offer.settings, Tap)
    return offer.settings


class TapRunner:
    """Joins a kernel interface to a port's link, queue by queue. Loop i of n serves the queues i, i + n, …

    `problem` says what of the port's settings the kernel does not take, or what it lacks; the rest works.
    """

    def __init__(self, port: Port, terms: Terms) -> None:
        from ringway.agent.tap import TapInterface  # with pyroute2: 130 ms that agents without taps need not wait

        settings = _settings(port.offer)
        queues = port.region.geometry.queues
        self.ports: tuple[Port, ...] = (port,)
        self.loops: list[Loop] = []
        self.problem = ""
        self._carrier_problem = ""
        self._jobs: list[Any] = []
        port.run_by_agent(True)
        # The peer's own word, until the broker introduces it: an agent that is started again has the carrier at once.
        here = port.region.peer().state is SideState.ATTACHED
        self._carrier = Carrier(settings.carrier_delay_ms / 1000, here)
        self.tap: TapInterface | None = None
        with closed_on_error(self):
            self.tap = TapInterface(settings, terms.owner, port.offer.link_id, queues, port.frame_max, here)
            for index in range(min(queues, terms.most_loops)):
                new_loop(self.loops, f"{port.name}/{index}", terms.spin_us)
            serve(port, len(self.loops))
            for queue, fd in enumerate(self.tap.fds):
                producer, consumer = port.region.producers[queue], port.region.consumers[queue]
                loop = self.loops[queue % len(self.loops)]
                job = lib.rway_tap_new(fd, producer.native, consumer.native, self.tap.frame_max)
                loop.add(job, producer, consumer)
                self._jobs.append(job)
            self._set_full(port.offer)
            for producer, frames in zip(port.region.producers, self.tap.missed, strict=False):
                producer.drop(DropCause.DOWN, frames)
            self._set_up(settings)
            self.follow_peer(time.monotonic())
            start_loops(self.loops)

    def _set_full(self, offer: Offer) -> None:
        for job in self._jobs:
            lib.rway_tap_set_full(job, offer.full == "drop")

    def _set_up(self, settings: Tap) -> None:
        assert self.tap is not None
        self.problem = "; ".join(self.tap.set_up(settings, settings.mac or _steady_mac(self.ports[0])))

    def takes(self, offer: Offer) -> bool:
        """Change the settings to those of the offer, without a frame lost; false when it takes another runner."""
        from ringway.agent.tap import longest_frame

        settings, before = _settings(offer), _settings(self.ports[0].offer)
        frame_max = longest_frame(settings, self.ports[0].frame_max)
        assert self.tap is not None
        if (settings.interface, settings.offload, frame_max) != (before.interface, before.offload, self.tap.frame_max):
            return False
        self._carrier.delay = settings.carrier_delay_ms / 1000
        self._set_full(offer)
        try:
            self._set_up(settings)
        except AgentError as error:
            self.problem = str(error)  # the interface works as it was before, and `try_again` does what it says
        return True

    def try_again(self) -> None:
        """What the kernel has not taken before, it may take now."""
        if self.problem:
            self._set_up(_settings(self.ports[0].offer))

    def follow_peer(self, now: float) -> float | None:
        """Let the carrier be what the peer is. When to look again."""
        port = self.ports[0]
        on = self._carrier.follow(self._peer_is_here(port), now)
        try:
            if self.tap is not None and not self.failed():
                self.tap.set_carrier(on)
        except OSError as error:
            self._carrier_problem = f"the carrier does not follow the peer (Linux 5.0 can): {error.strerror}"
        return self._carrier.deadline()

    def _peer_is_here(self, port: Port) -> bool:
        return port.broken is BreakCause.WHOLE and port.peer_attached

    def told(self, _port: Port, /) -> str:
        reading = max((lib.rway_tap_error(job) for job in self._jobs), default=0)
        said = [f"reading the interface fails: {os.strerror(reading)}"] if reading else []
        said += [self.problem, self._carrier_problem, "" if self._carrier.on else "no carrier: the other end is away"]
        return "; ".join(filter(None, said))

    def when_full(self, port: Port) -> WhenFull:
        return port.offer.full or "wait"

    def failed(self) -> bool:
        """The interface was deleted."""
        return any(lib.rway_tap_gone(job) for job in self._jobs)

    def close(self) -> None:
        self._jobs.clear()
        close_loops(self.loops)
        if self.tap is not None:
            self.tap.close()
        give_back(self.ports)


def _steady_mac(port: Port) -> str:
    """The same after a restart: neighbours that have learnt it need not learn another. Locally administered."""
    named = f"{os.uname().nodename} {port.vm} {port.name}".encode()
    return bytes([2, *hashlib.sha256(named).digest()[:5]]).hex(":")
