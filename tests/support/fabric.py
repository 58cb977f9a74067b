"""A whole fabric for a test: a broker, agents in processes of their own, applications, and the books of links."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ringway.agent import Agent, Port
from ringway.control.messages import LinkShown, RingShown
from ringway.shm import RegionError, read_region
from tests.support.broker_process import RINGWAY, BrokerProcess
from tests.support.network import inside


class AgentProcess:
    """`ringway agent`; its log is read line by line, which is how its states are awaited."""

    def __init__(
        self, runtime: Path, vm: str, namespace: str | None = None, *options: str, by: Sequence[str] = ()
    ) -> None:
        """`by`: what starts it, such as `setpriv …`."""
        command = inside(namespace, [*by, *RINGWAY, "agent", "--vm", vm, "--runtime", str(runtime), *options])
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log = ""

    def await_line(self, text: str) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line
            if text in line:
                return line
        raise AssertionError(f"the agent ended without {text!r}: {self.log}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=20)
        self.log += rest
        return self.process.returncode

    def cpu_ticks(self) -> int:
        return cpu_ticks(self.process.pid)


def fell(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Kill or stop it, and return when none of its threads runs on: a signal takes a while on a busy machine."""
    process.send_signal(number)
    if number is signal.SIGSTOP:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    else:
        process.wait()


def cpu_ticks(pid: int) -> int:
    """User and system time of all its threads: proc(5), fields 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


class Fabric:
    """What was started through it ends with it."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.broker = broker
        self.runtime = broker.runtime
        self._ends = contextlib.ExitStack()

    def close(self) -> None:
        self._ends.close()

    def apply(self, text: str) -> None:
        """Returns when the agents have done it: they answer the broker in order."""
        self.broker.apply(text)
        self.broker.show()

    def start(self, vm: str, namespace: str | None = None, *options: str, by: Sequence[str] = ()) -> AgentProcess:
        """An agent whose log is still to be read."""
        agent = AgentProcess(self.runtime, vm, namespace, *options, by=by)
        self._ends.callback(_end, agent.process)
        return agent

    def agent(self, vm: str, namespace: str | None = None, *options: str) -> AgentProcess:
        agent = self.start(vm, namespace, *options)
        agent.await_line("ready")
        return agent

    def peer(self, kind: str, vm: str, port: str = "p") -> subprocess.Popen[str]:
        """An application of peer.py, once its port is attached."""
        command = [sys.executable, str(Path(__file__).with_name("peer.py")), kind, str(self.runtime), vm, port]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._ends.callback(_end, process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", f"{vm}'s application ended"
        return process

    def local(self, vm: str) -> Agent:
        """An agent in the test's own process, for its local ports."""
        return self._ends.enter_context(Agent(vm, self.runtime))

    def port(self, vm: str, name: str = "p") -> Port:
        return self.local(vm).port(name)

    def ring(self, link: str, producing_side: int = 0, queue: int = 0) -> RingShown:
        rings = self.broker.link(link).rings
        return next(ring for ring in rings if (ring.producing_side, ring.queue) == (producing_side, queue))

    def quiet(self, link: str) -> LinkShown:
        """The link once all its rings are empty and stand still, its books checked."""
        before: list[tuple[int, int]] | None = None
        deadline = time.monotonic() + 20
        while True:
            shown = self.broker.link(link)
            now = [(ring.offered, ring.delivered) for ring in shown.rings]
            if now == before and all(ring.in_flight == 0 for ring in shown.rings):
                for ring in shown.rings:
                    check_books(ring)
                return shown
            assert time.monotonic() < deadline, f"{link} does not become quiet: {shown}"
            before = now
            time.sleep(0.05)

    def rules(self, vm: str) -> dict[str, int]:
        """Frames by rule."""
        return {rule.name: rule.frames for rule in self.broker.vm(vm).rules}

    def memory(self, link: str) -> bytes:
        """All bytes of the link's region."""
        fd = self.region_fd(link)
        return os.pread(fd, os.fstat(fd).st_size, 0)

    def region_fd(self, link: str) -> int:
        """A descriptor of the link's region, open until the end of the test: the broker's own, opened again."""
        wanted = self.broker.link(link).link_id
        folder = Path(f"/proc/{self.broker.process.pid}/fd")
        for entry in folder.iterdir():
            if not str(entry.readlink()).startswith("/memfd:"):
                continue
            fd = os.open(entry, os.O_RDONLY)
            with contextlib.suppress(RegionError):
                if read_region(fd).link_id == wanted:
                    self._ends.callback(os.close, fd)
                    return fd
            os.close(fd)
        raise AssertionError(f"the broker holds no region of {link}")


def check_books(ring: RingShown) -> None:
    """Law 8, of a ring whose ends are quiet."""
    dropped = sum(ring.drops_produced.values()) + sum(ring.drops_consumed.values())
    assert ring.balanced, ring
    assert ring.offered == ring.delivered + ring.in_flight + dropped, ring


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
