"""What an agent runs over its attached ports: a tap's loops, and a forwarder's, one loop for each queue or fewer."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from typing import Any, Protocol

from ringway.agent.port import Port
from ringway.agent.tap import TapInterface
from ringway.shm._native import lib
from ringway.stack.filter import Filter
from ringway.stack.loop import Loop
from ringway.stack.spread import Spread

_LET_PASS = 0.1  # seconds


class Runner(Protocol):
    """Something that uses ports until it is closed; only then may they be detached."""

    ports: tuple[Port, ...]
    loops: list[Loop]

    def failed(self) -> bool:
        """It cannot go on, and is to be closed and made again."""

    def close(self) -> None: ...


class TapRunner:
    """Joins a kernel interface to a port's link, queue by queue. Loop i of n serves the queues i, i + n, …"""

    def __init__(self, port: Port, spin_us: int, most_loops: int) -> None:
        offer = port.offer
        queues = port.region.geometry.queues
        self.ports: tuple[Port, ...] = (port,)
        self.loops: list[Loop] = []
        self._jobs: list[Any] = []
        port.run_by_agent(True)
        assert offer.interface is not None
        assert offer.mtu is not None
        self.tap: TapInterface | None = None
        with _closed_on_error(self):
            self.tap = TapInterface(offer.interface, queues, offer.offload, offer.mtu, port.frame_max)
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
            self.tap.set_up(offer.mac or _steady_mac(port), offer.address)
            _start(self.loops)

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

    def __init__(self, first: Port, second: Port, packet_filter: Filter, spin_us: int, most_loops: int) -> None:
        self.ports: tuple[Port, ...] = (first, second)
        self.loops: list[Loop] = []
        count = min(most_loops, *(port.region.geometry.queues for port in self.ports))
        for port in self.ports:
            port.run_by_agent(True)
            _serve(port, count)
        with _closed_on_error(self):
            # Before anything moves: what a forwarder before this one held when it was killed is counted now.
            self.lost = [source.region.join(target.region) for source, target in ((first, second), (second, first))]
            for index in range(count):
                loop = _new_loop(self.loops, f"{first.name}-{second.name}/{index}", spin_us)
                loop.judge_by(packet_filter.native)
                for source, target in ((first, second), (second, first)):
                    numbers = packet_filter.number_of(source.name), packet_filter.number_of(target.name)
                    _forward(loop, source, target, numbers, index, count)
            _let_pass(self.ports)
            _start(self.loops)

    def failed(self) -> bool:
        return False

    def close(self) -> None:
        _close_all(self.loops)
        for port in self.ports:
            port.region.part()
        _give_back(self.ports)


def _forward(loop: Loop, source: Port, target: Port, numbers: tuple[int, int], index: int, count: int) -> None:
    """One loop's part of one direction; `numbers` are what the filter calls the two ports."""
    owned = range(index, target.region.geometry.queues, count)
    spread = Spread(target.region, sum(1 << queue for queue in owned)) if len(owned) > 1 else None
    for queue in range(index, source.region.geometry.queues, count):
        loop.watch(source.region, queue)
        consumer = source.region.consumers[queue]
        if spread is not None:
            loop.forward_spread(consumer, spread, *numbers)
        else:
            loop.forward(consumer, target.region.producers[index], *numbers)


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
