"""Writers, readers and cleaners of one directory segment, each made to come at the moment that would do most harm."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import posix_ipc
import pytest

from ringway.broker.directory import Directory, remove_leftovers
from ringway.control import listing
from ringway.control.directory import COPY_SIZE, HEAD, DirectoryCause, DirectoryError, object_name
from ringway.control.listing import READS, is_living, list_fabrics, object_path, opened, read_state
from tests.hostile.forged_directory import new_fabric_id
from tests.system.broker_process import short_directory
from tests.system.directory_writer import state
from tests.system.fabric_fixtures import until

real_flock = fcntl.flock
real_read = listing._read


@pytest.fixture
def fabric_id() -> Iterator[str]:
    made = new_fabric_id()
    yield made
    object_path(made).unlink(missing_ok=True)


@pytest.fixture
def runtime() -> Iterator[Path]:
    with short_directory() as path:
        yield path


def before_lock(monkeypatch: pytest.MonkeyPatch, operation: int, act: Callable[[], None]) -> None:
    """Act just before somebody asks for that lock for the first time."""

    def flock(fd: int, asked: int) -> None:
        if asked == operation:
            monkeypatch.setattr(fcntl, "flock", real_flock)
            act()
        real_flock(fd, asked)

    monkeypatch.setattr(fcntl, "flock", flock)


def test_an_object_that_is_removed_before_its_maker_locked_it_is_made_again(
    fabric_id: str, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    before_lock(monkeypatch, fcntl.LOCK_EX, lambda: removed.extend(remove_leftovers()))
    directory = Directory(fabric_id, runtime)
    assert object_name(fabric_id) in removed
    assert is_listed_as_running(fabric_id)
    directory.close(unlink=True)


def test_an_object_whose_maker_locks_it_before_its_cleaner_stays(
    fabric_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = posix_ipc.SharedMemory(object_name(fabric_id), posix_ipc.O_CREX, mode=0o400).fd
    before_lock(monkeypatch, fcntl.LOCK_EX | fcntl.LOCK_NB, lambda: real_flock(fd, fcntl.LOCK_EX))
    assert object_name(fabric_id) not in remove_leftovers()
    assert object_path(fabric_id).exists()
    os.close(fd)
    assert object_name(fabric_id) in remove_leftovers()


def test_an_object_that_got_a_leftovers_name_stays(
    fabric_id: str, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leftover is removed by another cleaner first, and its fabric comes back."""
    os.close(posix_ipc.SharedMemory(object_name(fabric_id), posix_ipc.O_CREX, mode=0o400).fd)
    made: list[Directory] = []

    def come_back() -> None:
        remove_leftovers()
        made.append(Directory(fabric_id, runtime))

    before_lock(monkeypatch, fcntl.LOCK_EX | fcntl.LOCK_NB, come_back)
    assert object_name(fabric_id) not in remove_leftovers()
    assert is_listed_as_running(fabric_id)
    made[0].close(unlink=True)


def test_a_successor_waits_for_who_is_just_looking(fabric_id: str, runtime: Path) -> None:
    Directory(fabric_id, runtime).close(unlink=False)
    with ThreadPoolExecutor(1) as thread:
        with opened(fabric_id) as fd:
            fcntl.flock(fd, fcntl.LOCK_SH)
            inode = os.fstat(fd).st_ino
            successor = thread.submit(Directory, fabric_id, runtime)
            until(lambda: is_awaited(inode) or successor.done(), "the successor waits for the lock")
            assert not successor.done()
        successor.result().close(unlink=True)


def is_listed_as_running(fabric_id: str) -> bool:
    return any(fabric.running for fabric in list_fabrics().fabrics if fabric.fabric_id == fabric_id)


def is_awaited(inode: int) -> bool:
    """By /proc/locks: a "->" before whoever waits."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f":{inode} " in line for line in lines)


def test_looking_gives_the_lock_back_at_once(fabric_id: str, runtime: Path) -> None:
    Directory(fabric_id, runtime).close(unlink=False)
    with opened(fabric_id) as looking, opened(fabric_id) as waiting:
        assert not is_living(looking)
        fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert is_living(looking)


@pytest.fixture
def overtake(fabric_id: str, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Have the writer renew both copies each time between a copy's head and the rest of it, so many times."""
    directory = Directory(fabric_id, runtime)
    number = 1
    directory.write(state(number))
    directory.write(state(number))

    def overtaken(times: int) -> None:
        def read(fd: int, size: int, position: int) -> bytes:
            nonlocal number, times
            if position % COPY_SIZE == HEAD.size and times > 0:
                times -= 1
                number += 1
                directory.write(state(number))
                directory.write(state(number))
            return real_read(fd, size, position)

        monkeypatch.setattr(listing, "_read", read)

    yield overtaken
    directory.close(unlink=True)


def test_a_reader_that_is_overtaken_reads_again(fabric_id: str, overtake: Callable[[int], None]) -> None:
    times = 2 * (READS - 1)
    overtake(times)
    with opened(fabric_id) as fd:
        assert read_state(fd, fabric_id).links == state(1 + times)


def test_a_reader_that_is_always_overtaken_gives_up(fabric_id: str, overtake: Callable[[int], None]) -> None:
    overtake(2 * READS)
    with opened(fabric_id) as fd, pytest.raises(DirectoryError) as caught:
        read_state(fd, fabric_id)
    assert caught.value.cause is DirectoryCause.INCOMPLETE
    overtake(2 * READS)
    (note,) = (note for note in list_fabrics().notes if fabric_id in note)
    assert "half written" in note
