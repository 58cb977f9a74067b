"""What an agent runs over its attached ports: a tap's loops, and a forwarder's, one loop for each queue or fewer."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from ringway.agent.carrier import Carrier
from ringway.agent.errors import AgentError
from ringway.agent.interface import Owner
from ringway.agent.port import Port
from ringway.control.messages import Offer
from ringway.shm import BreakCause, DropCause, JoinState, SideState
from ringway.shm._native import lib
from ringway.stack.filter import Filter
from ringway.stack.loop import Loop
from ringway.stack.spread import Spread

_LET_PASS = 0.1  # seconds
# For how long a full ring may stand still before what finds no room in it is dropped: an agent is killed and started
# again, or a process runs again on a crowded machine, in less; and TCP goes on where it was after a pause of so long.
_PATIENCE_US = 1_000_000


class Runner(Protocol):
    """Something that uses ports until it is closed; only then may they be detached."""

    ports: tuple[Port, ...]
    loops: list[Loop]

    def failed(self) -> bool:
        """It cannot go on, and is to be closed and made again."""

    def close(self) -> None: ...


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
        with _closed_on_error(self):
            self.tap = TapInterface(offer, queues, port.frame_max, owner, here)
            for index in range(min(queues, most_loops)):
                _new_loop(self.loops, f"{port.name}/{index}", spin_us)
            _serve(port, len(self.loops))
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
            _start(self.loops)

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
        if port.broken is not BreakCause.WHOLE:
            return False
        if port.lifeline.known and not port.lifeline.peer_has_none:
            return port.lifeline.peer_attached
        return port.region.peer().state is SideState.ATTACHED

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
        _close_all(self.loops)
        if self.tap is not None:
            self.tap.close()
        _give_back(self.ports)


def _steady_mac(port: Port) -> str:
    """The same after a restart: neighbours that have learnt it need not learn another. Locally administered."""
    named = f"{os.uname().nodename} {port.vm} {port.name}".encode()
    return bytes([2, *hashlib.sha256(named).digest()[:5]]).hex(":")


class ForwardRunner:
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
        spin_us: int,
        most_loops: int,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.ports: tuple[Port, ...] = (first, second)
        self.loops: list[Loop] = []
        self._joined: list[Port] = []
        count = min(most_loops, *(port.region.geometry.queues for port in self.ports))
        for port in self.ports:
            port.run_by_agent(True)
            _serve(port, count)
        with _closed_on_error(self):
            for source, target in ((first, second), (second, first)):
                self._join(source, target, log)
            for index in range(count):
                loop = _new_loop(self.loops, f"{first.name}-{second.name}/{index}", spin_us)
                loop.judge_by(packet_filter.native)
                for source, target in ((first, second), (second, first)):
                    numbers = packet_filter.number_of(source.name), packet_filter.number_of(target.name)
                    _forward(loop, source, target, numbers, index, count)
            _let_pass(self.ports)
            _start(self.loops)

    def _join(self, source: Port, target: Port, log: Callable[[str], None]) -> None:
        """Count what a forwarder before this one held when it was killed, and say so."""
        state, frames = source.region.join(target.region)
        self._joined.append(source)
        way = f"from {source.name} to {target.name}"
        if state is JoinState.IMPLAUSIBLE:
            log(f"what the last restart lost {way} is not known: {frames} frames cannot be, so none are counted")
        elif frames:
            log(f"{frames} frames {way} were lost by the last restart")

    def failed(self) -> bool:
        return False

    def close(self) -> None:
        _close_all(self.loops)
        for port in self._joined:
            port.region.part()
        self._joined.clear()
        _give_back(self.ports)


def _forward(loop: Loop, source: Port, target: Port, numbers: tuple[int, int], index: int, count: int) -> None:
    """One loop's part of one direction; `numbers` are what the filter calls the two ports."""
    owned = range(index, target.region.geometry.queues, count)
    spread = Spread(target.region, sum(1 << queue for queue in owned)) if len(owned) > 1 else None
    queues = range(index, source.region.geometry.queues, count)
    patience_us = _PATIENCE_US if len(queues) == 1 else 0  # of several inputs the first would take all room
    for queue in queues:
        loop.watch(source.region, queue)
        consumer = source.region.consumers[queue]
        if spread is not None:
            loop.forward_spread(consumer, spread, *numbers)
        else:
            loop.forward(consumer, target.region.producers[index], *numbers, patience_us)


def _serve(port: Port, loops: int) -> None:
    """Tell the port's peer in which queues frames are wanted: a loop for each of them."""
    port.region.serve((1 << loops) - 1)


def _let_pass(ports: Iterable[Port]) -> None:
    """Before loops are started that may put flows into other queues than loops before them did.

    What those have sent is given a short time to pass, so that flows stay in order. Not more: the peer may be away.
    """
    deadline = time.monotonic() + _LET_PASS
    for port in ports:
        producers = port.region.producers if port.region.geometry.queues > 1 else []
        while not all(producer.all_passed for producer in producers) and time.monotonic() < deadline:
            time.sleep(0.001)


def _new_loop(loops: list[Loop], name: str, spin_us: int) -> Loop:
    loop = Loop(name, spin_us)
    loops.append(loop)
    return loop


def _start(loops: Iterable[Loop]) -> None:
    for loop in loops:
        loop.start()


def _give_back(ports: Iterable[Port]) -> None:
    for port in ports:
        _serve(port, port.region.geometry.queues)
        port.run_by_agent(False)


def _close_all(loops: list[Loop]) -> None:
    for loop in loops:
        loop.close()
    loops.clear()


@contextlib.contextmanager
def _closed_on_error(runner: Any) -> Any:
    try:
        yield
    except BaseException:
        runner.close()
        raise
