"""A link whose region and ends may each be of another release, every one of them a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from ringway.shm import make_bell
from tests.upgrade.release import Release

LINK = 11
SMALL = (3, 64, 256, 128)  # queues, slots, payload, headroom: frames of up to 32 slots
A, B = 0, 1


class EndProcess:
    """A process of end.py. What is asked of it is answered in order."""

    def __init__(self, release: Release, *fds: int) -> None:
        command = [sys.executable, str(Path(__file__).with_name("end.py"))]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=fds,
            env=release.environment,
        )
        try:
            self.ask("layout")  # once it answers, it has imported what it runs
            assert release.is_run_by(self.process.pid), f"{release} is not what runs"
        except BaseException:
            self.kill()
            raise

    def start(self, what: str, **arguments: object) -> None:
        """Ask, for `answer` to be called later."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([what, arguments]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the end is gone, with {self.process.wait(10)}"
        told = json.loads(line)
        assert "error" not in told, told["error"]
        return told["answer"]

    def ask(self, what: str, **arguments: object) -> Any:
        self.start(what, **arguments)
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """It does nothing meanwhile."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


class Link:
    """A region, its bells, and whoever was started at its ends; all of it goes when it is closed."""

    def __init__(self, maker: Release, geometry: tuple[int, int, int, int] = SMALL) -> None:
        self.geometry = geometry
        self._closing = contextlib.ExitStack()
        self.fd = self._made_by(maker)
        # [side][queue]: of the ring that the side produces, its producer's bell and its consumer's
        self.bells = [[(self._bell(), self._bell()) for _ in range(geometry[0])] for _ in (A, B)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _made_by(self, maker: Release) -> int:
        """The region's descriptor, taken from a process that ends again."""
        making = EndProcess(maker)
        try:
            there = making.ask("create", geometry=self.geometry, link=LINK)
            fd = os.open(f"/proc/{making.process.pid}/fd/{there}", os.O_RDWR | os.O_CLOEXEC)
        finally:
            making.kill()
        self._closing.callback(os.close, fd)
        return fd

    def _process(self, release: Release, *fds: int) -> EndProcess:
        made = EndProcess(release, *fds)
        self._closing.callback(made.kill)
        return made

    def _bell(self) -> tuple[int, int]:
        bell = make_bell()
        for fd in bell:
            self._closing.callback(os.close, fd)
        return bell

    def apart(self, release: Release) -> EndProcess:
        """A process that has the region, and is no end of it."""
        return self._process(release, self.fd)

    def books(self, release: Release) -> Any:
        """As that release reads them."""
        return self.apart(release).ask("read", fd=self.fd)

    def offer(self, release: Release, side: int, incarnation: int = 1) -> tuple[EndProcess, str]:
        """A process, and why it has not become the end of that side, if it has not."""
        given = [
            (own[0][0], own[1][1], peers[1][0], peers[0][1])
            for own, peers in zip(self.bells[side], self.bells[1 - side], strict=True)
        ]
        end = self._process(release, self.fd, *(fd for queue in given for fd in queue))
        named = {"fd": self.fd, "geometry": self.geometry, "link": LINK, "bells": given}
        return end, end.ask("attach", side=side, incarnation=incarnation, **named)

    def end(self, release: Release, side: int, incarnation: int = 1) -> EndProcess:
        end, refused = self.offer(release, side, incarnation)
        assert not refused, refused
        return end
