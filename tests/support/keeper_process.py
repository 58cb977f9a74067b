"""A real keeper for tests, clients of it that are killed or hostile, and what can be seen of it from outside."""

from __future__ import annotations

import array
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ringway.broker import keeper_server
from ringway.broker.keeper_client import Keeper, Kept
from tests.support.broker_process import RINGWAY, descriptors_of
from tools.soak.census import await_idle, keeper_pid

PATIENCE_MS = 30_000


@contextlib.contextmanager
def running_keeper(runtime: Path) -> Iterator[Keeper]:
    """Started for this process as for a broker, and killed in the end if need be."""
    runtime.mkdir(mode=0o700, exist_ok=True)
    keeper = Keeper.reach(runtime)
    with watching(keeper.pid) as pid_fd:
        try:
            yield keeper
        finally:
            keeper.close()
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pid_fd, signal.SIGKILL)
            await_end(pid_fd)


@contextlib.contextmanager
def keeper_by_hand(runtime: Path, *prefix: str) -> Iterator[int]:
    """The pid of a `ringway keeper`, which no broker ends; `prefix`: a command that executes it."""
    command = [*prefix, *RINGWAY, "keeper", "--runtime", str(runtime)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"keeper ready on {runtime}\n"
            yield process.pid
        finally:
            process.kill()


@contextlib.contextmanager
def watching(pid: int) -> Iterator[int]:
    pid_fd = os.pidfd_open(pid)
    try:
        yield pid_fd
    finally:
        os.close(pid_fd)


def await_end(pid_fd: int) -> None:
    assert readable(pid_fd), "the keeper goes on"


def readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(PATIENCE_MS))


@contextlib.contextmanager
def reached(runtime: Path) -> Iterator[Keeper]:
    """The next client of the keeper there, as soon as the one before it has left."""
    keeper = Keeper.reach(runtime)
    try:
        yield keeper
    finally:
        keeper.close()


@contextlib.contextmanager
def taken(keeper: Keeper) -> Iterator[dict[str, Kept]]:
    kept = keeper.take_all()
    try:
        yield {entry.key: entry for entry in kept}
    finally:
        for entry in kept:
            for fd in entry.fds:
                os.close(fd)


def keys(keeper: Keeper) -> list[str]:
    with taken(keeper) as kept:
        return list(kept)


def settled_descriptors(runtime: Path) -> int:
    """How many the keeper has open when it has dealt with all that came or went before."""
    pid = keeper_pid(runtime)
    assert pid is not None, "no keeper runs"
    await_idle(pid)
    return descriptors_of(pid)


@contextlib.contextmanager
def memories(*contents: bytes) -> Iterator[list[int]]:
    """Descriptors of as many memfds."""
    fds = [os.memfd_create("kept") for _ in contents]
    try:
        for fd, content in zip(fds, contents, strict=True):
            os.write(fd, content)
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


KILLED = """
import os, signal, sys
from pathlib import Path
from ringway.broker.keeper_client import Keeper
keeper = Keeper.reach(Path(sys.argv[1]))
{}
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_client(runtime: Path, code: str, fds: Sequence[int] = ()) -> None:
    """A process that reaches the keeper, runs `code` with `keeper`, and kills itself. Its log is read to the end."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED.format(code), str(runtime), *map(str, fds)],
        pass_fds=fds,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


class Said(NamedTuple):
    op: int
    value: bytes


class Stranger:
    """A client of its own making, bound by no rules."""

    def __init__(self, runtime: Path) -> None:
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection.connect(str(runtime / keeper_server.SOCKET_NAME))  # waits for its place in the backlog
        self.connection.settimeout(PATIENCE_MS / 1000)

    def say(self, payload: bytes, fds: Sequence[int] = ()) -> None:
        self.connection.sendmsg([payload], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])

    def hear(self) -> Said | None:
        """What the keeper says next, without its descriptors; None when it has hung up."""
        try:
            payload = self.connection.recv(1 << 17)
        except ConnectionResetError:  # said once, ahead of the keeper's last words
            payload = self.connection.recv(1 << 17)
        if not payload:
            return None
        op, _ = keeper_server.HEAD.unpack_from(payload)
        return Said(op, payload[keeper_server.HEAD.size :])


@contextlib.contextmanager
def knocking(runtime: Path) -> Iterator[Stranger]:
    stranger = Stranger(runtime)
    with stranger.connection:
        yield stranger


def message(op: int, key: bytes = b"", value: bytes = b"") -> bytes:
    return keeper_server.HEAD.pack(op, key) + value
