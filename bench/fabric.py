"""A fabric of the bench's own: a broker with its runtime directory, and worker processes at the ends of its links."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.board import Board
from bench.form import BenchError, Snapshot, go_on, stop
from bench.native import ROOT, lib
from ringway.control.client import Client
from ringway.control.messages import Show, Shown

RINGWAY = str(Path(sys.executable).with_name("ringway"))


def _log(name: str) -> Path:
    folder = ROOT / "build" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.log"


def start(
    name: str, command: Sequence[str], ready: str, fds: Sequence[int] = (), stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    """Start a process and wait until it says that it is ready; what it says goes into a file besides."""
    with _log(name).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, pass_fds=fds
        )
    assert process.stdout is not None
    for line in process.stdout:
        if ready in line:
            return process
    process.wait()
    raise BenchError(f"{name} ended with {process.returncode}; see {_log(name).relative_to(ROOT)}")


class Worker:
    """A process that runs one loop of bench/ on one core."""

    def __init__(self, loop: str, cpu: int, *options: str, fds: Sequence[int] = ()) -> None:
        self.board = Board()
        self.board.native.len, self.board.native.flows = 64, 1
        command = [sys.executable, "-m", "bench.worker", loop, f"--cpu={cpu}", f"--board={self.board.fd}", *options]
        self._process = start(f"worker-{loop}-{cpu}", command, "ready", fds=(self.board.fd, *fds))
        self.pid = self._process.pid

    def read(self) -> Snapshot:
        board = self.board.native
        if board.bad:
            raise BenchError(f"{board.bad} frames came damaged or out of order: a bug of ours, please report it")
        return Snapshot(time.monotonic_ns(), board.frames)

    def close(self) -> None:
        self.board.native.stop = 1
        go_on(self.pid)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Workers:
    """A contestant made of workers, the first of which delivers; other processes may belong to it."""

    def __init__(self, name: str, workers: Sequence[Worker], others: Sequence[int] = ()) -> None:
        self.name = name
        self._workers = workers
        self._pids = (*others, *(worker.pid for worker in workers))

    def set_len(self, len_: int) -> None:
        for worker in self._workers:
            worker.board.native.len = len_

    def set_touched(self, touched: int) -> None:
        """Bytes of each frame that the ends of a hop write and compare; 0: all."""
        for worker in self._workers:
            worker.board.native.touched = touched

    def set_flows(self, flows: int) -> None:
        """A power of two."""
        for worker in self._workers:
            worker.board.native.flows = flows

    def resume(self) -> None:
        go_on(*self._pids)

    def pause(self) -> None:
        stop(*self._pids)

    def read(self) -> Snapshot:
        return self._workers[0].read()


class Fabric:
    """A broker; use as a context manager, which ends all that was started through it."""

    def __init__(self, text: str) -> None:
        self._stack = contextlib.ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ringway-bench-")))
        self.runtime = folder / "runtime"
        file = folder / "fabric.toml"
        file.write_text(text, encoding="utf-8")
        self._broker = self._run("broker", "broker ready", "broker", "--fabric", str(file))

    @property
    def broker_pid(self) -> int:
        return self._broker.pid

    def kill_broker(self) -> None:
        """Its links go on, and its keeper has what another needs."""
        self._broker.kill()
        self._broker.wait()

    def start_broker(self) -> None:
        """Another one, which adopts them; returns when it is ready."""
        self._broker = self._run("broker", "broker ready", "broker")

    def _run(self, name: str, ready: str, *arguments: str) -> subprocess.Popen[str]:
        process = start(name, [RINGWAY, *arguments, "--runtime", str(self.runtime)], ready)
        self._stack.callback(_end, process)
        return process

    def show(self) -> Shown:
        with Client(self.runtime) as client:
            return client.call(Show(), Shown)

    def agent(self, vm: str, cpu: int, *options: str) -> subprocess.Popen[str]:
        """`ringway agent`, as a user starts it, on one core."""
        with _log(f"agent-{vm}").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                ["taskset", "-c", str(cpu), RINGWAY, "agent", "--vm", vm, "--runtime", str(self.runtime), *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert process.stderr is not None
            self._stack.callback(_end, process)
            for line in process.stderr:
                log.write(line)
                if f"agent {vm}: ready" in line:
                    return process
        raise BenchError(f"the agent of {vm} ended; see build/bench/agent-{vm}.log")

    def worker(self, loop: str, cpu: int, vm: str, *options: str) -> Worker:
        worker = Worker(loop, cpu, f"--runtime={self.runtime}", f"--vm={vm}", *options)
        self._stack.callback(worker.close)
        return worker

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        return
    go_on(process.pid)
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _bare(name: str, size: int, loops: Sequence[str]) -> Iterator[Workers]:
    """Loops over memory of their own, the first on CPU 0 and delivering; see bare.h."""
    fd = os.memfd_create(name, 0)
    os.truncate(fd, size)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        sides = [Worker(loop, cpu, f"--memory={fd}", fds=(fd,)) for cpu, loop in enumerate(loops)]
        for side in sides:
            stack.callback(side.close)
        contestant = Workers(name, sides)
        contestant.pause()
        yield contestant


def bare_ring() -> contextlib.AbstractContextManager[Workers]:
    """The limit of a link on this machine."""
    return _bare("bare ring", lib.bench_bare_size(), ("bench_bare_consume", "bench_bare_produce"))


def bare_hop() -> contextlib.AbstractContextManager[Workers]:
    """The limit of a hop on this machine."""
    return _bare("bare hop", lib.bench_bare_hop_size(), ("bench_bare_hop_ends", "bench_bare_hop_forward"))
