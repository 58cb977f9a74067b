"""A fabric whose broker, agents and applications may each be of another release."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from tests.system.broker_process import BrokerProcess, run_ringway
from tests.system.fabric_fixtures import AgentProcess, until
from tests.upgrade.release import Release

PAIR = """
[vm.left.port.p]
kind = "local"
[vm.right.port.p]
kind = "local"
[link.wire]
ends = ["left.p", "right.p"]
queues = 2
"""


class Application:
    """A process of application.py, whose agent has said hello."""

    def __init__(self, release: Release, kind: str, runtime: Path, vm: str) -> None:
        command = [sys.executable, str(Path(__file__).with_name("application.py")), kind, str(runtime), vm]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=release.environment
        )
        try:
            assert self._line() == "ready"
            assert release.is_run_by(self.process.pid), f"{release} is not what runs"
        except BaseException:
            self.kill()
            raise

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the application ended with {self.process.wait(10)}"
        return line.strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def a_round(self) -> None:
        """Frames of many lengths, there and back on every queue."""
        assert self.process.stdin is not None
        self.process.stdin.write("again\n")
        self.process.stdin.flush()
        assert self._line() == "came back"


class MixedFabric:
    """What was started through it ends with it. The command line is always of the broker's release."""

    def __init__(self, release: Release, path: Path) -> None:
        self._ends = contextlib.ExitStack()
        self._path = path
        self.runtime = path / "run"
        self._start_broker(release)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def _start_broker(self, release: Release) -> None:
        with contextlib.ExitStack() as started:
            with release.in_use():
                self._broker = started.enter_context(BrokerProcess(self.runtime))
            assert release.is_run_by(self._broker.process.pid)
            started.callback(self._stop_broker)
            self._ends.push(started.pop_all())
        self._release = release

    def _stop_broker(self) -> None:
        """Not by a kill, after which what a broker has started may stay for the next one."""
        if self._broker.process.poll() is None:
            assert self._broker.stop()[0] == 0

    def replace_broker(self, release: Release) -> None:
        """Another one in its place, which has no fabric yet."""
        self._stop_broker()
        self._start_broker(release)

    def _ringway(self, *arguments: str) -> str:
        with self._release.in_use():
            done = run_ringway(*arguments, "--runtime", str(self.runtime))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def apply(self, text: str) -> None:
        file = self._path / "fabric.toml"
        file.write_text(text, encoding="utf-8")
        self._ringway("apply", str(file))

    def show(self) -> Any:
        return json.loads(self._ringway("show", "--json"))

    def agent(self, release: Release, vm: str, namespace: str) -> AgentProcess:
        with release.in_use():
            agent = AgentProcess(self.runtime, vm, namespace)
        self._ends.callback(agent.process.communicate)
        self._ends.callback(agent.process.kill)
        agent.await_line("ready")
        assert release.is_run_by(agent.process.pid)
        return agent

    def application(self, release: Release, kind: str, vm: str) -> Application:
        made = Application(release, kind, self.runtime, vm)
        self._ends.callback(made.kill)
        return made

    def shown_quiet(self) -> Any:
        """What the broker shows once nothing is under way on any link; the books of all of them balance."""
        found: dict[str, Any] = {}

        def balances() -> bool:
            found.update(self.show())
            return all(ring["balanced"] and ring["in_flight"] == 0 for ring in rings_of(found))

        until(balances, "all links are quiet and balance")
        for ring in rings_of(found):
            dropped = sum(ring["drops_produced"].values()) + sum(ring["drops_consumed"].values())
            assert ring["offered"] == ring["delivered"] + dropped
        return found


def rings_of(shown: Any) -> list[Any]:
    return [ring for link in shown["links"] for ring in link["rings"]]
