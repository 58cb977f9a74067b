"""A region as a hostile party sees it: its words found through the header, read and written through the descriptor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ringway.shm import Geometry, Region, create_region
from ringway.shm._native import ffi, lib

LINK = 7
SMALL = Geometry(queues=2, slot_count=64, slot_payload=256, headroom=128)
CONTROL_SIZE: int = ffi.sizeof("struct rway_ring_control")
DESC_SIZE: int = ffi.sizeof("struct rway_desc")
WORD = 2**64


def place(struct: str, *fields: str | int) -> tuple[int, int]:
    """Where a field of a shared struct lies and how many bytes it has."""
    kind = ffi.typeof(f"struct {struct}")
    for field in fields:
        kind = kind.item if isinstance(field, int) else dict(kind.fields)[field].type
    return ffi.offsetof(f"struct {struct}", *fields), ffi.sizeof(kind)


class Carrier:
    """A region's descriptor in the hands of somebody who keeps to no rule."""

    def __init__(self, geometry: Geometry = SMALL) -> None:
        self.geometry = geometry
        self.shape = geometry.shape()
        self.fd = create_region(geometry, LINK)

    def attach(self, side: int = 0, incarnation: int = 1) -> Region:
        return Region.attach(self.fd, self.geometry, LINK, side, incarnation)

    def read(self, base: int, struct: str, *fields: str | int) -> int:
        offset, size = place(struct, *fields)
        return int.from_bytes(os.pread(self.fd, size, base + offset), "little")

    def write(self, value: int, base: int, struct: str, *fields: str | int) -> None:
        offset, size = place(struct, *fields)
        os.pwrite(self.fd, (value % 2 ** (8 * size)).to_bytes(size, "little"), base + offset)

    def section(self, kind: int, writer: int) -> int:
        """Offset of the section of this kind and writer."""
        for at in range(self.read(0, "rway_header", "section_count")):
            if self.read(0, "rway_header", "sections", at, "kind") != kind:
                continue
            if self.read(0, "rway_header", "sections", at, "writer") == writer:
                return self.read(0, "rway_header", "sections", at, "offset")
        raise LookupError(f"no section of kind {kind} that side {writer} writes")

    def side(self, side: int) -> int:
        return self.section(lib.RWAY_SECTION_SIDE, side)

    def ring(self, producing_side: int, queue: int = 0) -> int:
        return self.section(lib.RWAY_SECTION_RINGS, producing_side) + queue * self.shape.queue_size

    def descriptor(self, ring: int, number: int) -> int:
        return ring + CONTROL_SIZE + number % self.geometry.slot_count * DESC_SIZE

    def slot(self, ring: int, number: int) -> int:
        slots = ring + CONTROL_SIZE + self.geometry.slot_count * DESC_SIZE
        return slots + number % self.geometry.slot_count * self.shape.slot_stride

    def describe(self, ring: int, number: int, **fields: int) -> None:
        """Write one descriptor: a frame of 60 bytes in one slot, except for what is named."""
        for field, value in {"kind": lib.RWAY_DESC_FRAME, "slots": 1, "len": 60, **fields}.items():
            self.write(value, self.descriptor(ring, number), "rway_desc", field)

    def set_head(self, ring: int, head: int) -> None:
        self.write(head, ring, "rway_ring_control", "head")

    def set_tail(self, ring: int, tail: int) -> None:
        self.write(tail, ring, "rway_ring_control", "tail")

    def close(self) -> None:
        os.close(self.fd)


@contextmanager
def carrier(geometry: Geometry = SMALL) -> Iterator[Carrier]:
    made = Carrier(geometry)
    try:
        yield made
    finally:
        made.close()


def left_behind() -> tuple[int, int]:
    """Open descriptors of this process, and its mappings of regions."""
    maps = Path("/proc/self/maps").read_text(encoding="ascii", errors="replace")
    return len(list(Path("/proc/self/fd").iterdir())), maps.count("memfd:ringway")


def peek(region: Region, queue: int = 0, count: int = 1) -> Any:
    """Frames as C code gets them, in place; the first `taken` entries of the array are filled."""
    frames = ffi.new("struct rway_frame[]", count)
    taken = lib.rway_ring_peek(region.consumers[queue].native, frames, count)
    return frames[0:taken]
