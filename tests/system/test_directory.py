"""The directory segment through its writer's life and death, and `ringway list`."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import posix_ipc
import pytest

from ringway.broker.directory import Directory, remove_leftovers
from ringway.control.directory import COPY_SIZE, LINKS_MAX, OBJECT_SIZE, encode, object_name
from ringway.control.errors import ControlError
from ringway.control.listing import ListedFabric, list_fabrics, object_path, opened, read_state
from ringway.control.messages import Cause
from tests.hostile.forged_directory import Value, forged_copy, new_fabric_id, placed
from tests.system.broker_process import RINGWAY, run_ringway, short_directory
from tests.system.directory_writer import number_of, state

KILLS = 30
KILLS_FULL = 1000


@pytest.fixture
def fabric_id() -> Iterator[str]:
    """A new one; its object is gone after the test, whatever that did."""
    made = new_fabric_id()
    yield made
    object_path(made).unlink(missing_ok=True)


@pytest.fixture
def runtime() -> Iterator[Path]:
    with short_directory() as path:
        (path / "run").mkdir(mode=0o700)
        yield path / "run"


@contextlib.contextmanager
def writer(fabric_id: str, runtime: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Ends by SIGKILL if it has not before. Without "once" it rewrites its state all the time."""
    script = str(Path(__file__).with_name("directory_writer.py"))
    command = [sys.executable, script, fabric_id, str(runtime), *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def listed(fabric_id: str) -> ListedFabric:
    listing = list_fabrics()
    found = [fabric for fabric in listing.fabrics if fabric.fabric_id == fabric_id]
    assert len(found) == 1, listing.notes
    return found[0]


def links_now(fabric_id: str) -> int | None:
    with opened(fabric_id) as fd:
        return number_of(read_state(fd, fabric_id).links)


def test_what_is_written_is_what_is_read(fabric_id: str, runtime: Path) -> None:
    directory = Directory(fabric_id, runtime)
    assert listed(fabric_id).links == []
    for number in (5, 96, 1, 97, 30):
        directory.write(state(number))
        fabric = listed(fabric_id)
        assert fabric.links == state(number)
    assert (fabric.runtime, fabric.runtime_gone) == (str(runtime), False)
    assert (fabric.owner, fabric.broker_pid, fabric.running) == (os.geteuid(), os.getpid(), True)
    directory.close(unlink=True)
    directory.close(unlink=True)
    assert not object_path(fabric_id).exists()


def test_only_its_owner_may_read_it(fabric_id: str, runtime: Path) -> None:
    directory = Directory(fabric_id, runtime)
    assert object_path(fabric_id).stat().st_mode & 0o777 == 0o400
    directory.close(unlink=True)


def test_there_is_room_for_every_fabric_and_not_for_one_link_more(fabric_id: str, runtime: Path) -> None:
    (link,) = state(1)
    links = [type(link)(f"l{number}", number, link.ends) for number in range(1, LINKS_MAX + 2)]
    directory = Directory(fabric_id, runtime)
    directory.write(links[:LINKS_MAX])
    directory.write(links[1:])
    with pytest.raises(ControlError, match=f"{LINKS_MAX + 1} links are more") as caught:
        directory.write(links)
    assert caught.value.cause is Cause.LIMIT
    assert listed(fabric_id).links == links[1:]
    directory.close(unlink=True)


@pytest.mark.parametrize("kills", [KILLS, pytest.param(KILLS_FULL, marks=[pytest.mark.full, pytest.mark.timeout(900)])])
def test_a_writer_killed_at_any_moment_leaves_an_old_or_a_new_state(kills: int, fabric_id: str, runtime: Path) -> None:
    moments = random.Random(20261125)
    for _ in range(kills):
        with writer(fabric_id, runtime) as process:
            last = 0
            for _ in range(moments.randrange(60)):
                number = links_now(fabric_id)
                assert number is None or number >= last  # it never goes back
                last = number or last
            process.kill()
            process.wait()
        number = links_now(fabric_id)
        assert number is None or number >= last
        assert not listed(fabric_id).running


def test_a_write_that_stops_after_any_byte_leaves_the_state_before(fabric_id: str) -> None:
    old = forged_copy(fabric_id, sequence=4)
    new = forged_copy(fabric_id, sequence=5, broker_pid=5)
    below = forged_copy(fabric_id, sequence=3, broker_pid=3)  # what the new one is written over
    with placed(fabric_id, old, below, mode=0o600) as path:
        fd = os.open(path, os.O_RDWR)
        for size in range(len(new) + 1):
            mixed = new[:size] + below[size:]
            os.pwrite(fd, mixed, COPY_SIZE)
            assert listed(fabric_id).broker_pid == (5 if mixed == new else 4710)
        os.close(fd)


def test_a_write_that_fails_leaves_the_state_before_and_the_next_one_counts(fabric_id: str, runtime: Path) -> None:
    """A limit on file sizes stands for a full /dev/shm: a part is written, then the kernel refuses."""
    directory = Directory(fabric_id, runtime)
    directory.write(state(2))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (COPY_SIZE + 4096, limits[1]))
    try:
        for _ in range(3):
            with pytest.raises(ControlError, match="cannot be written"):
                directory.write(state(96))
            assert listed(fabric_id).links == state(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    directory.write(state(95))
    assert listed(fabric_id).links == state(95)
    directory.close(unlink=True)


def test_a_dead_brokers_fabric_is_still_listed_and_its_successor_takes_over(fabric_id: str, runtime: Path) -> None:
    with writer(fabric_id, runtime, "once") as process:
        assert listed(fabric_id).running
    fabric = listed(fabric_id)
    assert (fabric.running, fabric.broker_pid, fabric.links) == (False, process.pid, state(1))
    assert object_name(fabric_id) not in remove_leftovers()
    directory = Directory(fabric_id, runtime)
    fabric = listed(fabric_id)
    assert (fabric.running, fabric.broker_pid, fabric.links) == (True, os.getpid(), [])
    directory.close(unlink=False)
    assert not listed(fabric_id).running


def test_what_a_broker_has_started_does_not_keep_it_living(fabric_id: str, runtime: Path) -> None:
    """A keeper outlives its broker, and the lock is the broker's."""
    directory = Directory(fabric_id, runtime)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False) as started:
        directory.close(unlink=False)
        assert not listed(fabric_id).running
        started.communicate()


def test_a_living_brokers_name_is_not_taken(fabric_id: str, runtime: Path) -> None:
    with writer(fabric_id, runtime, "once"):
        with pytest.raises(ControlError, match="held by a living broker") as caught:
            Directory(fabric_id, runtime)
        assert caught.value.cause is Cause.RUNTIME
        assert listed(fabric_id).running


def test_a_leftover_goes_with_its_runtime_directory_and_a_living_one_stays(fabric_id: str, runtime: Path) -> None:
    with writer(fabric_id, runtime, "once"):
        runtime.rmdir()
        assert object_name(fabric_id) not in remove_leftovers()
        fabric = listed(fabric_id)
        assert (fabric.running, fabric.runtime_gone) == (True, True)
    assert object_name(fabric_id) in remove_leftovers()
    assert not object_path(fabric_id).exists()


def test_a_leftover_goes_when_another_directory_is_in_its_place(fabric_id: str, runtime: Path) -> None:
    with writer(fabric_id, runtime, "once"):
        pass
    runtime.rename(runtime.with_name("moved"))
    runtime.mkdir()
    assert listed(fabric_id).runtime_gone
    assert object_name(fabric_id) in remove_leftovers()


def test_a_leftover_goes_when_the_directory_has_another_fabric(fabric_id: str, runtime: Path) -> None:
    with writer(fabric_id, runtime, "once"):
        pass
    successor = Directory(new_fabric_id(), runtime)
    assert object_name(fabric_id) in remove_leftovers()
    successor.close(unlink=True)


def test_a_leftover_stays_when_its_place_is_on_a_filesystem_that_is_not_seen_here(
    fabric_id: str, runtime: Path
) -> None:
    shutil.rmtree(runtime)
    elsewhere: dict[str, Value] = {"runtime": os.fsencode(runtime), "device": runtime.parent.stat().st_dev + 1}
    with placed(fabric_id, forged_copy(fabric_id, **elsewhere)):
        assert not listed(fabric_id).runtime_gone
        assert object_name(fabric_id) not in remove_leftovers()
        runtime.mkdir()
        assert object_name(fabric_id) not in remove_leftovers()
        assert listed(fabric_id)


def test_an_object_whose_maker_was_killed_before_it_wrote_is_removed() -> None:
    for size in (0, OBJECT_SIZE):
        fabric_id = new_fabric_id()
        os.close(posix_ipc.SharedMemory(object_name(fabric_id), posix_ipc.O_CREX, mode=0o400, size=size).fd)
        assert object_name(fabric_id) in remove_leftovers()
        assert not object_path(fabric_id).exists()


def test_list_shows_links_holders_and_whether_the_broker_runs(fabric_id: str, runtime: Path) -> None:
    with writer(fabric_id, runtime, "once") as process:
        done = run_ringway("list")
        assert (done.returncode, done.stderr) == (0, "")
        heading = f"{runtime}: broker runs, pid {process.pid}; uid {os.geteuid()}, fabric {fabric_id}"
        assert heading in done.stdout
        row = next(line for line in done.stdout.splitlines() if line.startswith("link-1 "))
        assert row.split(maxsplit=2)[:2] == ["link-1", "65537"]
        assert "client.net pid 1, incarnation 1" in row
        assert "server.net pid 1, incarnation 1" in row
    done = run_ringway("list")
    assert f"{runtime}: broker is not running (was pid {process.pid}); as it last knew its links;" in done.stdout
    fabrics = json.loads(run_ringway("list", "--json").stdout)["fabrics"]
    (fabric,) = (fabric for fabric in fabrics if fabric["fabric_id"] == fabric_id)
    assert not fabric["running"]
    assert fabric["links"][0]["ends"][1] == {"vm": "server", "port": "net", "holder_pid": 1, "incarnation": 1}
    runtime.rmdir()
    assert f"{runtime}; this directory is gone: broker is not running" in run_ringway("list").stdout


@pytest.mark.needs_root
def test_list_says_when_there_is_nothing() -> None:
    empty = 'mount -t tmpfs tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", empty, "sh", *RINGWAY, "list"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "no fabric on this host that you may see: `ringway broker`\n"


def test_the_encoder_writes_what_the_table_says(fabric_id: str, runtime: Path) -> None:
    """Two descriptions of one layout: the forger packs its own."""
    directory = Directory(fabric_id, runtime)
    with opened(fabric_id) as fd:
        copy = encode(read_state(fd, fabric_id), 7)
    found = runtime.lstat()
    place: dict[str, Value] = {"device": found.st_dev, "inode": found.st_ino, "runtime": os.fsencode(runtime)}
    assert copy == forged_copy(fabric_id, [], sequence=7, broker_pid=os.getpid(), **place)
    directory.close(unlink=True)
