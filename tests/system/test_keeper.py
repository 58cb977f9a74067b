"""A keeper outlives those who put descriptors in its keeping, gives them back, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest

from ringway.broker import keeper_client
from ringway.broker.keeper_client import Keeper, KeeperGone
from ringway.broker.keeper_server import DESCRIPTORS_PER_ENTRY, DROP, ENTRY, LIST, PUT, SELF, VALUE_SIZE
from ringway.control.errors import ControlError
from ringway.control.messages import Cause
from tests.support.broker_process import (
    RINGWAY,
    own_descriptors,
    room_for_descriptors,
    run_ringway,
    short_directory,
)
from tests.support.keeper_process import (
    await_end,
    keys,
    killed_client,
    knocking,
    memories,
    message,
    reached,
    readable,
    running_keeper,
    settled_descriptors,
    taken,
    watching,
)


@pytest.fixture
def runtime() -> Iterator[Path]:
    with short_directory() as path:
        yield path / "run"


@pytest.fixture
def keeper(runtime: Path) -> Iterator[Keeper]:
    with running_keeper(runtime) as reached_one:
        yield reached_one


def test_what_was_put_is_taken_back_by_the_next_client(runtime: Path, keeper: Keeper) -> None:
    with memories(b"region", b"more") as fds, os.fdopen(os.memfd_create("x"), "wb") as other:
        keeper.put("link/one", b"\0opaque\xff", fds)
        keeper.put("nothing", b"", [])
        keeper.put("k" * 32, b"v" * VALUE_SIZE, [other.fileno()] * DESCRIPTORS_PER_ENTRY)
    keeper.close()
    with reached(runtime) as successor, taken(successor) as kept:
        assert list(kept) == ["link/one", "nothing", "k" * 32]
        assert kept["link/one"].value == b"\0opaque\xff"
        assert [os.pread(fd, 100, 0) for fd in kept["link/one"].fds] == [b"region", b"more"]
        assert not any(os.get_inheritable(fd) for fd in kept["link/one"].fds)
        assert (kept["nothing"].value, kept["nothing"].fds) == (b"", [])
        assert (len(kept["k" * 32].value), len(kept["k" * 32].fds)) == (VALUE_SIZE, DESCRIPTORS_PER_ENTRY)


def test_an_entry_that_is_dropped_or_replaced_is_closed(runtime: Path, keeper: Keeper) -> None:
    before = settled_descriptors(runtime)
    with memories(b"one", b"two", b"three") as fds:
        keeper.put("a", b"1", fds)
        keeper.put("b", b"2", fds[:1])
        assert settled_descriptors(runtime) == before + 4
        keeper.put("a", b"3", fds[:2])
        assert settled_descriptors(runtime) == before + 3
        keeper.drop("b")
        keeper.drop("never put")
        assert settled_descriptors(runtime) == before + 2
    with taken(keeper) as kept:
        assert [(entry.key, entry.value) for entry in kept.values()] == [("a", b"3")]
        assert [os.pread(fd, 100, 0) for fd in kept["a"].fds] == [b"one", b"two"]


def test_a_connected_socket_of_a_killed_client_stays_connected(runtime: Path, keeper: Keeper) -> None:
    keeper.close()
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            killed_client(runtime, "keeper.put('connection', b'', [int(sys.argv[2])])", [theirs.fileno()])
        with reached(runtime) as successor, taken(successor) as kept:
            with pytest.raises(BlockingIOError):
                ours.recv(10, socket.MSG_DONTWAIT)  # an end of file would be b""
            os.write(kept["connection"].fds[0], b"still here")
            assert ours.recv(100) == b"still here"
            successor.drop("connection")
            successor.settle()
        assert ours.recv(10) == b""


def test_a_listening_socket_of_a_killed_client_goes_on_listening(runtime: Path, keeper: Keeper) -> None:
    keeper.close()
    path = str(runtime / "listener")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        killed_client(runtime, "keeper.put('listener', b'', [int(sys.argv[2])])", [listener.fileno()])
    with socket.socket(socket.AF_UNIX) as late:
        late.connect(path)
        with (
            reached(runtime) as successor,
            taken(successor) as kept,
            socket.socket(fileno=os.dup(kept["listener"].fds[0])) as listener,
        ):
            listener.accept()[0].close()
        assert late.recv(10) == b""


@pytest.mark.parametrize("order", ["waiting beside the dead one", "coming after it"])
def test_what_a_killed_client_put_last_comes_into_its_successors_list(
    runtime: Path, keeper: Keeper, order: str
) -> None:
    keeper.settle()
    with contextlib.ExitStack() as clients, watching(keeper.pid) as pid_fd:
        if order == "waiting beside the dead one":
            successor = clients.enter_context(knocking(runtime))
        signal.pidfd_send_signal(pid_fd, signal.SIGSTOP)
        try:
            for number in range(100):
                keeper.put(f"link/{number}", b"", [0])
            keeper.close()
            if order == "coming after it":
                successor = clients.enter_context(knocking(runtime))
            successor.say(message(LIST))
        finally:
            signal.pidfd_send_signal(pid_fd, signal.SIGCONT)
        heard = [successor.hear() for _ in range(102)]
    assert [said.op for said in heard if said] == [SELF, *[ENTRY] * 100, SELF]


def test_what_was_put_by_a_client_that_died_over_its_list_is_kept(runtime: Path, keeper: Keeper) -> None:
    with memories(b"one") as fds:
        for number in range(600):  # more than its queue has room for
            keeper.put(f"link/{number}", b"v" * 1000, fds)
        keeper.close()
        killed_client(runtime, "keeper._send(3); keeper.put('last', b'', [int(sys.argv[2])])", fds)
    with reached(runtime) as successor:
        assert keys(successor)[-1] == "last"


def test_what_was_put_by_a_client_that_died_before_it_read_an_answer_is_kept(runtime: Path, keeper: Keeper) -> None:
    with watching(keeper.pid) as pid_fd:
        keeper.close()
        with knocking(runtime) as dying:
            assert readable(dying.connection.fileno())
            signal.pidfd_send_signal(pid_fd, signal.SIGSTOP)
            try:
                dying.say(message(PUT, b"last"))
                dying.connection.close()
            finally:
                signal.pidfd_send_signal(pid_fd, signal.SIGCONT)
    with reached(runtime) as successor:
        assert keys(successor) == ["last"]


def test_a_client_waits_for_the_one_that_is_served_and_takes_nothing_from_it(runtime: Path, keeper: Keeper) -> None:
    with knocking(runtime) as waiting:
        waiting.say(message(DROP, b"a"))
        waiting.say(message(LIST))
        keeper.put("a", b"", [0])
        keeper.put("b", b"", [0])
        assert keys(keeper) == ["a", "b"], "nobody else was heard"
        poll = select.poll()
        poll.register(waiting.connection, select.POLLIN)
        assert not poll.poll(0), "nor answered"
        keeper.close()
        assert [said.op for _ in range(3) if (said := waiting.hear())] == [SELF, ENTRY, SELF]


def test_who_waits_in_vain_for_the_client_that_is_served_is_told_of_it(
    runtime: Path, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_client, "ANSWER_TIMEOUT", 1)
    keeper.put("a", b"", [0])
    with pytest.raises(KeeperGone, match="serves one client at a time, so end the one"):
        Keeper.reach(runtime)
    assert keys(keeper) == ["a"]


def test_a_killed_keeper_is_seen_by_its_client_and_replaced(runtime: Path, keeper: Keeper) -> None:
    assert not keeper.gone()
    with watching(keeper.pid) as pid_fd:
        signal.pidfd_send_signal(pid_fd, signal.SIGKILL)
        assert readable(keeper.fileno())
        await_end(pid_fd)
    assert keeper.gone()
    with pytest.raises(KeeperGone):
        keeper.put("a", b"", [0])
    with pytest.raises(KeeperGone):
        keeper.drop("a")
    with pytest.raises(KeeperGone):
        keeper.take_all()
    assert (runtime / "keeper.sock").is_socket()  # left over
    with running_keeper(runtime) as another:
        assert another.pid != keeper.pid
        assert keys(another) == []


def test_a_keeper_that_does_not_listen_is_given_up(keeper: Keeper) -> None:
    with watching(keeper.pid) as pid_fd:
        signal.pidfd_send_signal(pid_fd, signal.SIGSTOP)
        try:
            with pytest.raises(KeeperGone, match="did not listen"):
                put_without_end(keeper)
        finally:
            signal.pidfd_send_signal(pid_fd, signal.SIGCONT)
    assert keys(keeper) == ["a"]


def put_without_end(keeper: Keeper) -> NoReturn:
    while True:
        keeper.put("a", b"v" * VALUE_SIZE, [0])


def test_those_who_start_a_keeper_at_once_share_one(runtime: Path) -> None:
    runtime.mkdir(mode=0o700)

    def reach_and_leave(_: int) -> int:
        with reached(runtime) as keeper:
            return keeper.pid

    with ThreadPoolExecutor(8) as threads:
        pids = set(threads.map(reach_and_leave, range(8)))
    (pid,) = pids
    with watching(pid) as pid_fd, reached(runtime) as keeper:
        keeper.end()
        await_end(pid_fd)


def test_a_keeper_started_for_a_broker_shares_nothing_with_it(runtime: Path) -> None:
    runtime.mkdir(mode=0o700)
    read_fd, write_fd = os.pipe()
    os.set_inheritable(write_fd, True)
    with running_keeper(runtime) as keeper:
        os.close(write_fd)
        assert os.read(read_fd, 1) == b""  # the keeper has no duplicate
        os.close(read_fd)
        assert keeper.for_broker
        assert os.getsid(keeper.pid) == keeper.pid != os.getsid(0)
        process = Path(f"/proc/{keeper.pid}")
        assert (process / "cwd").readlink() == Path("/")
        assert (process / "comm").read_text() == "ringway-keeper\n"
        assert (runtime / "keeper.sock").stat().st_mode & 0o777 == 0o600
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE) == (hard, hard)
        for number in (signal.SIGINT, signal.SIGHUP):
            os.kill(keeper.pid, number)
        assert keys(keeper) == []


def test_whoever_reads_the_log_of_a_killed_broker_comes_to_its_end(runtime: Path) -> None:
    runtime.mkdir(mode=0o700)
    killed_client(runtime, "keeper.put('a', b'', [0])")  # its log is a pipe, and its keeper lives on
    with running_keeper(runtime) as keeper:
        assert keys(keeper) == ["a"]


def test_an_ended_keeper_has_gone_and_its_socket_with_it(runtime: Path, keeper: Keeper) -> None:
    with watching(keeper.pid) as pid_fd:
        keeper.end()
        await_end(pid_fd)
    assert [path.name for path in runtime.iterdir()] == ["keeper.lock"]


def test_a_removed_directory_ends_a_keeper_that_nobody_is_connected_to(runtime: Path, keeper: Keeper) -> None:
    keeper.put("a", b"", [0])
    with watching(keeper.pid) as pid_fd:
        shutil.rmtree(runtime)
        assert keys(keeper) == ["a"]
        keeper.close()
        await_end(pid_fd)


def test_a_thousand_entries_come_and_go_without_a_trace(runtime: Path, keeper: Keeper) -> None:
    def come_and_go(count: int) -> tuple[int, int]:
        with memories(*[b"x"] * 9) as fds:
            for number in range(count):
                keeper.put(f"link/{number % 7}", b"v" * VALUE_SIZE, fds)
                keeper.drop(f"link/{number % 5}")
            for number in range(7):
                keeper.drop(f"link/{number}")
        return settled_descriptors(runtime), private_memory(keeper.pid)

    descriptors, memory = come_and_go(100)
    own = own_descriptors()
    descriptors_after, memory_after = come_and_go(1000)
    assert descriptors_after == descriptors
    assert memory_after - memory < 1 << 20
    assert own_descriptors() == own


def private_memory(pid: int) -> int:
    """Bytes of a process's own memory that are in RAM."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (found,) = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(found) << 10


def test_a_list_that_its_reader_has_no_descriptors_for_is_an_error_and_leaks_none(
    runtime: Path, keeper: Keeper
) -> None:
    with memories(b"1", b"2", b"3") as fds:
        keeper.put("a", b"", fds)
        keeper.put("b", b"", fds)
    keeper.settle()
    keeper.close()
    with reached(runtime) as short:
        before = own_descriptors()
        with room_for_descriptors(4), pytest.raises(ControlError) as caught:
            short.take_all()
        assert caught.value.cause is Cause.LIMIT
        assert own_descriptors() == before
        assert short.gone()
    with reached(runtime) as successor:
        assert keys(successor) == ["a", "b"]


@pytest.mark.parametrize(
    ("key", "value", "count"),
    [("k" * 33, b"", 0), ("a\0", b"", 0), ("a", b"v" * (VALUE_SIZE + 1), 0), ("a", b"", DESCRIPTORS_PER_ENTRY + 1)],
    ids=["key", "zero in a key", "value", "descriptors"],
)
def test_an_entry_that_cannot_be_is_refused_before_it_is_sent(
    keeper: Keeper, key: str, value: bytes, count: int
) -> None:
    with pytest.raises(ValueError, match=r"the (entry|key) '"):
        keeper.put(key, value, [0] * count)
    assert keys(keeper) == []


def test_no_keeper_starts_without_its_directory(runtime: Path) -> None:
    with pytest.raises(ControlError, match="No such file") as caught:
        Keeper.reach(runtime)
    assert caught.value.cause is Cause.SYSTEM


def test_a_keeper_run_by_hand_serves_until_sigterm_and_no_broker_ends_it(runtime: Path) -> None:
    command = [*RINGWAY, "keeper", "--runtime", str(runtime)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == f"keeper ready on {runtime}\n"
            with reached(runtime) as keeper:
                assert (keeper.pid, keeper.for_broker) == (process.pid, False)
                keeper.put("a", b"", [0])
                keeper.end()
            with reached(runtime) as keeper:
                assert keys(keeper) == ["a"]
            second = run_ringway("keeper", "--runtime", str(runtime))
            assert (second.returncode, second.stdout) == (1, "")
            assert second.stderr == f"ringway: no keeper for {str(runtime)!r}: a keeper is already running there\n"
        finally:
            process.terminate()
    assert process.returncode == -signal.SIGTERM


def test_a_keeper_tells_systemd_when_it_is_ready(runtime: Path) -> None:
    path = str(runtime.parent / "notify")
    command = [*RINGWAY, "keeper", "--runtime", str(runtime)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(30)
        environment = {**os.environ, "NOTIFY_SOCKET": path}
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
            try:
                assert systemd.recv(100) == b"READY=1"
                with reached(runtime) as keeper:
                    assert keeper.pid == process.pid
            finally:
                process.terminate()


def test_a_keeper_is_not_run_in_a_directory_that_is_open_to_others(runtime: Path) -> None:
    runtime.mkdir()
    runtime.chmod(0o755)
    refused = run_ringway("keeper", "--runtime", str(runtime))
    assert refused.returncode == 1
    assert "is open to others (mode 0755): chmod 700 it" in refused.stderr


def test_settling_returns_when_all_is_kept_and_says_what_was_refused(runtime: Path, keeper: Keeper) -> None:
    with memories(*[b"x"] * 9) as fds:
        keeper.put("a", b"", fds)
        keeper.settle()
        assert keys(keeper) == ["a"]
        keeper._send(255)
        with pytest.raises(KeeperGone, match="there is no op 255"):
            keeper.settle()
