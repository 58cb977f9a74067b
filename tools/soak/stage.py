"""The processes of a soak: broker, keeper, agents, applications; started, killed by pid, stopped, and watched.

They are forked by a server that has imported everything, so that a start takes milliseconds and kills fall into more
than imports.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from ringway.control.client import Client
from ringway.control.errors import ControlError
from ringway.control.messages import Applied, Apply, Show, Shown
from ringway.shm import RegionError, RegionSnapshot, read_region
from tools.soak import application, wire
from tools.soak.application import Line, Task, enter
from tools.soak.books import RECEIVERS
from tools.soak.census import Possessions, await_idle, keeper_pid, possessions
from tools.soak.draw import CHAIN_BACK, CHAIN_OUT, DIRECT_BACK, DIRECT_OUT, HUB, WIRE_BACK, WIRE_OUT, Setup
from tools.soak.pace import Death, Pace

PATIENCE = 60.0  # seconds for what takes a second at most: the machine may have other things to do
_STEP = 0.005
_PRELOAD = ["tools.soak.stage", "ringway.cli.main", "ringway.broker.loop", "ringway.agent.main"]
_SPEAKING = ("client", "server", "guest", "wire")  # who takes commands


class SoakError(Exception):
    """What was expected did not happen."""


def _command(arguments: list[str], log: Path) -> None:
    """A command of `ringway`, as from a shell."""
    from ringway.cli.main import main

    enter(log)
    sys.argv = ["ringway", *arguments]
    main()


class Stage:
    """Names are those of VMs, `broker` and `wire`; the keeper is the broker's affair, and only watched."""

    def __init__(self, setup: Setup, folder: Path, rows: int) -> None:
        self.setup = setup
        self.folder = folder
        self.runtime = folder / "run"
        self._rows = rows
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOAD)
        self._processes: dict[str, ForkServerProcess] = {}
        self._commands: dict[str, Connection[Any, Any]] = {}
        self.incarnations = {"wire": 1}
        self._regions: dict[str, int] = {}
        self.pace: Pace = "stopped"
        others = ("client", "firewall", "server", "bridge", "guest", *(("edge", "wire") if setup.tap else ()))
        self.names = ("broker", *others)

    # -- starting and ending

    def start(self, name: str) -> None:
        log = self.log(name)
        if name in _SPEAKING:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=self._entry(name), args=(self._task(name), theirs, log))
            process.start()
            theirs.close()
            if name in self._commands:
                self._commands[name].close()
            self._commands[name] = ours
        else:
            options = ["agent", "--vm", name, *self.setup.agent_options[name]] if name != "broker" else ["broker"]
            process = self._context.Process(target=_command, args=([*options, "--runtime", str(self.runtime)], log))
            process.start()
        self._processes[name] = process

    def _entry(self, name: str) -> Callable[..., None]:
        return wire.main if name == "wire" else application.main

    def _lines(self, name: str) -> tuple[Line, ...]:
        ports = {
            "client": [("chain", CHAIN_OUT, CHAIN_BACK), ("direct", DIRECT_OUT, DIRECT_BACK)],
            "server": [("chain", CHAIN_BACK, CHAIN_OUT), ("direct", DIRECT_BACK, DIRECT_OUT)],
            "guest": [],
            "wire": [("net", WIRE_BACK, WIRE_OUT)],
        }
        if self.setup.tap:
            ports["client"].append(("wire", WIRE_OUT, WIRE_BACK))
        stream = self.setup.stream
        lines = [Line(port, stream(out), (stream(into),)) for port, out, into in ports[name]]
        if name in HUB:
            # Those to the host first, then what it may hear besides.
            into = sorted((at for at in HUB.values() if at != HUB[name]), key=lambda at: RECEIVERS[at] != name)
            lines.append(Line("hub", stream(HUB[name]), tuple(map(stream, into))))
        return tuple(lines)

    def _task(self, name: str) -> object:
        lines = self._lines(name)
        if name == "wire":
            return wire.WireTask(lines[0], self.folder, self._rows)
        self.incarnations[name] = self.incarnations.get(name, 0) + 1
        return Task(
            vm=name,
            lines=lines,
            dropping=self.setup.dropping[name],
            runtime=self.runtime,
            ledgers=self.folder,
            rows=self._rows,
            incarnation=self.incarnations[name],
            pace=self.pace,
        )

    def kill(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        process.join()
        process.close()

    def signal(self, name: str, number: signal.Signals) -> None:
        os.kill(self.pid(name), number)

    def await_death(self, name: str) -> None:
        """Of one that kills itself."""
        process = self._processes[name]
        self.until(lambda: not process.is_alive(), f"{name} kills itself", dying=[name])
        if process.exitcode != -signal.SIGKILL:
            raise SoakError(f"{name} has ended by itself, exit code {process.exitcode}")
        self.kill(name)

    def close(self) -> None:
        """End everything, whatever state it is in."""
        for name in list(self._processes):
            with contextlib.suppress(ProcessLookupError):
                self.signal(name, signal.SIGCONT)
            self.kill(name)
        with contextlib.suppress(ControlError):
            keeper = self.keeper_pid()
            if keeper is not None:
                end_by_pid(keeper)
        if self.setup.tap:  # its agent was killed
            subprocess.run(["ip", "link", "del", wire.INTERFACE], capture_output=True, check=False)
        for connection in self._commands.values():
            connection.close()
        for fd in self._regions.values():
            os.close(fd)
        self._regions.clear()

    def stop(self) -> None:
        """In an orderly way, the broker last."""
        for name in [name for name in self.names if name != "broker"]:
            if name == "edge":
                self._remove_tap()
            if name in _SPEAKING:
                self._commands.pop(name).close()
            else:
                self.signal(name, signal.SIGTERM)
            self._join(name)
        self.signal("broker", signal.SIGTERM)
        self._join("broker")
        if self.keeper_pid() is not None:
            raise SoakError("the broker was stopped, and its keeper goes on")

    def _remove_tap(self) -> None:
        """It stays when its agent stops, and goes with its link."""
        with Client(self.runtime) as client:
            client.call(Apply(name="soak", text=""), Applied, timeout=PATIENCE)
        self.until(lambda: not Path(f"/sys/class/net/{wire.INTERFACE}").exists(), "the tap goes with its link")

    def _join(self, name: str) -> None:
        process = self._processes.pop(name)
        process.join(PATIENCE)
        if process.exitcode != 0:
            if process.exitcode is None:
                process.kill()
            raise SoakError(f"{name} was to stop, and its exit code is {process.exitcode}")
        process.close()

    # -- what they do

    def set_pace(self, pace: Pace) -> None:
        """For `stopped`, returns when nobody is sending any more."""
        self.pace = pace
        speaking = [name for name in _SPEAKING if name in self._processes]
        for name in speaking:
            self._commands[name].send(("pace", pace))
        if pace == "stopped":
            for name in speaking:
                self.until(self._commands[name].poll, f"{name} stops sending")
                self._commands[name].recv()

    def tell_death(self, name: str, death: Death) -> None:
        self._commands[name].send(("die", death))

    def until(self, true: Callable[[], bool], what: str, dying: Collection[str] = ()) -> None:
        """Wait for a state that nobody announces. SoakError when it does not come, or a process ends instead."""
        deadline = time.monotonic() + PATIENCE
        while not true():
            self.rest(_STEP, dying)
            if time.monotonic() > deadline:
                raise SoakError(f"not within {PATIENCE:g} s: {what}")

    def rest(self, seconds: float, dying: Collection[str] = ()) -> None:
        """SoakError when somebody ends in this time who should not."""
        living = {process.sentinel: name for name, process in self._processes.items() if name not in dying}
        ended = wait(list(living), seconds)
        if ended:
            name = living[ended[0]]  # type: ignore[index]
            self._processes[name].join()
            raise SoakError(f"{name} has ended by itself, exit code {self._processes[name].exitcode}")
        if not living:
            time.sleep(seconds)

    # -- what can be seen of them

    def pid(self, name: str) -> int:
        pid = self._processes[name].pid
        assert pid is not None
        return pid

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def keeper_pid(self) -> int | None:
        return keeper_pid(self.runtime)

    def apply(self) -> None:
        with Client(self.runtime) as client:
            client.call(Apply(name="soak", text=self.setup.fabric()), Applied, timeout=PATIENCE)

    def show(self) -> Shown:
        """Also from a broker that is only starting. SoakError when none answers."""
        shown: list[Shown] = []

        def asked() -> bool:
            try:
                with Client(self.runtime) as client:
                    shown.append(client.call(Show(), Shown))
            except ControlError:
                return False
            return True

        self.until(asked, "the broker answers")
        return shown[0]

    def open_regions(self) -> None:
        """Descriptors of the links' memory, from the broker's; they stay, whoever dies."""
        wanted = {link.link_id: link.name for link in self.show().links}
        for fd in _memories(self.pid("broker")):
            try:
                self._regions[wanted[read_region(fd).link_id]] = fd
            except (RegionError, KeyError):
                os.close(fd)
        if set(self._regions) != set(wanted.values()):
            raise SoakError(f"the broker holds the memory of {list(self._regions)} only")

    def regions(self) -> dict[str, RegionSnapshot]:
        return {name: read_region(fd) for name, fd in self._regions.items()}

    def possessions(self) -> dict[str, Possessions]:
        found = {name: possessions(self.pid(name)) for name in self.names}
        keeper = self.keeper_pid()
        if keeper is not None:
            await_idle(keeper)
            found["keeper"] = possessions(keeper)
        return found


def _memories(pid: int) -> Iterator[int]:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if str(entry.readlink()).startswith("/memfd:"):
            yield os.open(entry, os.O_RDONLY)


def end_by_pid(pid: int) -> None:
    """Kill a process that is no child of ours, and wait until it is gone."""
    try:
        gone = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if not wait([gone], PATIENCE):
            raise SoakError(f"pid {pid} outlives SIGKILL")
    finally:
        os.close(gone)
