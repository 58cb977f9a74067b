"""One end of a region as a process of its own, of whichever release it finds: obeys JSON lines, one after another.

It says and does only what every release of layout 1 can. What it does not know of the other end it leaves alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ringway.shm import Geometry, QueueBells, Region, RegionError, create_region, read_region
from ringway.shm._native import ffi, lib

BURST = 16  # frames sent or received at once: what a killed end may lose per queue
PATIENCE = 30.0  # seconds for something that happens at once, on a machine that does much else
HEAD = struct.Struct(">BBI")  # of each frame: producing side, queue, number
RECORD = struct.Struct(">BI")  # in a log: queue, number
PATTERN = bytes(range(251)) * 300


class EndError(Exception):
    """What came is not what was sent, or nothing came."""


def length_of(number: int, geometry: Geometry) -> int:
    """Of the frame of that number: each length at which something changes, and others between."""
    payload, longest = geometry.slot_payload, geometry.shape().frame_max
    edges = (14, 60, payload - 1, payload, payload + 1, 1514, 3 * payload, 3 * payload + 1, longest - 1, longest)
    if number % 3 == 0:
        return min(edges[number // 3 % len(edges)], longest)
    return 14 + number * 2654435761 % (min(4 * payload, longest) - 13)


def frame(side: int, queue: int, number: int, geometry: Geometry) -> bytes:
    length = length_of(number, geometry)
    start = number % 251
    return HEAD.pack(side, queue, number) + PATTERN[start : start + length - HEAD.size]


def reserved(kind: Any, at: int) -> Iterator[tuple[int, int]]:
    """Offset and size of what this release's layout leaves free in a struct at that offset."""
    if kind.kind == "array":
        for place in range(kind.length):
            yield from reserved(kind.item, at + place * ffi.sizeof(kind.item))
    elif kind.kind == "struct":
        for name, field in kind.fields:
            if name.startswith(("pad", "reserved")):
                yield at + field.offset, ffi.sizeof(field.type)
            else:
                yield from reserved(field.type, at + field.offset)


class End:
    """The public methods are the orders, with JSON's types."""

    def __init__(self) -> None:
        self._region: Region | None = None
        self._side = 0
        self._pool = ThreadPoolExecutor(64)
        self._sending: list[Future[int]] = []
        self._receiving: list[Future[None]] = []
        self._sleeping: Future[bool] | None = None
        self._no_more = threading.Event()  # is to be sent
        self._finished = threading.Event()

    @property
    def region(self) -> Region:
        assert self._region is not None
        return self._region

    def create(self, geometry: list[int], link: int) -> int:
        return create_region(Geometry(*geometry), link)

    def attach(self, fd: int, geometry: list[int], link: int, side: int, incarnation: int, bells: list[Any]) -> str:
        """Empty, or the cause for which the region was refused."""
        self._side = side
        try:
            given = [QueueBells(*queue) for queue in bells]
            self._region = Region.attach(fd, Geometry(*geometry), link, side, incarnation, given)
        except RegionError as error:
            return error.cause.name
        return ""

    def send(self, queue: int, numbers: list[int]) -> int:
        """How many of these frames there was room for."""
        return self.region.producers[queue].send(self._frames(queue, numbers))

    def receive(self, queue: int) -> list[int]:
        """The numbers of what is there."""
        return self._numbers(queue, self.region.consumers[queue].receive(BURST))

    def sleep(self, half: str, queue: int) -> None:
        """Wait for something to do there, in a thread; `woken` says whether it came."""
        found = self.region.consumers[queue] if half == "consumer" else self.region.producers[queue]
        self._sleeping = self._pool.submit(found.wait, PATIENCE)

    def woken(self) -> bool:
        assert self._sleeping is not None
        return self._sleeping.result()

    def exchange(self, count: int) -> None:
        """Send that many frames on each queue, and take as many that are what the other end sends in its exchange."""
        queues = range(self.region.geometry.queues)
        work: list[Future[Any]] = [self._pool.submit(self._send_all, queue, range(count)) for queue in queues]
        work += [self._pool.submit(self._receive_all, queue, range(count)) for queue in queues]
        for part in work:
            part.result()

    def stream(self, first: int, log: str) -> None:
        """Send frames from that number on, and write down those that come, on all queues, until told otherwise."""
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        queues = range(self.region.geometry.queues)
        self._sending = [self._pool.submit(self._send_on, queue, first) for queue in queues]
        self._receiving = [self._pool.submit(self._log_on, queue, fd) for queue in queues]

    def halt(self) -> list[int]:
        """Send no more; the next number of each queue."""
        self._no_more.set()
        return [sending.result() for sending in self._sending]

    def finish(self) -> None:
        """Receive no more, and detach."""
        self._finished.set()
        for receiving in self._receiving:
            receiving.result()
        self.region.detach()

    def read(self, fd: int) -> dict[str, Any]:
        """The books, in the words that layout 1.0 has."""
        reading = read_region(fd)
        sides = [[side.state.name, side.cause.name, side.incarnation, side.queues_served] for side in reading.sides]
        rings = []
        for ring in reading.rings:
            told: dict[str, Any] = {
                name: getattr(ring, name)
                for name in ("producing_side", "queue", "head", "tail", "in_flight", "offered", "delivered", "balanced")
            }
            for half in ("produced", "consumed"):
                counts = getattr(ring, half)
                names = ("frames", "bytes", "bells", "sleeps", "bells_idle", "mutes", "drops")
                told[half] = {name: getattr(counts, name) for name in names}
            rings.append(told)
        geometry = dataclasses.astuple(reading.geometry)[:4]
        return {"geometry": list(geometry), "link": reading.link_id, "sides": sides, "rings": rings}

    def layout(self) -> list[int]:
        return [lib.RWAY_LAYOUT_MAJOR, lib.RWAY_LAYOUT_MINOR]

    def scribble(self, fd: int) -> int:
        """Fill what this release's layout leaves free, as a later one may; how many bytes that are."""
        places = list(self._free_places(fd))
        for number, (at, size) in enumerate(places):
            os.pwrite(fd, bytes(1 + (number + byte) % 255 for byte in range(size)), at)
        return sum(size for _, size in places)

    def scribbled(self, fd: int) -> bool:
        """Are those bytes as scribble left them?"""
        return all(
            os.pread(fd, size, at) == bytes(1 + (number + byte) % 255 for byte in range(size))
            for number, (at, size) in enumerate(self._free_places(fd))
        )

    def _free_places(self, fd: int) -> Iterator[tuple[int, int]]:
        header = ffi.new("struct rway_header *")
        ffi.buffer(header)[:] = os.pread(fd, ffi.sizeof(header[0]), 0)
        yield from reserved(ffi.typeof("struct rway_header"), 0)
        queue_size = read_region(fd).geometry.shape().queue_size
        for section in header.sections[0 : header.section_count]:
            if section.kind == lib.RWAY_SECTION_SIDE:
                yield from reserved(ffi.typeof("struct rway_side"), section.offset)
            elif section.kind == lib.RWAY_SECTION_RINGS:
                for queue in range(header.geometry.queues):
                    yield from reserved(ffi.typeof("struct rway_ring_control"), section.offset + queue * queue_size)

    def _frames(self, queue: int, numbers: Sequence[int]) -> list[bytes]:
        return [frame(self._side, queue, number, self.region.geometry) for number in numbers]

    def _numbers(self, queue: int, frames: Sequence[bytes]) -> list[int]:
        """Of frames that came. EndError when one is not what its number says."""
        numbers = [HEAD.unpack_from(got)[2] for got in frames]
        for number, got in zip(numbers, frames, strict=True):
            if got != frame(1 - self._side, queue, number, self.region.geometry):
                raise EndError(f"queue {queue}: {len(got)} bytes came as frame {number}, which is another")
        return numbers

    def _send_all(self, queue: int, numbers: Sequence[int]) -> None:
        producer = self.region.producers[queue]
        for at in range(0, len(numbers), BURST):
            frames = self._frames(queue, numbers[at : at + BURST])
            while frames := frames[producer.send(frames) :]:
                if not producer.wait(PATIENCE):
                    raise EndError(f"queue {queue}: no room for {PATIENCE:g} s")

    def _receive_all(self, queue: int, numbers: Sequence[int]) -> None:
        consumer = self.region.consumers[queue]
        done = 0
        while done < len(numbers):
            got = self._numbers(queue, consumer.receive(BURST))
            if got != list(numbers[done : done + len(got)]):
                raise EndError(f"queue {queue}: {got} came, and next was {numbers[done]}")
            done += len(got)
            if not got and not consumer.wait(PATIENCE):
                raise EndError(f"queue {queue}: nothing for {PATIENCE:g} s after {done} of {len(numbers)}")

    def _send_on(self, queue: int, number: int) -> int:
        producer = self.region.producers[queue]
        while not self._no_more.is_set():
            number += producer.send(self._frames(queue, range(number, number + BURST)))
            producer.wait(0.1)
        return number

    def _log_on(self, queue: int, log: int) -> None:
        consumer = self.region.consumers[queue]
        while not self._finished.is_set():
            numbers = self._numbers(queue, consumer.receive(BURST))
            if numbers:
                os.write(log, b"".join(RECORD.pack(queue, number) for number in numbers))
            else:
                consumer.wait(0.1)


def main() -> None:
    end = End()
    for line in sys.stdin:
        name, arguments = json.loads(line)
        order: Callable[..., Any] = getattr(end, name)
        try:
            answer: dict[str, Any] = {"answer": order(**arguments)}
        except Exception as error:  # noqa: BLE001 - the test is told, whatever it is
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    os._exit(0)  # also when a thread waits


def logged(path: Path) -> list[tuple[int, int]]:
    """What a stream has written down: queue and number, in order of arrival."""
    found = path.read_bytes() if path.exists() else b""
    return list(RECORD.iter_unpack(found[: len(found) - len(found) % RECORD.size]))


if __name__ == "__main__":
    main()
