"""Network namespaces that stand for VMs, and what goes between them: pings, transfers, carriers."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import random
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tests.conftest import require
from tests.support.waiting import until

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_SIOCGIFFLAGS = 0x8913  # linux/sockios.h
_IFF_RUNNING = 1 << 6  # linux/if.h
Result = TypeVar("Result")
_libc = ctypes.CDLL(None, use_errno=True)


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
