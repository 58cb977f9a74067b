"""What `ringway show` says about links: read from the regions by pread, never from memory of what should be so.

The ends can write what they like into a region. So nothing read here is believed or acted upon, and a region that
cannot be read is a broken link.
"""

from __future__ import annotations

from typing import Final, Literal

from ringway.broker.fabric import LinkState, geometry_message
from ringway.broker.links import Held
from ringway.control.messages import EndShown, LinkShown, RingShown
from ringway.control.registry import EndEntry, LinkEntry
from ringway.shm import (
    Counts,
    RegionError,
    RingSnapshot,
    SideSnapshot,
    SideState,
    check_region,
    read_region,
    read_sides,
)

END_STATES: Final[dict[SideState, Literal["detached", "attached", "broken"]]] = {
    SideState.DETACHED: "detached",
    SideState.ATTACHED: "attached",
    SideState.BROKEN: "broken",
}


LOST: Final = "its memory was lost with broker and keeper, and only its two ends have it"


def trouble(link: LinkState, held: Held | None) -> str:
    """Why the link carries nothing any more, or cannot be handed to an end again; empty when it does and can."""
    if held is None:
        return LOST
    try:
        geometry, sides = check_region(held.region_fd)
    except RegionError as error:
        return f"its memory is damaged ({error})"
    if geometry != link.config.geometry:
        return "its memory has another geometry than the fabric asks for"
    for name, side in zip("ab", sides, strict=True):
        if side.state is SideState.BROKEN:
            return f"side {name} found it broken ({side.cause.name.lower()})"
    return ""


def in_flight(held: Held | None) -> int:
    """Frames that would be lost with the memory, as far as it can be read."""
    try:
        return sum(ring.in_flight for ring in read_region(held.region_fd).rings) if held is not None else 0
    except RegionError:
        return 0


def show_link(link: LinkState, held: Held | None) -> LinkShown:
    rings: list[RingSnapshot] = []
    sides: tuple[SideSnapshot, SideSnapshot] | None = None
    note = held.note if held is not None else f"link {link.config.name!r}: {LOST}: apply the fabric again to replace it"
    try:
        if held is not None:
            sides = read_sides(held.region_fd)
            rings = read_region(held.region_fd).rings
    except RegionError as error:
        note = "; ".join(filter(None, (note, f"the region is damaged ({error}): apply the fabric again")))
    shape = link.config.shape()
    ends = [_end(link, side, sides[side] if sides else None) for side in (0, 1)]
    return LinkShown(
        name=link.config.name,
        link_id=link.link_id,
        state="lost" if held is None else _state(ends, readable=bool(rings)),
        ends=ends,
        geometry=geometry_message(link.config.geometry),
        frame_max=shape.frame_max,
        memory=held.memory if held is not None else shape.memory,
        pages="huge" if held is not None and held.huge else "ordinary",
        note=note,
        rings=[_ring(ring) for ring in rings],
    )


def link_entry(link: LinkState) -> LinkEntry:
    """What the fabric's entry in the registry says of a link."""
    first, second = (
        EndEntry(end.vm, end.port.name, end.holder.pid if end.holder is not None else 0, end.incarnation)
        for end in link.ends
    )
    return LinkEntry(link.config.name, link.link_id, (first, second))


def _state(ends: list[EndShown], readable: bool) -> Literal["up", "half", "down", "broken"]:
    if not readable or any(end.state in ("broken", "unreadable") for end in ends):
        return "broken"
    attached = sum(end.state == "attached" and end.held for end in ends)
    return "up" if attached == 2 else "half" if attached else "down"


def _end(link: LinkState, side: int, snapshot: SideSnapshot | None) -> EndShown:
    end = link.ends[side]
    return EndShown(
        vm=end.vm,
        port=end.port.name,
        settings=end.port.settings,
        state=END_STATES[snapshot.state] if snapshot else "unreadable",
        cause=snapshot.cause.name.lower() if snapshot and snapshot.state is SideState.BROKEN else "",
        incarnation=end.incarnation,
        queues_served=snapshot.queues_served if snapshot else 0,
        held=end.holder is not None,
        pid=end.holder.pid if end.holder is not None else 0,
    )


def _ring(ring: RingSnapshot) -> RingShown:
    produced, consumed = ring.produced, ring.consumed
    return RingShown(
        producing_side=ring.producing_side,
        queue=ring.queue,
        offered=ring.offered,
        published=produced.frames,
        delivered=ring.delivered,
        in_flight=ring.in_flight,
        drops_produced=produced.drops,
        drops_consumed=consumed.drops,
        balanced=ring.balanced,
        produced=_activity(produced),
        consumed=_activity(consumed),
    )


def _activity(counts: Counts) -> dict[str, int]:
    return {
        "bytes": counts.bytes,
        "bells": counts.bells,
        "sleeps": counts.sleeps,
        "bells_idle": counts.bells_idle,
        "mutes": counts.mutes,
    }
