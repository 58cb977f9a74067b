"""What a second implementation relies on, as compiled; and how far one such description departs from another.

Names come from shm/layout.h, every number from the compiled library: offsets, sizes and values from cffi's view of the
header, sizes of regions from rway_geometry_shape, the parts of a queue from a frame that was really published.
"""

import dataclasses
import json
import re
from typing import Any

from ringway.shm import Geometry
from ringway.shm._native import ffi, lib
from tools.layout.header import ROOT, Declaration, HeaderError, layout
from tools.layout.parts import queue_parts

# Group ("enums", "structs", "geometries"), then the owner, then its facts.
Description = dict[str, dict[str, dict[str, Any]]]

FROZEN = ROOT / "tests" / f"layout_v{lib.RWAY_LAYOUT_MAJOR}.json"
SHAPE = ("slot_stride", "frame_max", "queue_size", "rings_size", "rings_offset", "region_size")
MEASURED_MAX = 64 << 20  # bytes of a region that is really made, to find its parts
GEOMETRIES = (
    Geometry(),
    Geometry(1, lib.RWAY_SLOTS_MIN, lib.RWAY_PAYLOAD_MIN, lib.RWAY_HEADROOM_MIN),
    Geometry(lib.RWAY_QUEUES_MAX, lib.RWAY_SLOTS_MAX, lib.RWAY_PAYLOAD_MAX, lib.RWAY_HEADROOM_MAX),
    Geometry(3, 128, 320, 128),  # an odd number of lines as it is
    Geometry(5, 512, 2112, 192),  # an even one
    Geometry(16, 64, 1536, 64),
)


def describe() -> Description:
    declarations = [item for item in layout() if isinstance(item, Declaration)]
    return {
        "enums": {item.name: constants(item) for item in declarations if item.what == "enum"},
        "structs": {item.name: members(item) for item in declarations if item.what == "struct"},
        "geometries": {name_of(geometry): sizes(geometry) for geometry in GEOMETRIES},
    }


def constants(enum: Declaration) -> dict[str, Any]:
    values = {}
    for entry in enum.entries:
        value = getattr(lib, entry.name, None)
        if value != int(entry.literal, 0):
            raise HeaderError(
                f"{entry.name} is {entry.literal} in the header and {value} in the compiled library: "
                "build the library again (./run does)"
            )
        values[entry.name] = value
    return values


def members(declared: Declaration) -> dict[str, Any]:
    """Under "sizeof", which no member can be called, the size of the whole."""
    kind = ffi.typeof(f"struct {declared.name}")
    fields = dict(kind.fields)
    if list(fields) != [entry.name for entry in declared.entries]:
        raise HeaderError(f"struct {declared.name} has other members in the compiled library: build it again")
    facts: dict[str, Any] = {"sizeof": ffi.sizeof(kind)}
    for name, field in fields.items():
        facts[name] = {"offset": field.offset, "size": ffi.sizeof(field.type), "type": field.type.cname}
    return facts


def name_of(geometry: Geometry) -> str:
    return ", ".join(f"{member} {value}" for member, value in dataclasses.asdict(geometry).items())


def sizes(geometry: Geometry) -> dict[str, Any]:
    shape, error = ffi.new("struct rway_shape *"), ffi.new("struct rway_error *")
    if lib.rway_geometry_shape(geometry.native(), shape, error) != 0:
        raise ValueError(f"{name_of(geometry)}: {ffi.string(error.what).decode()} is refused")
    facts: dict[str, Any] = {name: getattr(shape, name) for name in SHAPE}
    facts["rings_offset"] = list(shape.rings_offset)
    if shape.region_size <= MEASURED_MAX:
        last_queue = shape.rings_offset[lib.RWAY_SIDE_B] + (geometry.queues - 1) * shape.queue_size
        facts["queue"] = queue_parts(geometry, last_queue)
    return facts


# --- the frozen description ------------------------------------------------------------------------------------------


def text_of(description: Description) -> str:
    """JSON, one fact to a line, so that a change is read in a diff."""
    groups = []
    for group, owners in description.items():
        parts = []
        for owner, facts in owners.items():
            lines = ",\n".join(f"   {json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items())
            parts.append(f"  {json.dumps(owner)}: {{\n{lines}\n  }}")
        groups.append(f" {json.dumps(group)}: {{\n" + ",\n".join(parts) + "\n }")
    return "{\n" + ",\n".join(groups) + "\n}\n"


def read_frozen() -> Description:
    """Empty where nothing has been frozen for this major version."""
    if not FROZEN.exists():
        return {}
    frozen: Description = json.loads(FROZEN.read_text(encoding="utf-8"))
    return frozen


# --- differences -----------------------------------------------------------------------------------------------------

MAY_CHANGE = ("RWAY_LAYOUT_MINOR", "RWAY_FLAGS_KNOWN")
UNUSED = re.compile(r"(pad|reserved)\d*")

Path = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class Difference:
    """One fact that is not as frozen. breaks: an end of the frozen layout would misread one of this layout."""

    path: Path
    frozen: Any
    now: Any
    breaks: bool

    def __str__(self) -> str:
        group, owner, name = self.path
        where = {"enums": name, "structs": f"struct {owner}, {name}", "geometries": f"{name} of {owner}"}[group]
        if self.frozen is None:
            return f"{where}: new, {self.now}"
        if self.now is None:
            return f"{where}: gone, was {self.frozen}"
        return f"{where}: was {self.frozen}, is {self.now}"


def differences(frozen: Description, now: Description) -> list[Difference]:
    """Pure. Breaking ones first. A fact's absence is None."""
    old, new = facts(frozen), facts(now)
    found = [
        Difference(path, old.get(path), new.get(path), breaks(path, old, new))
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path)
    ]
    return sorted(found, key=lambda difference: not difference.breaks)


def facts(description: Description) -> dict[Path, Any]:
    return {
        (group, owner, name): value
        for group, owners in description.items()
        for owner, named in owners.items()
        for name, value in named.items()
    }


def breaks(path: Path, old: dict[Path, Any], new: dict[Path, Any]) -> bool:
    """The rules under "Versions" in layout.h, as far as a program can judge them."""
    group, owner, name = path
    if name in MAY_CHANGE or (group == "structs" and UNUSED.fullmatch(name)):
        return False
    if path in old:
        return True
    is_new_member = group == "structs" and (group, owner, "sizeof") in old
    return is_new_member and not was_unused(owner, new[path], old)


def was_unused(owner: str, member: dict[str, Any], old: dict[Path, Any]) -> bool:
    end = member["offset"] + member["size"]
    return any(
        place["offset"] <= member["offset"] and end <= place["offset"] + place["size"]
        for (group, struct, name), place in old.items()
        if (group, struct) == ("structs", owner) and UNUSED.fullmatch(name)
    )
