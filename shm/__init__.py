"""The memory of ringway: regions, rings and bells, written in C and used from Python."""

from ringway.shm._native import ffi, lib
from ringway.shm.carry import Carried, CarriedRing, carried_from
from ringway.shm.errors import (
    BreakCause,
    DropCause,
    RefusalCause,
    RegionBrokenError,
    RegionError,
    RegionHeldError,
)
from ringway.shm.frame import Frame, GsoType, Offload
from ringway.shm.geometry import Geometry, Shape
from ringway.shm.region import (
    LossState,
    QueueBells,
    Region,
    count_losses,
    create_region,
    make_bell,
    watch_losses,
)
from ringway.shm.ring import Consumer, Consumers, Producer
from ringway.shm.snapshot import (
    Counts,
    RegionSnapshot,
    RingSnapshot,
    SideSnapshot,
    SideState,
    check_region,
    read_region,
    read_sides,
)

# A stale extension is found here and not on first use: cffi compares a type's offsets only when it is touched.
for _name in ffi.list_types()[1]:
    try:
        ffi.sizeof(f"struct {_name}")
    except ffi.error as error:
        if "don't know the size" not in str(error):  # that one is an opaque type, which has no offsets to compare
            raise
if lib.rway_layout_version() != lib.RWAY_LAYOUT_MAJOR << 16 | lib.RWAY_LAYOUT_MINOR:
    raise ImportError("ringway.shm._native was built from another layout.h: run `./run test`, which builds it again")

__all__ = [
    "BreakCause",
    "Carried",
    "CarriedRing",
    "Consumer",
    "Consumers",
    "Counts",
    "DropCause",
    "Frame",
    "Geometry",
    "GsoType",
    "LossState",
    "Offload",
    "Producer",
    "QueueBells",
    "RefusalCause",
    "Region",
    "RegionBrokenError",
    "RegionError",
    "RegionHeldError",
    "RegionSnapshot",
    "RingSnapshot",
    "Shape",
    "SideSnapshot",
    "SideState",
    "carried_from",
    "check_region",
    "count_losses",
    "create_region",
    "make_bell",
    "read_region",
    "read_sides",
    "watch_losses",
]
