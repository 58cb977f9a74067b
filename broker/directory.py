"""The fabric's entry in the host's list: writes its directory segment, and clears away what killed brokers left.

    lock on the object       means                     may be removed by
    held exclusively         its broker lives          that broker
    free, something written  its broker is dead        the fabric's next broker; any broker of the same user when the
                                                       runtime directory is gone or is another fabric's
    free, nothing written    killed while it made it   any broker of the same user

Who removes an object holds it exclusively and has seen that the name still is this object's. So no two remove it, and
a name that was given to a new one in between stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import posix_ipc

from ringway.control import listing
from ringway.control.directory import (
    COPY_SIZE,
    OBJECT_SIZE,
    DirectoryCause,
    DirectoryError,
    DirectoryState,
    ListedLink,
    encode,
    object_name,
)
from ringway.control.errors import ControlError
from ringway.control.messages import Cause
from ringway.control.runtime import control_path

MODE = 0o400  # the runtime directory is as private: who may read the one may ask the broker in the other


class Directory:
    """The segment of one fabric, held by its broker. `runtime` exists and is the broker's by now."""

    def __init__(self, fabric_id: str, runtime: Path) -> None:
        """`fabric_id` is 16 of 0-9 and a-f (else ValueError), chosen at random once and kept with the fabric.

        What a killed broker of this fabric left is replaced. ControlError when there can be no segment; links do not
        need one.
        """
        self._name = object_name(fabric_id)
        control_path(runtime)  # refuses paths that are too long, or not UTF-8
        found = runtime.lstat()
        self._state = DirectoryState(fabric_id, os.getpid(), str(runtime.absolute()), found.st_dev, found.st_ino, [])
        self._sequence = 0
        _remove_former(fabric_id)
        self._fd = _create(self._name)
        try:
            self.write([])
        except ControlError:
            self.close(unlink=True)
            raise

    def write(self, links: Sequence[ListedLink]) -> None:
        """Say that these are all links; names are by control/names.py. ControlError: readers still see those before."""
        state = DirectoryState(
            self._state.fabric_id,
            self._state.broker_pid,
            self._state.runtime,
            self._state.device,
            self._state.inode,
            list(links),
        )
        sequence = self._sequence + 1
        # Over the older copy. A write that fails leaves the number, and so the next one does not take the good copy.
        _write_all(self._fd, encode(state, sequence), sequence % 2 * COPY_SIZE)
        self._sequence = sequence

    def close(self, unlink: bool) -> None:
        """With `unlink` the fabric is off the list; without, it stays there as one whose broker is not running."""
        if self._fd < 0:
            return
        if unlink:
            _unlink_if_same(self._name, self._fd)
        os.close(self._fd)
        self._fd = -1


def remove_leftovers() -> list[str]:
    """Remove this user's objects whose broker is dead and whose fabric will not come back; returns their names.

    A dead broker's object stays while its runtime directory does: its links may go on, and its successor takes over.
    Call it after the broker's own Directory is made, so that one which another fabric had in the same place is seen.
    """
    occupied = {(state.device, state.inode) for _, _, living, state in _own_objects() if living and state}
    removed = []
    for fabric_id, fd, living, state in _own_objects():
        if living:
            continue
        gone = state is None or (state.device, state.inode) in occupied or listing.runtime_is_gone(state)
        if gone and _lock_now(fd) and _unlink_if_same(object_name(fabric_id), fd):
            removed.append(object_name(fabric_id))
    return removed


def _own_objects() -> Iterator[tuple[str, int, bool, DirectoryState | None]]:
    """Fabric id, a descriptor until the next one is asked for, whether its broker lives, and its state if it has one.

    What is not a directory is left out: it is not ours to judge, and `ringway list` tells of it.
    """
    for fabric_id in listing.fabric_ids():
        with contextlib.suppress(DirectoryError), listing.opened(fabric_id) as fd:
            if os.fstat(fd).st_uid != os.geteuid():
                continue
            living = listing.is_living(fd)
            try:
                state = listing.read_state(fd, fabric_id)
            except DirectoryError as error:
                if error.cause is not DirectoryCause.BLANK:
                    continue
                state = None
            yield fabric_id, fd, living, state


def _remove_former(fabric_id: str) -> None:
    """Free the name of a fabric whose broker is the caller. Nobody else has a right to it."""
    name = object_name(fabric_id)
    try:
        with listing.opened(fabric_id) as fd:
            if os.fstat(fd).st_uid == os.geteuid():
                _take_over(fabric_id, fd)
                return
    except DirectoryError as error:
        if error.cause is DirectoryCause.GONE:
            return
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        return
    except (posix_ipc.Error, OSError) as error:
        path = listing.object_path(fabric_id)
        message = f"{path} has this fabric's name and cannot be removed ({error}): have its owner or root remove it"
        raise ControlError(Cause.SYSTEM, message) from None


def _take_over(fabric_id: str, fd: int) -> None:
    if listing.is_living(fd):
        message = (
            f"{listing.object_path(fabric_id)} is held by a living broker of the same fabric, see `ringway list`: stop "
            "that one; if the runtime directory is a copy of that one's, use another"
        )
        raise ControlError(Cause.RUNTIME, message)
    fcntl.flock(fd, fcntl.LOCK_EX)  # waits for those who are just looking
    _unlink_if_same(object_name(fabric_id), fd)


def _create(name: str) -> int:
    """A new object, locked. It is not left when somebody took it for a leftover before it was locked: again, then."""
    try:
        while True:
            fd: int = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=MODE, size=OBJECT_SIZE).fd
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return fd
            os.close(fd)
    except (posix_ipc.Error, OSError, ValueError) as error:  # ValueError: larger than a file may be (ulimit -f)
        message = f"the fabric's directory {name} cannot be made ({error}): `ringway list` will not show this fabric"
        raise ControlError(Cause.SYSTEM, message) from None


def _lock_now(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlink_if_same(name: str, fd: int) -> bool:
    """Remove the name if it still is that of the object behind `fd`, which the caller holds exclusively."""
    ours = os.fstat(fd)
    with contextlib.suppress(posix_ipc.Error, OSError):
        named = os.lstat(f"{listing.SHM_FOLDER}{name}")
        if (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino):
            posix_ipc.unlink_shared_memory(name)
            return True
    return False


def _write_all(fd: int, content: bytes, position: int) -> None:
    """By pwrite and not into a mapping: a full /dev/shm is an error then, and no SIGBUS."""
    try:
        written = 0
        while written < len(content):
            written += os.pwrite(fd, memoryview(content)[written:], position + written)
    except OSError as error:
        message = f"the fabric's directory cannot be written ({error.strerror}): `ringway list` shows what was before"
        raise ControlError(Cause.SYSTEM, message) from None
