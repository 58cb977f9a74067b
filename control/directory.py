"""What is in a fabric's directory segment, and its bytes: two copies of the whole, the later complete one counts.

Written by the fabric's broker (broker/directory.py) into a POSIX shared-memory object of its own, and read from there
by whoever may (control/listing.py), also when that broker is dead. docs/directory.md has the layout as a table.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from ringway.control.errors import ControlError
from ringway.control.messages import PID_MAX, Cause
from ringway.control.names import Name, PlainName

MAGIC: Final = b"RWAYLIST"
VERSION: Final = 1
# More than a fabric file can describe: a link takes 63 of its 1,000,000 bytes at least.
LINKS_MAX: Final = 1 << 14
COPY_SIZE: Final = 6 << 20  # bytes from one copy to the other; pages that nobody has written take no memory
OBJECT_SIZE: Final = 2 * COPY_SIZE

HEAD_FIELDS: Final = (
    ("magic", "8s"),
    ("version", "Q"),
    ("digest", "16s"),
    ("sequence", "Q"),
    ("fabric_id", "Q"),
    ("broker_pid", "Q"),
    ("device", "Q"),
    ("inode", "Q"),
    ("link_count", "Q"),
    ("runtime", "112s"),
)
END_FIELDS: Final = (("vm", "64s"), ("port", "64s"), ("holder_pid", "Q"), ("incarnation", "Q"))
LINK_FIELDS: Final = (
    ("link_id", "Q"),
    ("name", "64s"),
    *((f"{side}_{name}", form) for side in "ab" for name, form in END_FIELDS),
)


def _layout(fields: Sequence[tuple[str, str]]) -> struct.Struct:
    return struct.Struct("<" + "".join(form for _, form in fields))


HEAD: Final = _layout(HEAD_FIELDS)
LINK: Final = _layout(LINK_FIELDS)
JUDGED: Final = len(MAGIC) + 8 + 16  # where the bytes begin that the digest is of

FabricId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]
Pid = Annotated[int, Meta(ge=1, le=PID_MAX)]


class ListedEnd(Struct, frozen=True):
    """`holder_pid` is 0 when nobody holds the end; `incarnation` is the holder's, or the last one's."""

    vm: PlainName
    port: PlainName
    holder_pid: Annotated[int, Meta(ge=0, le=PID_MAX)]
    incarnation: Annotated[int, Meta(ge=0, lt=1 << 32)]


class ListedLink(Struct, frozen=True):
    name: Name
    link_id: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    ends: tuple[ListedEnd, ListedEnd]  # side a, side b


class DirectoryState(Struct, frozen=True):
    """All that one copy says. `device` and `inode` are those of the runtime directory, as its broker saw it."""

    fabric_id: FabricId
    broker_pid: Pid
    runtime: Annotated[str, Meta(pattern=r"\A/[^\x00]*\Z")]
    device: int
    inode: int
    links: list[ListedLink]


class DirectoryCause(StrEnum):
    GONE = "gone"  # no such object any more
    UNREADABLE = "unreadable"  # the operating system refuses
    KIND = "kind"  # not a regular file
    WRITABLE = "writable"  # by others than its owner
    BLANK = "blank"  # made, and nothing written into it
    MAGIC = "magic"
    VERSION = "version"
    INCOMPLETE = "incomplete"  # cut off, torn or damaged: the digest is another
    FIELD = "field"


class DirectoryError(Exception):
    """An object of a fabric's name that is no directory, or cannot be read as one."""

    def __init__(self, cause: DirectoryCause, message: str) -> None:
        super().__init__(message)
        self.cause = cause


def object_name(fabric_id: str) -> str:
    """As shm_open(3) wants it. ValueError when it is not a fabric's id."""
    if re.fullmatch("[0-9a-f]{16}", fabric_id) is None:
        raise ValueError(f"a fabric's id is 16 of 0-9 and a-f, not {fabric_id!r}")
    return f"/ringway-{fabric_id}"


def encode(state: DirectoryState, sequence: int) -> bytes:
    """One copy. The state is the caller's own and has been checked; only its length is not known before."""
    if len(state.links) > LINKS_MAX:
        message = f"{len(state.links)} links are more than a directory has room for ({LINKS_MAX}): use several brokers"
        raise ControlError(Cause.LIMIT, message)
    fields = (
        sequence,
        int(state.fabric_id, 16),
        state.broker_pid,
        state.device,
        state.inode,
        len(state.links),
        state.runtime.encode(),
    )
    judged = HEAD.pack(MAGIC, VERSION, b"", *fields)[JUDGED:] + b"".join(map(_encode_link, state.links))
    return MAGIC + struct.pack("<Q", VERSION) + _digest(judged) + judged


def sequence_of(head: bytes) -> int:
    """What a copy claims; only good for choosing the one to try first."""
    return int(HEAD.unpack(head)[3]) if len(head) == HEAD.size else 0


def size_of(head: bytes) -> int:
    """Bytes of the copy that begins with these, or DirectoryError."""
    if not head[: HEAD.size].strip(b"\0"):
        raise DirectoryError(DirectoryCause.BLANK, "is empty: a broker is making it, or was killed while it did")
    if len(head) < HEAD.size:
        raise DirectoryError(DirectoryCause.INCOMPLETE, f"is cut off after {len(head)} bytes of a head")
    magic, version, *_, count, _ = HEAD.unpack(head[: HEAD.size])
    if magic != MAGIC:
        raise DirectoryError(DirectoryCause.MAGIC, "is not a directory of a fabric")
    if version != VERSION:
        text = f"has version {version}; this release reads {VERSION}: use the release of its broker"
        raise DirectoryError(DirectoryCause.VERSION, text)
    if count > LINKS_MAX:
        raise DirectoryError(DirectoryCause.FIELD, f"claims {count} links; {LINKS_MAX} are the most")
    return HEAD.size + int(count) * LINK.size


def decode(copy: bytes) -> DirectoryState:
    """The bytes are anybody's: DirectoryError unless all of them are as a broker writes them."""
    size = size_of(copy)
    if len(copy) != size:
        raise DirectoryError(DirectoryCause.INCOMPLETE, f"is cut off: {len(copy)} of {size} bytes are there")
    _, _, digest, _, fabric_id, broker_pid, device, inode, _, runtime = HEAD.unpack(copy[: HEAD.size])
    if _digest(copy[JUDGED:]) != digest:
        raise DirectoryError(DirectoryCause.INCOMPLETE, "does not match its digest: half written, or damaged")
    try:
        said = {
            "fabric_id": f"{fabric_id:016x}",
            "broker_pid": broker_pid,
            "runtime": _text(runtime),
            "device": device,
            "inode": inode,
            "links": [_decode_link(fields) for fields in LINK.iter_unpack(copy[HEAD.size :])],
        }
        state = msgspec.convert(said, DirectoryState)
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        raise DirectoryError(DirectoryCause.FIELD, f"says what no broker does: {error}") from None
    for key in ("name", "link_id"):
        if len({getattr(link, key) for link in state.links}) != len(state.links):
            raise DirectoryError(DirectoryCause.FIELD, f"says what no broker does: two links of the same {key}")
    return state


def _digest(judged: bytes) -> bytes:
    return hashlib.blake2b(judged, digest_size=16).digest()


def _encode_link(link: ListedLink) -> bytes:
    return LINK.pack(link.link_id, link.name.encode(), *(field for end in link.ends for field in _end_fields(end)))


def _end_fields(end: ListedEnd) -> Iterator[bytes | int]:
    yield end.vm.encode()
    yield end.port.encode()
    yield end.holder_pid
    yield end.incarnation


def _decode_link(fields: Sequence[Any]) -> dict[str, object]:
    link_id, name, *ends = fields
    return {"link_id": link_id, "name": _text(name), "ends": (_decode_end(ends[:4]), _decode_end(ends[4:]))}


def _decode_end(fields: Sequence[Any]) -> dict[str, object]:
    vm, port, holder_pid, incarnation = fields
    return {"vm": _text(vm), "port": _text(port), "holder_pid": holder_pid, "incarnation": incarnation}


def _text(field: bytes) -> str:
    """Zeros only fill up: one in the middle stays, and no rule lets it pass."""
    return field.rstrip(b"\0").decode()
