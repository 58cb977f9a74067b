"""Geometry: what is chosen for a link, and the sizes that follow from it."""

from __future__ import annotations

import dataclasses
from typing import Any

from ringway.shm._native import ffi, lib
from ringway.shm.errors import RefusalCause, RegionError, error_of

ALLOWED = {
    "queues": f"1 to {lib.RWAY_QUEUES_MAX}",
    "slot_count": f"a power of two from {lib.RWAY_SLOTS_MIN} to {lib.RWAY_SLOTS_MAX}",
    "slot_payload": f"a multiple of {lib.RWAY_LINE} from {lib.RWAY_PAYLOAD_MIN} to {lib.RWAY_PAYLOAD_MAX}",
    "headroom": f"a multiple of {lib.RWAY_LINE} from {lib.RWAY_HEADROOM_MIN} to {lib.RWAY_HEADROOM_MAX}",
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """What follows from a geometry; all in bytes."""

    slot_stride: int
    frame_max: int
    queue_size: int
    rings_size: int
    region_size: int
    memory: int


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What the broker chooses for a link: rings per direction, slots per ring, bytes of a slot and before it."""

    queues: int = 1
    slot_count: int = lib.RWAY_SLOTS_DEFAULT
    slot_payload: int = lib.RWAY_PAYLOAD_DEFAULT
    headroom: int = lib.RWAY_HEADROOM_MIN

    def shape(self) -> Shape:
        """Compute the sizes; RegionError (GEOMETRY) names the value that is out of range."""
        shape, error = ffi.new("struct rway_shape *"), ffi.new("struct rway_error *")
        if lib.rway_geometry_shape(self.native(), shape, error) != 0:
            what = error_of(error).what
            found = getattr(self, what)
            raise RegionError(RefusalCause.GEOMETRY, what, found, error.expected, allowed=ALLOWED[what])
        return Shape(
            slot_stride=shape.slot_stride,
            frame_max=shape.frame_max,
            queue_size=shape.queue_size,
            rings_size=shape.rings_size,
            region_size=shape.region_size,
            memory=shape.memory,
        )

    def native(self) -> Any:
        """The C struct; a number that does not fit 32 bits is clipped to one that is out of every range."""
        clipped = [min(max(value, 0), 0xFFFFFFFF) for value in dataclasses.astuple(self)]
        return ffi.new("struct rway_geometry *", clipped)

    @classmethod
    def of(cls, native: Any) -> Geometry:
        return cls(native.queues, native.slot_count, native.slot_payload, native.headroom)
