"""Writers, readers and cleaners of one entry, each made to come at the moment that would do most harm."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import posix_ipc
import pytest

from ringway.broker.registry import Registration, remove_leftovers
from ringway.control import registry
from ringway.control.errors import ControlError
from ringway.control.registry import (
    OPENINGS,
    RegistryCause,
    RegistryError,
    is_held,
    object_name,
    object_path,
    opened,
    opened_entry,
    read_entry,
    read_registry,
)
from tests.support.broker_process import short_directory
from tests.support.forged_entry import new_fabric_id
from tests.support.registry_writer import state
from tests.support.waiting import until

real_flock = fcntl.flock
real_link = os.link
real_held = registry.is_held


@pytest.fixture
def fabric_id() -> Iterator[str]:
    made = new_fabric_id()
    yield made
    for path in Path("/dev/shm").glob(f"*{made}*"):
        path.unlink()


@pytest.fixture
def runtime() -> Iterator[Path]:
    with short_directory() as path:
        yield path


def before_lock(monkeypatch: pytest.MonkeyPatch, operation: int, act: Callable[[], object]) -> None:
    """Act just before somebody asks for that lock for the first time."""

    def flock(fd: int, asked: int) -> None:
        if asked == operation:
            monkeypatch.setattr(fcntl, "flock", real_flock)
            act()
        real_flock(fd, asked)

    monkeypatch.setattr(fcntl, "flock", flock)


def half_written(fabric_id: str) -> tuple[str, int]:
    """What a broker that has just begun to write has: a name, and a descriptor that is not locked yet."""
    name = f"{object_name(fabric_id)}.{secrets.token_hex(8)}"
    fd: int = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o400).fd
    return name, fd


def test_an_object_that_is_removed_before_its_broker_holds_it_is_made_again(
    fabric_id: str, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    before_lock(monkeypatch, fcntl.LOCK_EX, lambda: removed.extend(remove_leftovers()))
    registration = Registration(fabric_id, runtime)
    assert [name for name in removed if name.startswith(f"{object_name(fabric_id)}.")]
    assert is_listed_as_running(fabric_id)
    registration.close(unlink=True)


def test_an_object_that_its_broker_holds_before_its_cleaner_does_stays(
    fabric_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, fd = half_written(fabric_id)
    before_lock(monkeypatch, fcntl.LOCK_EX | fcntl.LOCK_NB, lambda: real_flock(fd, fcntl.LOCK_EX))
    assert name not in remove_leftovers()
    assert object_path(name).exists()
    os.close(fd)
    assert name in remove_leftovers()


def test_an_object_that_has_its_own_name_before_its_cleaner_holds_it_stays(
    fabric_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its broker was done, and died."""
    name, fd = half_written(fabric_id)
    os.close(fd)
    path = object_path(object_name(fabric_id))
    before_lock(monkeypatch, fcntl.LOCK_EX | fcntl.LOCK_NB, lambda: object_path(name).rename(path))
    assert name not in remove_leftovers()
    assert path.exists()


def test_an_entry_that_got_a_leftovers_name_stays(
    fabric_id: str, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leftover is removed by another cleaner first, and its fabric comes back."""
    lost = runtime / "lost"
    lost.mkdir()
    Registration(fabric_id, lost).close(unlink=False)
    lost.rmdir()
    made: list[Registration] = []

    def come_back() -> None:
        assert object_name(fabric_id) in remove_leftovers()
        made.append(Registration(fabric_id, runtime))

    before_lock(monkeypatch, fcntl.LOCK_EX | fcntl.LOCK_NB, come_back)
    assert object_name(fabric_id) not in remove_leftovers()
    assert is_listed_as_running(fabric_id)
    made[0].close(unlink=True)


def test_of_two_brokers_of_one_fabric_at_once_the_slower_is_refused(
    fabric_id: str, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their runtime directories are copies. Both have seen that the name is free."""
    faster: list[Registration] = []

    def link(new: Path, path: Path) -> None:
        monkeypatch.setattr(os, "link", real_link)
        faster.append(Registration(fabric_id, runtime))
        real_link(new, path)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(ControlError, match="held by a living broker"):
        Registration(fabric_id, runtime)
    faster[0].write(state(3))
    assert is_listed_as_running(fabric_id)
    faster[0].close(unlink=True)
    assert not list(Path("/dev/shm").glob(f"*{fabric_id}*"))


def test_of_two_successors_at_once_the_slower_is_refused(
    fabric_id: str, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have seen that the broker before them is dead."""
    Registration(fabric_id, runtime).close(unlink=False)
    faster: list[Registration] = []

    def is_held_too_late(fd: int) -> bool:
        monkeypatch.setattr(registry, "is_held", real_held)
        found = real_held(fd)
        faster.append(Registration(fabric_id, runtime))
        return found

    monkeypatch.setattr(registry, "is_held", is_held_too_late)
    with pytest.raises(ControlError, match="held by a living broker"):
        Registration(fabric_id, runtime)
    assert is_listed_as_running(fabric_id)
    faster[0].close(unlink=True)


def test_a_successor_waits_for_who_is_just_looking(fabric_id: str, runtime: Path) -> None:
    Registration(fabric_id, runtime).close(unlink=False)
    with ThreadPoolExecutor(1) as thread:
        with opened(object_name(fabric_id)) as fd:
            fcntl.flock(fd, fcntl.LOCK_SH)
            inode = os.fstat(fd).st_ino
            successor = thread.submit(Registration, fabric_id, runtime)
            until(lambda: is_awaited(inode) or successor.done(), "the successor waits for the lock")
            assert not successor.done()
        successor.result().close(unlink=True)


def is_listed_as_running(fabric_id: str) -> bool:
    return any(fabric.running for fabric in read_registry().fabrics if fabric.fabric_id == fabric_id)


def is_awaited(inode: int) -> bool:
    """By /proc/locks: a "->" before whoever waits."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f":{inode} " in line for line in lines)


def test_looking_gives_the_lock_back_at_once(fabric_id: str, runtime: Path) -> None:
    Registration(fabric_id, runtime).close(unlink=False)
    with opened(object_name(fabric_id)) as looking, opened(object_name(fabric_id)) as waiting:
        assert not is_held(looking)
        fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert is_held(looking)


@pytest.fixture
def overtake(fabric_id: str, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Have the broker replace its entry between a reader's opening and its look at the lock, so many times."""
    registration = Registration(fabric_id, runtime)
    number = 1

    def overtaken(times: int) -> None:
        def is_held_after_a_change(fd: int) -> bool:
            nonlocal number, times
            if times:
                times -= 1
                number += 1
                registration.write(state(number))
            return real_held(fd)

        monkeypatch.setattr(registry, "is_held", is_held_after_a_change)

    yield overtaken
    registration.close(unlink=True)


def test_a_reader_that_is_overtaken_opens_the_new_entry(fabric_id: str, overtake: Callable[[int], None]) -> None:
    overtake(OPENINGS - 1)
    with opened_entry(fabric_id) as (fd, running):
        assert running
        assert read_entry(fd, fabric_id).links == state(OPENINGS)


def test_a_reader_that_is_always_overtaken_gives_up(fabric_id: str, overtake: Callable[[int], None]) -> None:
    overtake(OPENINGS)
    with pytest.raises(RegistryError) as caught, opened_entry(fabric_id):
        pass
    assert caught.value.cause is RegistryCause.BUSY
    overtake(OPENINGS)
    (note,) = (note for note in read_registry().notes if fabric_id in note)
    assert "list again" in note
