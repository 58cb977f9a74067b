"""A broker that fails takes nothing from its links that a SIGKILL would have left; what fails says why in a line."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.broker.loop import Broker
from tests.support.broker_process import RINGWAY, BrokerProcess, run_ringway, short_directory
from tests.support.fabric import Fabric
from tests.support.fabrics import FABRIC
from tests.support.network import run
from tools.soak.census import keeper_pid

CHANGED = FABRIC.replace("slots = 64", "slots = 128")


@pytest.fixture
def runtime() -> Iterator[Path]:
    with short_directory() as path:
        yield path / "run"


def limited(limits: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", f'{limits}; exec "$@"', "sh", *RINGWAY, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def link_id(runtime: Path) -> int:
    with BrokerProcess(runtime) as broker:
        found = broker.link().link_id
        assert "adopted 1 of 1 links" in broker.log()
        broker.stop(signal.SIGKILL)
    return found


def refused_in_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, done
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("ringway: ")]
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in line


def leave_a_link(runtime: Path, *options: str) -> int:
    """A broker that was killed, with one link in its keeper."""
    with BrokerProcess(runtime, *options) as broker:
        if not options:
            broker.apply()
        made = broker.link().link_id
        broker.stop(signal.SIGKILL)
    return made


def test_an_error_that_nobody_foresaw_leaves_links_and_keeper_to_the_next_broker(runtime: Path) -> None:
    before = leave_a_link(runtime)
    loop = Broker(runtime, print)
    with pytest.raises(ZeroDivisionError), loop:
        raise ZeroDivisionError
    assert keeper_pid(runtime) is not None
    assert link_id(runtime) == before


def test_an_orderly_stop_ends_the_keeper_that_the_broker_started(runtime: Path) -> None:
    leave_a_link(runtime)
    with BrokerProcess(runtime) as broker:
        assert broker.stop()[0] == 0
    assert keeper_pid(runtime) is None


@pytest.mark.parametrize("limits", ["ulimit -n 340", "ulimit -n 22"])
def test_a_broker_that_cannot_start_under_a_limit_leaves_the_links(runtime: Path, limits: str) -> None:
    before = leave_a_link(runtime)
    refused_in_one_line(limited(limits, "broker", "--runtime", str(runtime)), "raise")
    assert link_id(runtime) == before


@pytest.mark.parametrize("limits", ["ulimit -n 600", "ulimit -n 528", "ulimit -f 0"])
def test_a_broker_goes_on_under_a_limit_that_is_enough_for_what_there_is(runtime: Path, limits: str) -> None:
    before = leave_a_link(runtime)
    with subprocess.Popen(
        ["sh", "-c", f'{limits}; exec "$@"', "sh", *RINGWAY, "broker", "--runtime", str(runtime)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as broker:
        assert broker.stdout is not None
        assert broker.stdout.readline().startswith("broker ready")
        broker.kill()
    assert link_id(runtime) == before


def test_a_fabric_that_does_not_fit_leaves_no_keeper_behind_where_there_was_none(runtime: Path) -> None:
    big = runtime.parent / "big.toml"
    big.write_text(FABRIC + "queues = 16\n")
    done = limited("ulimit -n 600", "broker", "--runtime", str(runtime), "--fabric", str(big))
    refused_in_one_line(done, "more descriptors")
    assert keeper_pid(runtime) is None


@pytest.mark.parametrize("limits", ["ulimit -n 340", "ulimit -n 22", "ulimit -f 0"])
def test_a_first_broker_that_cannot_start_says_why_in_a_line_and_leaves_no_keeper(runtime: Path, limits: str) -> None:
    refused_in_one_line(limited(limits, "broker", "--runtime", str(runtime)))
    assert keeper_pid(runtime) is None


def test_a_broker_whose_entry_is_larger_than_a_file_may_be_runs_without_it(runtime: Path) -> None:
    leave_a_link(runtime)
    with subprocess.Popen(
        ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *RINGWAY, "broker", "--runtime", str(runtime)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as broker:
        assert broker.stdout is not None
        assert broker.stdout.readline().startswith("broker ready")
        broker.terminate()
        _, log = broker.communicate(timeout=20)
    assert "File too large): `ringway list` shows what was before" in log
    assert "Traceback" not in log


@pytest.mark.needs_root
@pytest.mark.parametrize("inodes", range(1, 7))
def test_a_runtime_directory_without_room_for_names_is_named(runtime: Path, inodes: int) -> None:
    """One more each time, so that it fails at each of the files that a broker makes."""
    runtime.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"nr_inodes={inodes},mode=700", "tmpfs", runtime], check=True)
    try:
        done = run_ringway("broker", "--runtime", str(runtime))
        refused_in_one_line(done, "No space left on device", str(runtime))
        assert keeper_pid(runtime) is None
    finally:
        subprocess.run(["umount", runtime], check=True)


@pytest.mark.needs_root
def test_a_full_runtime_directory_keeps_no_broker_from_its_links(runtime: Path) -> None:
    """Nothing is written where nothing has changed."""
    runtime.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", runtime], check=True)
    try:
        file = runtime.parent / "fabric.toml"
        file.write_text(FABRIC)
        before = leave_a_link(runtime, "--fabric", str(file))
        filled = run("sh", "-c", f"cat /dev/zero > {runtime}/filler", check=False)
        assert "No space left" in filled.stderr
        with BrokerProcess(runtime, "--fabric", str(file)) as broker:
            assert broker.link().link_id == before
            assert broker.apply().kept == ["one"]
            refused_in_one_line(_applied(runtime, CHANGED), "journal", "No space left on device")
            assert broker.link().link_id == before
    finally:
        pid = keeper_pid(runtime)
        if pid is not None:
            gone = os.pidfd_open(pid)
            os.kill(pid, signal.SIGKILL)
            os.close(gone)
        subprocess.run(["umount", "--lazy", runtime], check=True)


def _applied(runtime: Path, text: str) -> subprocess.CompletedProcess[str]:
    file = runtime.parent / "changed.toml"
    file.write_text(text)
    return run_ringway("apply", str(file), "--runtime", str(runtime))


@pytest.mark.parametrize("edited", [CHANGED, "half = ", None], ids=["edited", "half edited", "removed"])
def test_a_broker_that_comes_back_keeps_to_what_was_applied_and_not_to_the_file(
    runtime: Path, edited: str | None
) -> None:
    file = runtime.parent / "fabric.toml"
    file.write_text(FABRIC)
    before = leave_a_link(runtime, "--fabric", str(file))
    if edited is None:
        file.unlink()
    else:
        file.write_text(edited)
    with BrokerProcess(runtime, "--fabric", str(file)) as broker:
        assert broker.link().link_id == before
        assert broker.link().geometry.slot_count == 64
        assert "left alone" in broker.log()
    if edited == CHANGED:
        with BrokerProcess(runtime, "--fabric", str(file)) as broker:  # what `systemctl reload` does
            assert run_ringway("apply", str(file), "--runtime", str(runtime)).returncode == 0
            assert broker.link().geometry.slot_count == 128


@pytest.mark.full
@pytest.mark.needs_root
@pytest.mark.parametrize("limit", range(16, 34, 2))
def test_an_agent_with_too_few_descriptors_says_so_in_a_line(fabric: Fabric, limit: int) -> None:
    fabric.apply("""
[vm.left.port.p]
kind = "tap"
interface = "fast0"
[vm.right.port.p]
kind = "local"
[link.wire]
ends = ["left.p", "right.p"]
""")
    within = f'ulimit -n {limit}; exec timeout --signal=TERM 5 "$@"'
    command = ["unshare", "--net", "sh", "-c", within, "sh", *RINGWAY, "agent", "--vm", "left"]
    done = subprocess.run([*command, "--runtime", str(fabric.runtime)], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr, done.stderr
    if "ready" not in done.stderr or "failed" in done.stderr:
        assert "ulimit -n" in done.stderr, done.stderr
