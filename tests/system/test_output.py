"""What became of a process's output changes neither what it does nor the status it ends with."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.broker_process import RINGWAY, BrokerProcess, run_ringway, short_directory
from tests.support.fabrics import FABRIC
from tests.support.waiting import until
from tools.soak.census import keeper_pid

NO_UTF8 = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture
def runtime() -> Iterator[Path]:
    with short_directory() as path:
        (path / "fabric.toml").write_text(FABRIC)
        yield path / "run"


def in_shell(redirected: str, *arguments: str) -> subprocess.Popen[str]:
    """`ringway …` with its streams as a shell redirects them; standard error is a pipe unless that says otherwise."""
    return subprocess.Popen(["sh", "-c", f'exec "$@" {redirected}', "sh", *RINGWAY, *arguments], text=True, stderr=-1)


def links_of(runtime: Path) -> str:
    return run_ringway("show", "--runtime", str(runtime)).stdout


@pytest.mark.parametrize(
    "redirected",
    [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>&1"],
    ids=lambda text: text.replace("/", ""),
)
def test_a_broker_whose_output_nobody_takes_runs_and_ends_with_0(runtime: Path, redirected: str) -> None:
    fabric = str(runtime.parent / "fabric.toml")
    with in_shell(redirected, "broker", "--runtime", str(runtime), "--fabric", fabric) as broker:
        until(lambda: "client" in links_of(runtime), "the broker has its link")
        broker.send_signal(signal.SIGTERM)
        assert broker.wait(20) == 0
    assert keeper_pid(runtime) is None


def test_a_broker_whose_reader_has_gone_goes_on_and_ends_with_0(runtime: Path) -> None:
    broker = BrokerProcess(runtime)
    with broker:
        assert broker.process.stdout is not None
        broker.process.stdout.close()
        broker.process.stdout = None
        broker.apply()
        assert broker.stop()[0] == 0


@pytest.mark.parametrize("redirected", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_commands_whose_streams_are_closed_do_their_work(runtime: Path, redirected: str) -> None:
    fabric = str(runtime.parent / "fabric.toml")
    with BrokerProcess(runtime) as broker:
        with in_shell(redirected, "apply", fabric, "--runtime", str(runtime)) as apply:
            assert apply.wait(20) == 0
        assert broker.link().state == "down"
        with in_shell(redirected, "check", fabric) as check:
            assert check.wait(20) == 0


@pytest.mark.parametrize("command", ["show", "check"])
def test_a_command_whose_answer_cannot_be_printed_says_so(runtime: Path, command: str) -> None:
    arguments = [str(runtime.parent / "fabric.toml")] if command == "check" else ["--runtime", str(runtime)]
    with BrokerProcess(runtime), in_shell(">/dev/full", command, *arguments) as asked:
        _, error = asked.communicate(timeout=20)
        assert asked.returncode == 1
        assert "No space left on device" in error
        assert "Traceback" not in error


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_tables_are_readable_where_the_output_knows_no_arrows(runtime: Path, encoding: str) -> None:
    environment = {**NO_UTF8, "PYTHONIOENCODING": encoding}
    with BrokerProcess(runtime) as broker:
        broker.apply()
        for command in ("show", "list"):
            arguments = ["--runtime", str(runtime)] if command == "show" else []
            done = run_ringway(command, *arguments, environment=environment)
            assert done.returncode == 0, done.stderr
            assert "client" in done.stdout
            assert done.stderr == ""
        fabric = runtime.parent / "fabric.toml"
        fabric.write_text(FABRIC.replace("slots = 64", "slots = 128"))
        done = run_ringway("plan", str(fabric), "--runtime", str(runtime), environment=environment)
        arrow = "→" if encoding == "ascii" else "->"  # click takes ASCII for a mistake, and writes UTF-8
        assert f"slot_count 64 {arrow} 128" in done.stdout, done.stderr


def test_no_number_of_a_closed_stream_is_given_to_a_socket(runtime: Path) -> None:
    with in_shell("<&- >&- 2>&-", "broker", "--runtime", str(runtime)) as broker:
        until(lambda: "fabric is empty" in links_of(runtime), "the broker answers")
        assert all(Path(f"/proc/{broker.pid}/fd/{number}").samefile(os.devnull) for number in range(3))
        broker.terminate()
