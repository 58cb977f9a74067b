"""What an agent runs over its attached ports: a tap's loops, and a forwarder's, one loop for each queue."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from typing import Any, Protocol

from ringway.agent.port import Port
from ringway.agent.tap import TapInterface
from ringway.shm._native import lib
from ringway.stack.filter import Filter
from ringway.stack.loop import Loop


class Runner(Protocol):
    """Something that uses ports until it is closed; only then may they be detached."""

    ports: tuple[Port, ...]
    loops: list[Loop]

    def failed(self) -> bool:
        """It cannot go on, and is to be closed and made again."""

    def close(self) -> None: ...


class TapRunner:
    """Joins a kernel interface to a port's link, queue by queue."""

    def __init__(self, port: Port, spin_us: int) -> None:
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
            for queue, fd in enumerate(self.tap.fds):
                producer, consumer = port.region.producers[queue], port.region.consumers[queue]
                loop = _new_loop(self.loops, f"{port.name}/{queue}", spin_us)
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

    Loop i of n serves the incoming queues i, i+n, … and sends to outgoing queue i, so that each ring keeps one
    producer and one consumer also when the two links have different numbers of queues.
    """

    def __init__(self, first: Port, second: Port, packet_filter: Filter, spin_us: int) -> None:
        self.ports: tuple[Port, ...] = (first, second)
        self.loops: list[Loop] = []
        count = min(port.region.geometry.queues for port in self.ports)
        for port in self.ports:
            port.run_by_agent(True)
        with _closed_on_error(self):
            for index in range(count):
                loop = _new_loop(self.loops, f"{first.name}-{second.name}/{index}", spin_us)
                loop.judge_by(packet_filter.native)
                for source, target in ((first, second), (second, first)):
                    ports = packet_filter.number_of(source.name), packet_filter.number_of(target.name)
                    for queue in range(index, source.region.geometry.queues, count):
                        loop.watch(source.region, queue)
                        loop.forward(source.region.consumers[queue], target.region.producers[index], *ports)
            _start(self.loops)

    def failed(self) -> bool:
        return False

    def close(self) -> None:
        _close_all(self.loops)
        _give_back(self.ports)


def _new_loop(loops: list[Loop], name: str, spin_us: int) -> Loop:
    loop = Loop(name, spin_us)
    loops.append(loop)
    return loop


def _start(loops: Iterable[Loop]) -> None:
    for loop in loops:
        loop.start()


def _give_back(ports: Iterable[Port]) -> None:
    for port in ports:
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
