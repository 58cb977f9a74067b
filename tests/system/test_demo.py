"""The examples as a user starts them, and what is left of them when they are interrupted or killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.broker.registry import remove_leftovers
from tests.conftest import require
from tests.support.waiting import until

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DEMO = [sys.executable, "-u", str(EXAMPLES / "firewall_chain" / "demo.py")]
ENDINGS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]


class Traces:
    """What a program leaves: processes with its mark, temporary files, shared memory, interfaces, mounts."""

    def __init__(self, temporary: Path) -> None:
        self.temporary = temporary
        self.mark = f"RINGWAY_TEST_MARK={uuid.uuid4()}"
        remove_leftovers()  # of brokers that tests before this one have killed: a broker of the program would do it
        self._at_first = self._world()

    def environment(self) -> dict[str, str]:
        name, _, value = self.mark.partition("=")
        return {**os.environ, name: value, "TMPDIR": str(self.temporary)}

    def processes(self) -> list[str]:
        found = []
        for process in Path("/proc").iterdir():
            try:
                if process.name.isdigit() and self.mark.encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # it ended meanwhile
        return found

    def _world(self) -> tuple[list[Path], str]:
        named = [path for folder in ("/sys/class/net", "/dev/shm") for path in Path(folder).iterdir()]
        return sorted(named), Path("/proc/self/mountinfo").read_text()

    def check_none(self) -> None:
        until(lambda: not self.processes(), f"no process is left: {self.processes()}")
        assert self._world() == self._at_first
        assert list(self.temporary.iterdir()) == []


@pytest.fixture
def traces(tmp_path: Path) -> Iterator[Traces]:
    made = Traces(tmp_path)
    yield made
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and made.mark.encode() in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:
            continue


def run_demo(command: list[str], traces: Traces) -> str:
    done = subprocess.run(command, env=traces.environment(), capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.needs_root
def test_the_demo_shows_all_it_promises_and_leaves_nothing(traces: Traces) -> None:
    shown = run_demo(DEMO, traces)
    assert "all of it worked" in shown
    assert "FAILED" not in shown
    assert re.search(r"firewall +mark +[0-9a-f]{12} +marked +2", shown), "the function of one's own shows its counter"
    traces.check_none()


@pytest.mark.full
@pytest.mark.needs_root
def test_the_demo_works_for_an_ordinary_user(traces: Traces) -> None:
    as_user = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    allowed = subprocess.run([*as_user, "unshare", "--user", "--map-root-user", "true"], capture_output=True)
    require(allowed.returncode == 0, f"needs user namespaces: {allowed.stderr.decode()}")
    assert "all of it worked" in run_demo([*as_user, *DEMO], traces)
    traces.check_none()


@pytest.mark.needs_root
@pytest.mark.parametrize("number", ENDINGS, ids=lambda number: number.name)
def test_nothing_is_left_of_a_demo_that_is_ended(traces: Traces, number: signal.Signals) -> None:
    process = subprocess.Popen(
        ["env", "--default-signal", *DEMO],
        env=traces.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    while "rtt" not in (line := process.stdout.readline()):  # the chain is there and carries frames
        assert line, "the demo ended"
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode != 0
    traces.check_none()


@pytest.fixture(params=["private", "shared"])
def chroot(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[list[str], str]]:
    """The way into a folder of this system's folders, which is no mount point itself; and how its mounts propagate."""
    below, root = tmp_path / "mount", tmp_path / "mount" / "root"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", below], check=True)
    try:
        subprocess.run(["mount", f"--make-{request.param}", below], check=True)
        for folder in (path for path in Path("/").iterdir() if path.is_dir()):
            (root / folder.name).mkdir(parents=True)
            if folder.is_symlink():
                (root / folder.name).rmdir()
                (root / folder.name).symlink_to(folder.readlink())
            elif folder.name != "run":
                subprocess.run(["mount", "--rbind", folder, root / folder.name], check=True)
        yield ["chroot", str(root)], request.param
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", below], check=True)


@pytest.mark.needs_root
def test_the_demo_runs_in_a_chroot_whose_root_is_no_mount_point_unless_its_mounts_would_reach_the_host(
    chroot: tuple[list[str], str], traces: Traces
) -> None:
    into, propagation = chroot
    mounts = Path("/proc/self/mountinfo").read_text()
    with subprocess.Popen(
        [*into, "env", "--default-signal", "TMPDIR=/tmp", *DEMO],
        env=traces.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        wanted = "rtt" if propagation == "private" else "mount --make-private FOLDER"
        shown = ""
        while wanted not in (line := process.stdout.readline()):
            shown += line
            assert line, f"the demo ended: {shown}"
        process.terminate()
    assert process.returncode != 0
    until(lambda: not traces.processes(), "no process is left")
    assert Path("/proc/self/mountinfo").read_text() == mounts


def test_two_processes_exchange_frames_over_one_link(traces: Traces) -> None:
    command = [sys.executable, str(EXAMPLES / "two_processes.py")]
    done = subprocess.run(command, env=traces.environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "100000 came back" in done.stdout
    traces.check_none()
