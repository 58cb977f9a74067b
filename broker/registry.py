"""The fabric's entry in the host's registry: writes it, and clears away what killed brokers left.

    object           lock   means                  may be removed or replaced by
    an entry         held   its broker lives       that broker
    an entry         free   its broker is dead     the fabric's next broker; any broker of the same user when the
                                                   runtime directory is gone or is another fabric's
    of a temporary   held   a broker writes it     that broker
    name             free   killed while writing   any broker of the same user

An entry is written under a temporary name and gets its own when it is whole. Whoever replaces or removes a name holds
its object exclusively (flock) and has seen since then that the name still is this object's. So no two do, and a name
that was given to a new object in between stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import posix_ipc

from ringway.control import registry
from ringway.control.errors import ControlError
from ringway.control.messages import Cause
from ringway.control.registry import FabricEntry, LinkEntry, RegistryCause, RegistryError
from ringway.control.runtime import control_path

MODE = 0o400  # the runtime directory is as private: who may read the one may ask the broker in the other


class Registration:
    """The entry of one fabric, held by its broker. `runtime` exists and is the broker's by now."""

    def __init__(self, fabric_id: str, runtime: Path) -> None:
        """`fabric_id` is 16 of 0-9 and a-f (else ValueError), chosen at random once and kept with the fabric.

        What a killed broker of this fabric left is replaced. ControlError when there can be no entry; links do not
        need one.
        """
        self._name = registry.object_name(fabric_id)
        control_path(runtime)  # refuses paths that are too long, or not UTF-8
        found = runtime.lstat()
        self._entry = FabricEntry(fabric_id, os.getpid(), str(runtime.absolute()), found.st_dev, found.st_ino, [])
        self._fd = -1
        self.write([])

    def write(self, links: Sequence[LinkEntry]) -> None:
        """Say that these are all links; names are by control/names.py. ControlError: readers still see those before."""
        content = msgspec.json.encode(msgspec.structs.replace(self._entry, links=list(links)))
        try:
            fd = self._replace(content)
        except (posix_ipc.Error, OSError) as error:
            what = f"the fabric's entry {self._name} cannot be written ({error})"
            raise ControlError(Cause.SYSTEM, f"{what}: `ringway list` shows what was before, if anything") from None
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd

    def _replace(self, content: bytes) -> int:
        """Returns the new object, held."""
        temporary, fd = _create(self._name)
        try:
            _write_all(fd, content)
            if self._fd >= 0 and registry.has_name(self._fd, self._name):
                registry.object_path(temporary).rename(registry.object_path(self._name))
            else:  # the first, or somebody has removed it
                _take_name(self._name, temporary)
        except BaseException:
            _unlink(temporary)
            os.close(fd)
            raise
        return fd

    def close(self, unlink: bool) -> None:
        """With `unlink` the fabric is off the list; without, it stays there as one whose broker is not running."""
        if self._fd < 0:
            return
        if unlink and registry.has_name(self._fd, self._name):
            _unlink(self._name)
        os.close(self._fd)
        self._fd = -1


def remove_leftovers() -> list[str]:
    """Remove this user's objects whose broker is dead and will have no successor; returns their names.

    A dead broker's entry stays while its runtime directory does: its links may go on, and its successor takes over.
    Call it after the broker's own Registration is made, so that an entry of another fabric in the same place is seen.
    """
    occupied = {(entry.device, entry.inode) for _, running, entry in _own_entries() if running}
    removed = []
    for fd, _, entry in _own_entries():
        name = registry.object_name(entry.fabric_id)
        gone = (entry.device, entry.inode) in occupied or registry.runtime_is_gone(entry)
        if gone and _remove(name, fd):
            removed.append(name)
    for name in registry.temporary_names():
        with contextlib.suppress(RegistryError), registry.opened(name) as fd:
            if _is_own(fd) and _remove(name, fd):
                removed.append(name)
    return removed


def _own_entries() -> Iterator[tuple[int, bool, FabricEntry]]:
    """A descriptor until the next one is asked for, whether its broker lives, and what it says.

    What is not an entry is left out: it is not ours to judge, and `ringway list` tells of it.
    """
    for fabric_id in registry.fabric_ids():
        with contextlib.suppress(RegistryError), registry.opened_entry(fabric_id) as (fd, running):
            if _is_own(fd):
                yield fd, running, registry.read_entry(fd, fabric_id)


def _remove(name: str, fd: int) -> bool:
    """Unless somebody holds the object, or the name is another's by now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return registry.has_name(fd, name) and _unlink(name)


def _create(name: str) -> tuple[str, int]:
    """A new object for that name, under a temporary one, and held: from here on it is nobody's leftover."""
    while True:
        temporary = f"{name}.{secrets.token_hex(8)}"
        fd: int = posix_ipc.SharedMemory(temporary, posix_ipc.O_CREX, mode=MODE).fd
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return temporary, fd
        os.close(fd)  # somebody took it for a leftover before it was held


def _take_name(name: str, temporary: str) -> None:
    """Give a fabric's entry its name, whatever was left there by others. Nobody else has a right to it."""
    new, path = registry.object_path(temporary), registry.object_path(name)
    while True:
        try:
            with registry.opened(name) as fd:
                if not _is_own(fd):
                    break
                if registry.is_held(fd):
                    raise ControlError(Cause.RUNTIME, _held_by_another(path))
                fcntl.flock(fd, fcntl.LOCK_EX)  # waits for readers that are just looking
                if registry.has_name(fd, name):
                    new.rename(path)
                    return
        except RegistryError as error:
            if error.cause is not RegistryCause.GONE:
                break
            with contextlib.suppress(FileExistsError):  # a second broker of this fabric: look again
                path.hardlink_to(new)  # a rename would replace what the other one has made meanwhile
                _unlink(temporary)
                return
    try:
        new.rename(path)
    except OSError as error:
        message = f"{path} has this fabric's name and cannot be replaced ({error}): have its owner or root remove it"
        raise ControlError(Cause.SYSTEM, message) from None


def _held_by_another(path: Path) -> str:
    return (
        f"{path} is held by a living broker of the same fabric, see `ringway list`: stop that one; if the runtime "
        "directory is a copy of that one's, use another"
    )


def _is_own(fd: int) -> bool:
    return os.fstat(fd).st_uid == os.geteuid()


def _unlink(name: str) -> bool:
    with contextlib.suppress(posix_ipc.Error, OSError):
        posix_ipc.unlink_shared_memory(name)
        return True
    return False


def _write_all(fd: int, content: bytes) -> None:
    """By write and not into a mapping: a full /dev/shm is an error then, and no SIGBUS."""
    written = 0
    while written < len(content):
        written += os.write(fd, memoryview(content)[written:])
