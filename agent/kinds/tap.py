"""Ports of kind "tap": the loops that join a kernel interface to the port's link."""

from __future__ import annotations

import hashlib
import os
import time
from typing import Any

from ringway.agent.carrier import Carrier
from ringway.agent.errors import AgentError
from ringway.agent.interface import Owner
from ringway.agent.port import Port
from ringway.agent.runner import close_loops, closed_on_error, give_back, new_loop, serve, start_loops
from ringway.control.messages import Offer
from ringway.shm import BreakCause, DropCause, SideState
from ringway.shm._native import lib
from ringway.stack.loop import Loop


class TapRunner:
    """Joins a kernel interface to a port's link, queue by queue. Loop i of n serves the queues i, i + n, …

    `problem` says what of the port's settings the kernel does not take, or what it lacks; the rest works.
    """

    def __init__(self, port: Port, owner: Owner, spin_us: int, most_loops: int) -> None:
        from ringway.agent.tap import TapInterface  # with pyroute2: 130 ms that agents without taps need not wait

        offer = port.offer
        queues = port.region.geometry.queues
        self.ports: tuple[Port, ...] = (port,)
        self.loops: list[Loop] = []
        self.problem = ""
        self._carrier_problem = ""
        self._jobs: list[Any] = []
        port.run_by_agent(True)
        # The peer's own word, until the broker introduces it: an agent that is started again has the carrier at once.
        here = port.region.peer().state is SideState.ATTACHED
        self._carrier = Carrier(offer.carrier_delay_ms / 1000, here)
        self.tap: TapInterface | None = None
        with closed_on_error(self):
            self.tap = TapInterface(offer, queues, port.frame_max, owner, here)
            for index in range(min(queues, most_loops)):
                new_loop(self.loops, f"{port.name}/{index}", spin_us)
            serve(port, len(self.loops))
            for queue, fd in enumerate(self.tap.fds):
                producer, consumer = port.region.producers[queue], port.region.consumers[queue]
                loop = self.loops[queue % len(self.loops)]
                loop.watch(port.region, queue)
                job = lib.rway_tap_new(fd, producer.native, consumer.native, self.tap.frame_max)
                loop.add(job, producer, consumer)
                self._jobs.append(job)
            for producer, frames in zip(port.region.producers, self.tap.missed, strict=False):
                producer.drop(DropCause.DOWN, frames)
            self._set_up(offer)
            self.follow_peer(time.monotonic())
            start_loops(self.loops)

    def _set_up(self, offer: Offer) -> None:
        assert self.tap is not None
        self.problem = "; ".join(self.tap.set_up(offer, offer.mac or _steady_mac(self.ports[0])))

    def takes(self, offer: Offer) -> bool:
        """Change the settings to those of the offer, without a frame lost; false when it takes another runner."""
        from ringway.agent.tap import longest_frame

        port, before = self.ports[0], self.ports[0].offer
        frame_max = longest_frame(offer, port.frame_max)
        assert self.tap is not None
        if (offer.interface, offer.offload, frame_max) != (before.interface, before.offload, self.tap.frame_max):
            return False
        self._carrier.delay = offer.carrier_delay_ms / 1000
        try:
            self._set_up(offer)
        except AgentError as error:
            self.problem = str(error)  # the interface works as it was before, and `try_again` does what it says
        return True

    def try_again(self) -> None:
        """What the kernel has not taken before, it may take now."""
        if self.problem:
            self._set_up(self.ports[0].offer)

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

    def told(self) -> str:
        """What `show` says of the port beside its state."""
        reading = max((lib.rway_tap_error(job) for job in self._jobs), default=0)
        said = [f"reading the interface fails: {os.strerror(reading)}"] if reading else []
        said += [self.problem, self._carrier_problem, "" if self._carrier.on else "no carrier: the other end is away"]
        return "; ".join(filter(None, said))

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
