"""A whole fabric for a test: a broker, agents in processes of their own, and namespaces that stand for VMs."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ringway.agent import Agent, Port
from ringway.control.messages import LinkShown, RingShown
from ringway.shm import RegionError, read_region
from tests.conftest import require
from tests.system.broker_process import RINGWAY, BrokerProcess

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_SIOCGIFFLAGS = 0x8913  # linux/sockios.h
_IFF_RUNNING = 1 << 6  # linux/if.h
Result = TypeVar("Result")
_libc = ctypes.CDLL(None, use_errno=True)


def until(true: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Wait for a state that nobody announces."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def inside(namespace: str | None, command: Sequence[str]) -> list[str]:
    return list(command) if namespace is None else ["nsenter", f"--net=/run/netns/{namespace}", *command]


def run(*command: str, namespace: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(inside(namespace, command), capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done


@contextlib.contextmanager
def namespaces(*names: str, ipv6: bool = False) -> Iterator[None]:
    """Empty network namespaces; whatever is in them goes with them."""
    require(os.access("/dev/net/tun", os.R_OK | os.W_OK), "needs /dev/net/tun, and the right to open it")
    made: list[str] = []
    settings = ["default/accept_dad"] if ipv6 else ["all/disable_ipv6", "default/disable_ipv6"]
    try:
        for name in names:
            run("ip", "netns", "add", name)
            made.append(name)
            run("ip", "link", "set", "lo", "up", namespace=name)
            for setting in settings:
                value = "0" if ipv6 else "1"
                run("sh", "-c", f"echo {value} > /proc/sys/net/ipv6/conf/{setting}", namespace=name)
        yield
    finally:
        for name in made:
            run("ip", "netns", "del", name, check=False)


def socket_in(namespace: str, kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET) -> socket.socket:
    """A socket of that namespace, where it stays whichever thread uses it."""

    made = in_namespace(namespace, lambda: socket.socket(family, kind))
    made.settimeout(20)
    return made


def in_namespace(namespace: str, work: Callable[[], Result]) -> Result:
    def there() -> Result:
        with Path(f"/run/netns/{namespace}").open() as handle:
            if _libc.setns(handle.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"setns {namespace}")
        return work()

    with ThreadPoolExecutor(1) as thread:  # only this thread changes its namespace, and it ends here
        return thread.submit(there).result()


def ping(namespace: str, address: str, *options: str, count: int = 3) -> int:
    """How many answers came."""
    command = ("ping", "-n", "-q", "-i", "0.05", "-W", "1", "-c", str(count), *options, address)
    done = run(*command, namespace=namespace, check=False)
    return next((int(part.split()[0]) for part in done.stdout.split(", ") if part.endswith(" received")), 0)


def transfer(source: str, target: str, address: str, size: int) -> None:
    """Send random bytes over TCP from one namespace to another, and compare what comes."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    content = random.randbytes(size)
    digest = hashlib.sha256()
    with socket_in(target, family=family) as listener, socket_in(source, family=family) as client:
        listener.bind((address, 0))
        listener.listen()
        client.connect(listener.getsockname())
        connection, _ = listener.accept()
        connection.settimeout(20)
        with connection, ThreadPoolExecutor(1) as thread:
            sending = thread.submit(send_and_end, client, content)
            while data := connection.recv(1 << 20):
                digest.update(data)
            sending.result()
    assert digest.digest() == hashlib.sha256(content).digest()


def send_and_end(connection: socket.socket, content: bytes) -> None:
    connection.sendall(content)
    connection.shutdown(socket.SHUT_WR)


def link_counters(namespace: str, interface: str) -> dict[str, Any]:
    (link,) = json.loads(run("ip", "-j", "-d", "-s", "link", "show", interface, namespace=namespace).stdout)
    found: dict[str, Any] = link
    return found


def has_carrier(namespace: str, interface: str = "fast0") -> bool:
    return "LOWER_UP" in link_counters(namespace, interface)["flags"]


def await_carriers(*namespaces: str, interface: str = "fast0") -> None:
    """A tap's carrier comes on when its agent hears of the other end's, which may be when that one is ready already."""
    for namespace in namespaces or ("west", "east"):
        until(lambda: _is_up(namespace, interface), f"{interface} of {namespace} has a carrier")  # noqa: B023


def _is_up(namespace: str, interface: str) -> bool:
    """Asked without a process: what awaits it asks often."""

    def flags() -> int:
        request = struct.pack("16s16x", interface.encode())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request)
        return int(struct.unpack_from("H", answer, 16)[0])

    try:
        return bool(in_namespace(namespace, flags) & _IFF_RUNNING)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        raise


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
