"""Finds and reads the directories of all fabrics on this host, without asking a broker.

A directory is found by the name of its shared-memory object, which anybody may give to a file of his own: it is opened
so that nothing can hold the reader up, read with pread and never mapped, and a path in it is visited only if its owner
is the reader.

Whether its broker lives is told by a lock (flock) on the object: the broker holds it exclusively from before the first
byte is written until its death.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

from ringway.control import directory
from ringway.control.directory import DirectoryCause, DirectoryError, DirectoryState, ListedLink
from ringway.control.errors import ControlError
from ringway.control.messages import Cause

SHM_FOLDER: Final = Path("/dev/shm")  # where Linux keeps POSIX shared memory, shm_overview(7)
OBJECT: Final = re.compile("ringway-([0-9a-f]{16})")
READS: Final = 16  # of an object whose broker changes it meanwhile
OWNERS_SHARE: Final = 32  # objects of one user that are read; without it any user could keep root's reader busy


class ListedFabric(Struct, frozen=True):
    """One fabric of this host. What its links say of holders is as the broker knew it, when it is not running."""

    fabric_id: str
    runtime: str
    runtime_gone: bool  # known of one's own fabrics only
    owner: int  # uid
    broker_pid: int  # in the broker's own PID namespace
    running: bool
    links: list[ListedLink]


class Listing(Struct, frozen=True):
    """`notes` are sentences about objects that could not be read as a directory."""

    fabrics: list[ListedFabric]
    notes: list[str]


def list_fabrics() -> Listing:
    listing = Listing([], [])
    shares: Counter[int] = Counter()
    for fabric_id in fabric_ids():
        path = object_path(fabric_id)
        try:
            with opened(fabric_id) as fd:
                owner = os.fstat(fd).st_uid
                shares[owner] += 1
                if shares[owner] > OWNERS_SHARE:
                    continue
                # Before it is read: a broker that dies in between has written its last by then.
                running = is_living(fd)
                listing.fabrics.append(_listed(read_state(fd, fabric_id), owner, running))
        except DirectoryError as error:
            if error.cause is not DirectoryCause.GONE:
                listing.notes.append(f"{path} {error}")
    for owner, count in shares.items():
        if count > OWNERS_SHARE:
            listing.notes.append(f"{count - OWNERS_SHARE} of the {count} objects of uid {owner} were not looked at")
    return listing


def _listed(state: DirectoryState, owner: int, running: bool) -> ListedFabric:
    return ListedFabric(
        fabric_id=state.fabric_id,
        runtime=state.runtime,
        runtime_gone=owner == os.geteuid() and runtime_is_gone(state),
        owner=owner,
        broker_pid=state.broker_pid,
        running=running,
        links=state.links,
    )


def object_path(fabric_id: str) -> Path:
    return Path(f"{SHM_FOLDER}{directory.object_name(fabric_id)}")


def fabric_ids() -> list[str]:
    """By the names that there are now."""
    try:
        names = os.listdir(SHM_FOLDER)  # noqa: PTH208 - names, and no paths made of them
    except OSError as error:
        message = f"{SHM_FOLDER} cannot be read ({error.strerror}): a tmpfs has to be mounted there"
        raise ControlError(Cause.SYSTEM, message) from None
    return sorted(match[1] for name in names if (match := OBJECT.fullmatch(name)))


@contextlib.contextmanager
def opened(fabric_id: str) -> Iterator[int]:
    """A descriptor to read the object by, or DirectoryError."""
    # Neither a FIFO nor a leased file makes this wait, and no symlink leads elsewhere.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(object_path(fabric_id), flags)
    except FileNotFoundError:
        raise DirectoryError(DirectoryCause.GONE, "is gone") from None
    except OSError as error:
        raise DirectoryError(DirectoryCause.UNREADABLE, f"cannot be read ({error.strerror})") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise DirectoryError(DirectoryCause.KIND, "is not shared memory, though it has a fabric's name")
        if found.st_mode & 0o022:
            text = f"may be written by others than its owner (mode {stat.S_IMODE(found.st_mode):04o})"
            raise DirectoryError(DirectoryCause.WRITABLE, text)
        yield fd
    finally:
        os.close(fd)


def is_living(fd: int) -> bool:
    """Does a broker hold it? The lock is given back at once: a successor waits for it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def read_state(fd: int, fabric_id: str) -> DirectoryState:
    """The later of the complete copies, or DirectoryError with what is wrong with the one that claims to be later."""
    for _ in range(READS):
        refusals = []
        for position in _later_first(fd):
            try:
                state = directory.decode(_read_copy(fd, position))
            except DirectoryError as error:
                refusals.append(error)
                continue
            if state.fabric_id != fabric_id:
                raise DirectoryError(DirectoryCause.FIELD, f"says that it is of fabric {state.fabric_id}")
            return state
        if DirectoryCause.INCOMPLETE not in {error.cause for error in refusals}:
            break
    raise next((error for error in refusals if error.cause is not DirectoryCause.BLANK), refusals[0])


def _later_first(fd: int) -> list[int]:
    heads = {position: _read(fd, directory.HEAD.size, position) for position in (0, directory.COPY_SIZE)}
    return sorted(heads, key=lambda position: directory.sequence_of(heads[position]), reverse=True)


def _read_copy(fd: int, position: int) -> bytes:
    head = _read(fd, directory.HEAD.size, position)
    size = directory.size_of(head)
    return head + _read(fd, size - len(head), position + len(head))


def _read(fd: int, size: int, position: int) -> bytes:
    try:
        return os.pread(fd, size, position)
    except OSError as error:
        raise DirectoryError(DirectoryCause.UNREADABLE, f"cannot be read ({error.strerror})") from None


def runtime_is_gone(state: DirectoryState) -> bool:
    """Is the runtime directory of a fabric of one's own certainly gone, or another one in its place?

    Not certain, and so False, when that path leads to another filesystem than it did for the broker: this process then
    sees other mounts (a container's), or the filesystem is not mounted now.
    """
    path = Path(state.runtime)
    for place in (path, *path.parents):
        try:
            found = place.stat(follow_symlinks=place != path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return False
        return found.st_dev == state.device and (place != path or found.st_ino != state.inode)
    return False
