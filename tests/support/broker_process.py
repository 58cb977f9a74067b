"""A real broker in a process of its own, and the ends that play its agents."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from ringway.broker.registry import remove_leftovers
from ringway.control.client import AgentSession, Client
from ringway.control.handover import Handover, take
from ringway.control.messages import Applied, Apply, Claim, LinkShown, Offer, Show, Shown, VmShown, Welcome
from ringway.control.runtime import control_path, handover_path
from tests.support.fabrics import FABRIC
from tools.soak.census import keeper_pid

RINGWAY = [sys.executable, "-c", "from ringway.cli.main import main; main()"]


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """pytest's own directories have names that can be too long for a socket."""
    path = Path(tempfile.mkdtemp(prefix="rw-"))
    try:
        yield path
    finally:
        for keeper in path.rglob("keeper.sock"):
            end_keeper(keeper.parent)
        shutil.rmtree(path)
        remove_leftovers()


def end_keeper(runtime: Path) -> None:
    """Kill the keeper, which outlives a killed broker, and wait until it is gone."""
    pid = keeper_pid(runtime)
    if pid is not None:
        gone = os.pidfd_open(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        select.select([gone], [], [], 20)
        os.close(gone)


class BrokerProcess:
    """Its log goes to a file: a broker must never wait for a test to read it."""

    def __init__(self, runtime: Path, *options: str, descriptors_max: int = 0) -> None:
        self.runtime = runtime
        self._command = [*RINGWAY, "broker", "--runtime", str(runtime), *options]
        if descriptors_max:
            self._command[:0] = ["prlimit", f"--nofile={descriptors_max}:{descriptors_max}"]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the broker
        self.process = self._start()

    def __enter__(self) -> Self:
        self._await_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self._log.close()

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and log."""
        self.process.send_signal(number)
        self.process.communicate(timeout=20)
        return self.process.returncode, self.log()

    def restart(self, number: int = signal.SIGKILL) -> None:
        """End it, and start its successor; returns when that has adopted what there is."""
        self.stop(number)
        self.start()

    def start(self) -> None:
        """A successor of the one that has ended."""
        self.process = self._start()
        self._await_ready()

    def log(self) -> str:
        """Of this broker and those before it."""
        return os.pread(self._log.fileno(), 1 << 24, 0).decode()  # read() would move the place where they write

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=self._log, text=True)

    def _await_ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("broker ready"):
            self.process.communicate()
            raise AssertionError(f"the broker did not start: {self.log()}")

    def apply(self, text: str = FABRIC) -> Applied:
        with Client(self.runtime) as client:
            return client.call(Apply(name="fabric.toml", text=text), Applied, timeout=20)

    def show(self) -> Shown:
        with Client(self.runtime) as client:
            return client.call(Show(), Shown)

    def link(self, name: str = "one") -> LinkShown:
        return next(link for link in self.show().links if link.name == name)

    def vm(self, name: str) -> VmShown:
        return next(vm for vm in self.show().vms if vm.name == name)

    def descriptors(self) -> int:
        """Open descriptors of the broker, after it has dealt with all that was sent or closed before.

        Those of its clients' connections do not count: ZeroMQ closes them in its own time.
        """
        self.show()
        clients = _inodes_at(control_path(self.runtime))
        found = []
        for entry in _descriptors(self.process.pid):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.append(str(entry.readlink()))
        clients |= _inodes_at(control_path(self.runtime))
        return sum(target not in clients for target in found)

    def take(self, offer: Offer, vm: str) -> Handover:
        claim = Claim(vm=vm, link=offer.link, side=offer.side, ticket=offer.ticket)
        return take(handover_path(self.runtime), claim)


@contextlib.contextmanager
def session_of(runtime: Path, vm: str) -> Iterator[AgentSession]:
    session = AgentSession(runtime, vm)
    try:
        yield session
    finally:
        session.close()


def only_offer(welcome: Welcome) -> Offer:
    (offer,) = welcome.offers
    return offer


def _inodes_at(path: Path) -> set[str]:
    """What /proc/PID/fd calls the connections that were accepted there."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return {f"socket:[{line.split()[6]}]" for line in lines if line.endswith(f" {path}")}


def _descriptors(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/fd").iterdir())


def descriptors_of(pid: int) -> int:
    return len(_descriptors(pid))


def own_descriptors() -> int:
    return descriptors_of(os.getpid())


@contextlib.contextmanager
def room_for_descriptors(count: int) -> Iterator[None]:
    """This process may open so many more, and no others."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    fillers = [os.open(os.devnull, os.O_RDONLY)]
    while fillers[-1] <= highest:  # the limit is one on numbers, and there may be unused ones below
        fillers.append(os.open(os.devnull, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1 + count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in fillers:
            os.close(fd)


def run_ringway(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RINGWAY, *arguments], capture_output=True, text=True, timeout=60, env={**os.environ, **(environment or {})}
    )
