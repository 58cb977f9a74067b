"""A keeper is replaced when it cannot hold what it has to, and at once when it has died; nothing is lost meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.broker import keeper_entries
from ringway.broker.keeper_client import Keeper
from ringway.broker.keeper_entries import KeeperEntries, close_all
from ringway.control.errors import ControlError
from tests.support.broker_process import BrokerProcess, run_ringway, short_directory
from tests.support.fabrics import parallel_links
from tests.support.keeper_process import (
    await_end,
    keeper_by_hand,
    keys,
    killed_client,
    memories,
    reached,
    readable,
    running_keeper,
    taken,
    watching,
)
from tests.support.restarts import kill_keeper, link_ids
from tests.support.waiting import until
from tools.soak.census import keeper_pid

SMALL = 1024  # open files; a keeper then has room for 739 descriptors, and 40 links have 521


@pytest.fixture
def runtime() -> Iterator[Path]:
    with short_directory() as path:
        yield path / "run"


def test_a_keeper_of_a_broker_with_a_low_limit_is_replaced_for_the_one_after_it(runtime: Path) -> None:
    with BrokerProcess(runtime, descriptors_max=SMALL) as first:
        first.apply(parallel_links(10, "a"))
        small, before = keeper_pid(runtime), link_ids(first.show())
        assert small is not None
        first.stop(signal.SIGKILL)
    with watching(small) as pid_fd, BrokerProcess(runtime) as broker:
        broker.apply(parallel_links(10, "a") + parallel_links(90, "b"))
        await_end(pid_fd)
        assert f"(pid {keeper_pid(runtime)}, with up to" in broker.log()
        assert "refuse" not in broker.log()
        after = link_ids(broker.show())
        assert before.items() <= after.items()
        broker.restart()
        assert "adopted 100 of 100 links" in broker.log()
        assert link_ids(broker.show()) == after
        second = run_ringway("keeper", "--runtime", str(runtime))
        assert "a keeper is already running there" in second.stderr, "the lock has come with the place"
        assert broker.stop()[0] == 0
    assert keeper_pid(runtime) is None
    assert not (runtime / "keeper.next").exists()


STEPS = {
    "started": "new = keeper.successor(runtime)",
    "filled": "new.put('a', b'1', [fd]); new.settle()",
    "replaced": "new.replace(runtime)",
    "ended": "keeper.end()",
}


@pytest.mark.parametrize("last", STEPS)
def test_a_broker_killed_at_any_step_of_replacing_a_keeper_leaves_one_that_has_everything(
    runtime: Path, last: str
) -> None:
    steps = list(STEPS.values())[: list(STEPS).index(last) + 1]
    code = "runtime, fd = Path(sys.argv[1]), int(sys.argv[2]); keeper.put('a', b'1', [fd]); keeper.settle(); "
    with running_keeper(runtime) as old, memories(b"region") as fds, watching(old.pid) as pid_fd:
        pid = old.pid
        old.close()
        killed_client(runtime, code + "; ".join(steps), fds)
        with reached(runtime) as keeper, taken(keeper) as kept:
            assert (keeper.pid == pid) == (last in ("started", "filled"))
            assert os.pread(kept["a"].fds[0], 100, 0) == b"region"
            if keeper.pid != pid:
                await_end(pid_fd)
            until(lambda: not (runtime / "keeper.next").exists(), "what has no place has ended")
            second = run_ringway("keeper", "--runtime", str(runtime))
            assert "a keeper is already running there" in second.stderr
            if keeper.pid != pid:
                with watching(keeper.pid) as new_fd:
                    keeper.end()
                    await_end(new_fd)


def test_a_keeper_run_by_hand_that_has_no_room_for_the_links_makes_apply_refuse_them(runtime: Path) -> None:
    with keeper_by_hand(runtime, "prlimit", "--nofile=500:500") as pid, BrokerProcess(runtime) as broker:
        broker.apply(parallel_links(2, "b"))
        before = link_ids(broker.show())
        message = rf"keeper \(pid {pid}\) may have 500 open files, and needs 806: stop it \(kill {pid}\)"
        with pytest.raises(ControlError, match=message):
            broker.apply(parallel_links(38, "a") + parallel_links(2, "b"))
        assert link_ids(broker.show()) == before
        broker.restart()
        assert link_ids(broker.show()) == before


def test_a_keeper_run_by_hand_that_is_too_small_is_complained_of_once_and_another_taken_when_it_ends(
    runtime: Path,
) -> None:
    with BrokerProcess(runtime) as broker:
        broker.apply(parallel_links(40, "a"))
        broker.process.send_signal(signal.SIGSTOP)
        kill_keeper(runtime)
        with keeper_by_hand(runtime, "prlimit", "--nofile=500:500"):
            broker.process.send_signal(signal.SIGCONT)
            until(lambda: "may have 500 open files, and needs" in broker.log(), "it says so")
        until(lambda: "has everything again" in broker.log(), "it has a keeper of its own")
        assert broker.log().count("may have 500 open files, and needs") == 1


@contextlib.contextmanager
def kept_here(runtime: Path) -> Iterator[KeeperEntries]:
    """A broker's hand on its keeper, with one entry."""
    runtime.mkdir(mode=0o700, exist_ok=True)
    keeping = KeeperEntries(runtime, lambda _: None)
    with memories(b"region") as fds:
        keeping.put("link/1", b"", fds)
        try:
            yield keeping
        finally:
            keeping.close(end=True)


def links_kept(keeping: KeeperEntries) -> list[int]:
    found = keeping.recover().links
    for fds in found.values():
        close_all(fds)
    return list(found)


def kill_and_see(runtime: Path, keeping: KeeperEntries) -> None:
    """Returns as soon as it can be seen, when its process may still be about to end."""
    pid = keeper_pid(runtime)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert readable(keeping.fileno())


def test_a_keeper_that_dies_just_after_another_is_replaced_without_a_wait(runtime: Path) -> None:
    with kept_here(runtime) as keeping:
        for _ in range(3):
            kill_and_see(runtime, keeping)
            assert keeping.mend(time.monotonic())
            assert links_kept(keeping) == [1]


def test_a_put_that_finds_the_keeper_dead_is_kept_by_the_next_one_when_it_returns(runtime: Path) -> None:
    with kept_here(runtime) as keeping, memories(b"more") as fds:
        kill_and_see(runtime, keeping)
        keeping.put("link/2", b"", fds)
        assert links_kept(keeping) == [1, 2]
        kill_and_see(runtime, keeping)
        keeping.drop("link/2")
        assert links_kept(keeping) == [1]
        assert keeping.mend(time.monotonic()), "the new connection has to be watched"
        assert not keeping.mend(time.monotonic())


def test_keepers_that_all_die_at_once_are_not_started_without_end(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_entries, "RETRY", 600.0)
    with kept_here(runtime) as keeping:
        for _ in range(keeper_entries.QUICK):
            kill_and_see(runtime, keeping)
            assert keeping.mend(time.monotonic())
        kill_and_see(runtime, keeping)
        assert not keeping.mend(time.monotonic())
        deadline = keeping.deadline()
        assert deadline is not None
        assert keeping.mend(deadline)


def test_who_starts_a_successor_that_cannot_be_started_hears_why_and_keeps_the_keeper(runtime: Path) -> None:
    with running_keeper(runtime) as keeper:
        keeper.put("a", b"", [0])
        (runtime / "keeper.lock").rename(runtime / "elsewhere")
        with pytest.raises(ControlError, match=r"another keeper could not be started: .*of another directory"):
            Keeper.successor(keeper, runtime)
        assert keys(keeper) == ["a"]
