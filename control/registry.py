"""The registry of a host's fabrics: what an entry says, and how all of them are found and read without asking a broker.

A fabric's entry is a POSIX shared-memory object of its own, written by its broker (broker/registry.py) as JSON. An
object is whole before it has its name, and is replaced, never changed: whoever has it open reads one state. The broker
holds it by flock until its death. So a free lock means that the broker is dead, unless the name is another object's by
now.

Anybody may give such a name to a file of their own: it is opened so that nothing can hold the reader up, read with
pread and never mapped, and a path in it is visited only if its owner is the reader.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from ringway.control.errors import ControlError
from ringway.control.messages import PID_MAX, Cause
from ringway.control.names import Name, PlainName
from ringway.control.runtime import SOCKET_PATH_MAX

VERSION: Final = 1
SIZE_MAX: Final = 1 << 20  # bytes of an entry; no fabric has as many links as that would take
SHM_FOLDER: Final = Path("/dev/shm")  # where Linux keeps POSIX shared memory, shm_overview(7)
ENTRY: Final = re.compile("ringway-([0-9a-f]{16})")
TEMPORARY: Final = re.compile(r"ringway-[0-9a-f]{16}\.[0-9a-f]{16}")  # an entry that its broker is writing
OPENINGS: Final = 16  # of a name whose object is replaced meanwhile
OWNERS_SHARE: Final = 32  # entries of one user that are read; without it any user could keep root's reader busy

FabricId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]


class EndEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """`holder_pid` is 0 when nobody holds the end; `incarnation` is the holder's, or the last one's."""

    vm: PlainName
    port: PlainName
    holder_pid: Annotated[int, Meta(ge=0, le=PID_MAX)]
    incarnation: Annotated[int, Meta(ge=0, lt=1 << 32)]


class LinkEntry(Struct, frozen=True, forbid_unknown_fields=True):
    name: Name
    link_id: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    ends: tuple[EndEntry, EndEntry]  # side a, side b


class FabricEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """All that an object says. `device` and `inode` are those of the runtime directory, as its broker saw it."""

    fabric_id: FabricId
    broker_pid: Annotated[int, Meta(ge=1, le=PID_MAX)]
    runtime: Annotated[str, Meta(pattern=r"\A/[^\x00]*\Z", max_length=SOCKET_PATH_MAX)]
    device: int
    inode: int
    links: list[LinkEntry]
    version: Literal[1] = VERSION


class _Versioned(Struct):
    version: int


class RegistryCause(StrEnum):
    GONE = "gone"  # no object of that name any more
    UNREADABLE = "unreadable"  # the operating system refuses
    KIND = "kind"  # not a regular file
    WRITABLE = "writable"  # by others than its owner
    BUSY = "busy"  # replaced each time it was opened
    SIZE = "size"
    VERSION = "version"
    CONTENT = "content"  # not JSON, or not what a broker says


class RegistryError(Exception):
    """An object of a fabric's name that is no entry, or cannot be read as one. The message goes on from its path."""

    def __init__(self, cause: RegistryCause, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class ListedFabric(Struct, frozen=True):
    """One fabric of this host. What its links say of holders is as the broker knew it, when it is not running."""

    fabric_id: str
    runtime: str
    runtime_gone: bool  # known of one's own fabrics only
    owner: int  # uid
    broker_pid: int  # in the broker's own PID namespace
    running: bool
    links: list[LinkEntry]


class Registry(Struct, frozen=True):
    """`notes` are sentences about objects that could not be read as an entry."""

    fabrics: list[ListedFabric]
    notes: list[str]


def read_registry() -> Registry:
    """All that this user may see. ControlError where there is no shared memory at all."""
    registry = Registry([], [])
    shares: Counter[int] = Counter()
    for fabric_id in fabric_ids():
        try:
            with opened_entry(fabric_id) as (fd, running):
                owner = os.fstat(fd).st_uid
                shares[owner] += 1
                if shares[owner] <= OWNERS_SHARE:
                    registry.fabrics.append(_listed(read_entry(fd, fabric_id), owner, running))
        except RegistryError as error:
            if error.cause is not RegistryCause.GONE:
                registry.notes.append(f"{object_path(object_name(fabric_id))} {error}")
    for owner, count in shares.items():
        if count > OWNERS_SHARE:
            registry.notes.append(f"{count - OWNERS_SHARE} of the {count} objects of uid {owner} were not looked at")
    return registry


def _listed(entry: FabricEntry, owner: int, running: bool) -> ListedFabric:
    return ListedFabric(
        fabric_id=entry.fabric_id,
        runtime=entry.runtime,
        runtime_gone=owner == os.geteuid() and runtime_is_gone(entry),
        owner=owner,
        broker_pid=entry.broker_pid,
        running=running,
        links=entry.links,
    )


def object_name(fabric_id: str) -> str:
    """Of a fabric's entry, as shm_open(3) wants it. ValueError when it is not a fabric's id."""
    if re.fullmatch("[0-9a-f]{16}", fabric_id) is None:
        raise ValueError(f"a fabric's id is 16 of 0-9 and a-f, not {fabric_id!r}")
    return f"/ringway-{fabric_id}"


def object_path(name: str) -> Path:
    return SHM_FOLDER / name[1:]


def fabric_ids() -> list[str]:
    """By the names that there are now."""
    return sorted(match[1] for name in _names() if (match := ENTRY.fullmatch(name)))


def temporary_names() -> list[str]:
    """Of objects that are written just now, or were when their broker died; as shm_open(3) wants them."""
    return sorted(f"/{name}" for name in _names() if TEMPORARY.fullmatch(name))


def _names() -> list[str]:
    try:
        return os.listdir(SHM_FOLDER)  # noqa: PTH208 - names, and no paths made of them
    except OSError as error:
        message = f"{SHM_FOLDER} cannot be read ({error.strerror}): a tmpfs has to be mounted there"
        raise ControlError(Cause.SYSTEM, message) from None


@contextlib.contextmanager
def opened_entry(fabric_id: str) -> Iterator[tuple[int, bool]]:
    """A descriptor to read the fabric's entry by, and whether its broker lives. RegistryError."""
    name = object_name(fabric_id)
    for _ in range(OPENINGS):
        with opened(name) as fd:
            running = is_held(fd)
            # Its broker holds the new object before it lets go of the one that it has replaced.
            if running or has_name(fd, name):
                yield fd, running
                return
    raise RegistryError(RegistryCause.BUSY, f"was replaced each of {OPENINGS} times that it was opened: list again")


@contextlib.contextmanager
def opened(name: str) -> Iterator[int]:
    """A descriptor to read that object by, or RegistryError."""
    # Neither a FIFO nor a leased file makes this wait, and no symlink leads elsewhere.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(object_path(name), flags)
    except FileNotFoundError:
        raise RegistryError(RegistryCause.GONE, "is gone") from None
    except OSError as error:
        raise RegistryError(RegistryCause.UNREADABLE, f"cannot be read ({error.strerror})") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise RegistryError(RegistryCause.KIND, "is not shared memory, though it has a fabric's name")
        if found.st_mode & 0o022:
            text = f"may be written by others than its owner (mode {stat.S_IMODE(found.st_mode):04o})"
            raise RegistryError(RegistryCause.WRITABLE, text)
        yield fd
    finally:
        os.close(fd)


def is_held(fd: int) -> bool:
    """Does a broker hold the object? The lock is given back at once: a successor waits for it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def has_name(fd: int, name: str) -> bool:
    """Is that still the object's name?"""
    ours = os.fstat(fd)
    try:
        named = object_path(name).lstat()
    except OSError:
        return False
    return (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)


def read_entry(fd: int, fabric_id: str) -> FabricEntry:
    """What the object says, or RegistryError with what is wrong with it."""
    size = os.fstat(fd).st_size
    if size > SIZE_MAX:
        raise RegistryError(RegistryCause.SIZE, f"has {size} bytes; an entry has {SIZE_MAX} at most")
    try:
        content = os.pread(fd, size, 0)
    except OSError as error:
        raise RegistryError(RegistryCause.UNREADABLE, f"cannot be read ({error.strerror})") from None
    entry = decode(content)
    if entry.fabric_id != fabric_id:
        raise RegistryError(RegistryCause.CONTENT, f"says that it is of fabric {entry.fabric_id}")
    return entry


def decode(content: bytes) -> FabricEntry:
    """The bytes are anybody's: RegistryError unless they are what a broker may write."""
    try:
        entry = msgspec.json.decode(content, type=FabricEntry)
    except ValueError as error:  # msgspec's own errors are ValueErrors
        version = _version_of(content)
        if version not in (None, VERSION):
            text = f"has version {version}; this release reads {VERSION}: use the release of its broker"
            raise RegistryError(RegistryCause.VERSION, text) from None
        raise RegistryError(RegistryCause.CONTENT, f"says what no broker does: {error}") from None
    for key in ("name", "link_id"):
        if len({getattr(link, key) for link in entry.links}) != len(entry.links):
            raise RegistryError(RegistryCause.CONTENT, f"says what no broker does: two links of the same {key}")
    return entry


def _version_of(content: bytes) -> int | None:
    with contextlib.suppress(ValueError, RecursionError):
        return msgspec.json.decode(content, type=_Versioned).version
    return None


def runtime_is_gone(entry: FabricEntry) -> bool:
    """Is the runtime directory of a fabric of one's own certainly gone, or another one in its place?

    Not certain, and so False, when that path leads to another filesystem than it did for the broker: this process then
    sees other mounts (a container's), or the filesystem is not mounted now.
    """
    path = Path(entry.runtime)
    for place in (path, *path.parents):
        try:
            found = place.stat(follow_symlinks=place != path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return False
        return found.st_dev == entry.device and (place != path or found.st_ino != entry.inode)
    return False
