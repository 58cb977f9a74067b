"""An entry of the registry through its broker's life and death, and `ringway list`."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import posix_ipc
import pytest

from ringway.broker.registry import Registration, remove_leftovers
from ringway.control.errors import ControlError
from ringway.control.messages import Cause
from ringway.control.registry import LinkEntry, ListedFabric, object_name, object_path, read_registry
from tests.support.broker_process import RINGWAY, run_ringway, short_directory
from tests.support.forged_entry import forged, new_fabric_id, placed
from tests.support.registry_writer import SCRIPT, number_of, state

STATES = 300


@pytest.fixture
def fabric_id() -> Iterator[str]:
    """A new one; its object is gone after the test, whatever that did."""
    made = new_fabric_id()
    yield made
    for path in Path("/dev/shm").glob(f"*{made}*"):
        path.unlink()


@pytest.fixture
def runtime() -> Iterator[Path]:
    with short_directory() as path:
        (path / "run").mkdir(mode=0o700)
        yield path / "run"


@contextlib.contextmanager
def writer(fabric_id: str, runtime: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Ends by SIGKILL if it has not before. Without "once" it rewrites its state all the time."""
    script = str(SCRIPT)
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


def find(fabric_id: str) -> ListedFabric | None:
    registry = read_registry()
    assert not [note for note in registry.notes if fabric_id in note]
    return next((fabric for fabric in registry.fabrics if fabric.fabric_id == fabric_id), None)


def listed(fabric_id: str) -> ListedFabric:
    fabric = find(fabric_id)
    assert fabric is not None
    return fabric


def names_of(fabric_id: str) -> list[str]:
    """Its objects, under whatever name."""
    return sorted(path.name for path in Path("/dev/shm").glob(f"*{fabric_id}*"))


def test_what_is_written_is_what_is_read(fabric_id: str, runtime: Path) -> None:
    registration = Registration(fabric_id, runtime)
    assert listed(fabric_id).links == []
    for number in (5, 96, 1, 97, 30):
        registration.write(state(number))
        fabric = listed(fabric_id)
        assert fabric.links == state(number)
    assert (fabric.runtime, fabric.runtime_gone) == (str(runtime), False)
    assert (fabric.owner, fabric.broker_pid, fabric.running) == (os.geteuid(), os.getpid(), True)
    assert names_of(fabric_id) == [f"ringway-{fabric_id}"]
    registration.close(unlink=True)
    registration.close(unlink=True)
    assert names_of(fabric_id) == []


def test_only_its_owner_may_read_it(fabric_id: str, runtime: Path) -> None:
    registration = Registration(fabric_id, runtime)
    assert object_path(object_name(fabric_id)).stat().st_mode & 0o777 == 0o400
    registration.close(unlink=True)


def test_beside_a_writer_each_reader_sees_a_whole_and_living_entry_and_never_an_older_one(
    fabric_id: str, runtime: Path
) -> None:
    last = 0
    with writer(fabric_id, runtime) as process:
        while last < STATES:
            fabric = listed(fabric_id)
            number = number_of(fabric.links)
            assert fabric.running
            assert number is None or number >= last
            last = number or last
            assert object_name(fabric_id) not in remove_leftovers()
        assert process.poll() is None
    assert not listed(fabric_id).running
    remove_leftovers()
    assert names_of(fabric_id) == [f"ringway-{fabric_id}"]


def is_killed(step: int, prepare: Callable[[], Callable[[], object]]) -> bool:
    """Have a child do what `prepare` returns, and be killed before it calls into C for the step-th time: every system
    call is within such a call. False if it was done before it came so far."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "c_call"
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)

    status = 1
    try:
        work = prepare()
        sys.setprofile(count)
        work()
        sys.setprofile(None)
        status = 0
    finally:
        os._exit(status)


def leave(fabric_id: str, runtime: Path, number: int) -> None:
    """What a dead broker has left."""
    registration = Registration(fabric_id, runtime)
    registration.write(state(number))
    registration.close(unlink=False)


Deed = Callable[[Registration], object]


@pytest.mark.parametrize(
    ("before", "deed", "after"),
    [
        (None, None, []),
        (state(1), None, []),
        (state(1), lambda registration: registration.write(state(2)), state(2)),
        (state(1), lambda registration: registration.close(unlink=True), None),
    ],
    ids=["the first broker", "a successor", "a change", "the end"],
)
def test_a_broker_killed_at_any_step_leaves_the_old_or_the_new_entry(
    before: list[LinkEntry] | None, deed: Deed | None, after: list[LinkEntry] | None, fabric_id: str, runtime: Path
) -> None:
    def prepare() -> Callable[[], object]:
        if deed is None:
            return lambda: Registration(fabric_id, runtime)
        registration = Registration(fabric_id, runtime)
        registration.write(state(1))
        return lambda: deed(registration)

    seen: list[list[LinkEntry] | None] = []
    for step in itertools.count(1):
        if before is not None:
            leave(fabric_id, runtime, 1)
        killed = is_killed(step, prepare)
        fabric = find(fabric_id)
        assert fabric is None or not fabric.running
        seen.append(fabric.links if fabric else None)
        remove_leftovers()
        assert names_of(fabric_id) == ([f"ringway-{fabric_id}"] if fabric else [])
        Registration(fabric_id, runtime).close(unlink=True)  # whatever it is, it is in no successor's way
        assert names_of(fabric_id) == []
        if not killed:
            break
    steps_before = seen.count(before)
    assert seen == [before] * steps_before + [after] * (len(seen) - steps_before)
    assert 0 < steps_before < len(seen)


def test_a_cleaner_killed_at_any_step_leaves_the_rest_to_the_next(fabric_id: str, runtime: Path) -> None:
    neighbour = Registration(new_fabric_id(), runtime.parent)
    for step in itertools.count(1):
        runtime.mkdir(exist_ok=True)
        leave(fabric_id, runtime, 1)
        runtime.rmdir()
        temporary = f"{object_name(fabric_id)}.{new_fabric_id()}"
        os.close(posix_ipc.SharedMemory(temporary, posix_ipc.O_CREX, mode=0o400).fd)
        killed = is_killed(step, lambda: remove_leftovers)
        fabric = find(fabric_id)
        assert fabric is None or (fabric.links, fabric.runtime_gone) == (state(1), True)
        left = names_of(fabric_id)
        assert killed or not left
        assert sorted(remove_leftovers()) == [f"/{name}" for name in left]
        assert names_of(fabric_id) == []
        if not killed:
            break
    neighbour.close(unlink=True)


def test_a_write_that_fails_leaves_the_state_before_and_the_next_one_counts(fabric_id: str, runtime: Path) -> None:
    """A limit on file sizes stands for a full /dev/shm: a part is written, then the kernel refuses."""
    registration = Registration(fabric_id, runtime)
    registration.write(state(2))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        for _ in range(3):
            with pytest.raises(ControlError, match="cannot be written"):
                registration.write(state(96))
            assert listed(fabric_id).links == state(2)
            assert listed(fabric_id).running
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names_of(fabric_id) == [f"ringway-{fabric_id}"]
    registration.write(state(95))
    assert listed(fabric_id).links == state(95)
    registration.close(unlink=True)


def test_a_dead_brokers_fabric_is_still_listed_and_its_successor_takes_over(fabric_id: str, runtime: Path) -> None:
    with writer(fabric_id, runtime, "once") as process:
        assert listed(fabric_id).running
    fabric = listed(fabric_id)
    assert (fabric.running, fabric.broker_pid, fabric.links) == (False, process.pid, state(1))
    assert object_name(fabric_id) not in remove_leftovers()
    registration = Registration(fabric_id, runtime)
    fabric = listed(fabric_id)
    assert (fabric.running, fabric.broker_pid, fabric.links) == (True, os.getpid(), [])
    registration.close(unlink=False)
    assert not listed(fabric_id).running


def test_what_a_broker_has_started_does_not_keep_it_living(fabric_id: str, runtime: Path) -> None:
    """A keeper outlives its broker, and the lock is the broker's."""
    registration = Registration(fabric_id, runtime)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False) as started:
        registration.close(unlink=False)
        assert not listed(fabric_id).running
        started.communicate()


def test_a_living_brokers_name_is_not_taken(fabric_id: str, runtime: Path) -> None:
    with writer(fabric_id, runtime, "once"):
        with pytest.raises(ControlError, match="held by a living broker") as caught:
            Registration(fabric_id, runtime)
        assert caught.value.cause is Cause.RUNTIME
        assert listed(fabric_id).running


def test_an_entry_that_somebody_removed_comes_back_with_the_next_change(fabric_id: str, runtime: Path) -> None:
    registration = Registration(fabric_id, runtime)
    object_path(object_name(fabric_id)).unlink()
    registration.write(state(1))
    assert listed(fabric_id).links == state(1)
    registration.close(unlink=True)


def test_an_entry_that_somebody_removed_is_another_brokers_if_that_has_its_name(fabric_id: str, runtime: Path) -> None:
    """Its runtime directory is a copy."""
    registration = Registration(fabric_id, runtime)
    object_path(object_name(fabric_id)).unlink()
    with writer(fabric_id, runtime, "once") as process:
        with pytest.raises(ControlError, match="held by a living broker"):
            registration.write(state(2))
        registration.close(unlink=True)
        assert (listed(fabric_id).broker_pid, listed(fabric_id).links) == (process.pid, state(1))
    assert names_of(fabric_id) == [f"ringway-{fabric_id}"]


def test_a_leftover_goes_with_its_runtime_directory_and_a_living_one_stays(fabric_id: str, runtime: Path) -> None:
    with writer(fabric_id, runtime, "once"):
        runtime.rmdir()
        assert object_name(fabric_id) not in remove_leftovers()
        fabric = listed(fabric_id)
        assert (fabric.running, fabric.runtime_gone) == (True, True)
    assert object_name(fabric_id) in remove_leftovers()
    assert not object_path(object_name(fabric_id)).exists()


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
    successor = Registration(new_fabric_id(), runtime)
    assert object_name(fabric_id) in remove_leftovers()
    successor.close(unlink=True)


def test_a_leftover_stays_when_its_place_is_on_a_filesystem_that_is_not_seen_here(
    fabric_id: str, runtime: Path
) -> None:
    shutil.rmtree(runtime)
    device = runtime.parent.stat().st_dev + 1
    with placed(fabric_id, forged(fabric_id, runtime=str(runtime), device=device)):
        assert not listed(fabric_id).runtime_gone
        assert object_name(fabric_id) not in remove_leftovers()
        runtime.mkdir()
        assert object_name(fabric_id) not in remove_leftovers()
        assert listed(fabric_id)


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
