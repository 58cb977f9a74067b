"""Where a real producer puts a frame: found by writing one and looking for it, not computed a second time."""

import mmap
import os
import struct
from typing import Any

from ringway.shm import Geometry, Region, create_region
from ringway.shm._native import ffi, lib

LINK = 1
HASHES = (0x5EEDF00D, 0x0DDBA115)


def queue_parts(geometry: Geometry, queue_start: int) -> dict[str, int]:
    """Publish two frames, the first over two slots, in the last queue that side b produces, and find their parts.

    Returns offsets in bytes from queue_start, which is relative to the header: of the control, the descriptors and
    payloads of the slots named, and the first slot's extension line. ValueError: a part is not there, or twice.
    """
    fd = create_region(geometry, LINK)
    try:
        with (
            Region.attach(fd, geometry, LINK, lib.RWAY_SIDE_B, 1) as region,
            mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory,
        ):
            producer = region.producers[geometry.queues - 1].native
            bodies = publish(producer, geometry)
            marks = {
                "control": counts_of(bodies),
                "descriptor_0": struct.pack("<I", HASHES[0]),
                "descriptor_2": struct.pack("<I", HASHES[1]),
                "extension_0": offload_line(),
                "payload_0": bodies[0][: geometry.slot_payload],
                "payload_1": bodies[0][geometry.slot_payload :],
                "payload_2": bodies[1],
            }
            found = {name: find(memory, name, mark) for name, mark in marks.items()}
    finally:
        os.close(fd)
    found["control"] -= ffi.offsetof("struct rway_ring_control", "produced") - 8
    for name in ("descriptor_0", "descriptor_2"):
        found[name] -= ffi.offsetof("struct rway_desc", "hash")
    return {name: at - queue_start for name, at in found.items()}


def publish(producer: Any, geometry: Geometry) -> tuple[bytes, bytes]:
    bodies = (pattern(1, geometry.slot_payload + 100), pattern(2, 200))
    frames = ffi.new("struct rway_frame[2]")
    pieces = ffi.new("struct rway_piece[]", lib.RWAY_PIECES_MAX)
    for frame, body, number in zip(frames, bodies, HASHES, strict=True):
        frame.len, frame.flags, frame.hash = len(body), lib.RWAY_FLAG_HASH, number
    if lib.rway_ring_claim(producer, frames, 2) != 2:
        raise ValueError("an empty ring had no room for two frames")
    for index, body in enumerate(bodies):
        at = 0
        for piece in pieces[0 : lib.rway_producer_pieces(producer, ffi.addressof(frames, index), pieces)]:
            ffi.memmove(piece.data, body[at : at + piece.len], piece.len)
            at += piece.len
    offload = ffi.new("struct rway_offload *", OFFLOAD)
    if lib.rway_frame_set_offload(producer, ffi.addressof(frames, 0), offload) != 0:
        raise ValueError("good offload data was refused")
    lib.rway_ring_publish(producer, frames, 2)
    return bodies


OFFLOAD = {"flags": 1, "csum_start": 34, "csum_offset": 16}


def offload_line() -> bytes:
    return struct.pack("<6H", OFFLOAD["flags"], 0, 0, 0, OFFLOAD["csum_start"], OFFLOAD["csum_offset"])


def counts_of(bodies: tuple[bytes, bytes]) -> bytes:
    """The producer's account: the first words of struct rway_counts, and the pad before it, which a commit has not."""
    return struct.pack("<QQQ", 0, len(bodies), sum(map(len, bodies)))


def pattern(seed: int, size: int) -> bytes:
    """Bytes that are found nowhere else: the words of a multiplicative sequence."""
    words = (struct.pack("<I", (seed << 16 | at) * 0x9E3779B1 % 2**32) for at in range(size // 4 + 1))
    return b"".join(words)[:size]


def find(memory: mmap.mmap, name: str, mark: bytes) -> int:
    at = memory.find(mark)
    if at < 0 or memory.find(mark, at + 1) >= 0:
        raise ValueError(f"{name} of the published frames is in the region {'twice' if at >= 0 else 'nowhere'}")
    return at
