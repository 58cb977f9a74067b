"""Whole frames: what a kernel has left to the other end, checksum and segmentation, goes with their bytes."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any

from ringway.shm._native import ffi, lib

_BITS_16 = 0xFFFF
_CSUM, _GSO, _ECN = lib.RWAY_EXT_CSUM, lib.RWAY_EXT_GSO, lib.RWAY_GSO_ECN


class GsoType(enum.IntEnum):
    """What a whole frame is cut into, numbered as in virtio 1.2, 5.1.6."""

    NONE = lib.RWAY_GSO_NONE
    TCP4 = lib.RWAY_GSO_TCP4
    TCP6 = lib.RWAY_GSO_TCP6
    UDP = lib.RWAY_GSO_UDP


@dataclasses.dataclass(frozen=True, slots=True)
class Offload:
    """What is left to do to a frame, in the words of struct virtio_net_hdr. Lengths and offsets in bytes.

    The checksum over all from `csum_start` on is to be stored `csum_offset` behind it. Unless `gso_type` is NONE, the
    frame is to be cut: `gso_size` bytes of payload each.
    """

    csum_start: int
    csum_offset: int
    gso_type: GsoType = GsoType.NONE
    gso_size: int = 0
    hdr_len: int = 0  # of the headers that each segment repeats; 0: not said
    ecn: bool = False  # beside TCP: CWR is set, and is for the first segment only

    def __post_init__(self) -> None:
        for field in ("csum_start", "csum_offset", "gso_size", "hdr_len"):
            if not 0 <= getattr(self, field) <= _BITS_16:
                raise ValueError(f"{field} is {getattr(self, field)}: it has 16 bits, 0 to {_BITS_16}")


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """A frame with what is left to do to it; None: nothing, the bytes are what a wire would carry."""

    data: bytes
    offload: Offload | None = None


def packed(frames: Sequence[bytes | Frame]) -> tuple[bytes, Any, Any]:
    """As C takes them: all bytes one after the other, lengths, and offload data (NULL when no frame has any)."""
    if Frame not in map(type, frames):
        plain: Sequence[Any] = frames
        return b"".join(plain), ffi.new("uint32_t[]", [len(frame) for frame in plain]), ffi.NULL
    whole = [frame if isinstance(frame, Frame) else Frame(frame) for frame in frames]
    offloads = ffi.new("struct rway_offload[]", [_native(frame.offload) for frame in whole])
    lens = ffi.new("uint32_t[]", [len(frame.data) for frame in whole])
    return b"".join([frame.data for frame in whole]), lens, offloads


def offload_from(native: Any) -> Offload | None:
    """What C says is left to do."""
    if not native.flags & _CSUM:
        return None
    if not native.flags & _GSO:
        return Offload(native.csum_start, native.csum_offset)
    kind = native.gso_type
    return Offload(
        native.csum_start, native.csum_offset, GsoType(kind & ~_ECN), native.gso_size, native.hdr_len, bool(kind & _ECN)
    )


def _native(offload: Offload | None) -> tuple[int, ...]:
    if offload is None:
        return (0, 0, 0, 0, 0, 0)
    if offload.gso_type is GsoType.NONE:
        return (_CSUM, 0, 0, 0, offload.csum_start, offload.csum_offset)
    kind = offload.gso_type | (_ECN if offload.ecn else 0)
    return (_CSUM | _GSO, kind, offload.gso_size, offload.hdr_len, offload.csum_start, offload.csum_offset)
