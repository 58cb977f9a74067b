"""dpdk-testpmd as a stock guest: its virtio-user ports are front ends of vhost-user sockets. No huge pages."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from typing import Self

from tests.conftest import require

_TIMEOUT_S = 40.0
_COUNT = re.compile(r"([RT])X-packets: *(\d+)")


class Testpmd:
    """One process, on its prompt when it is made."""

    __test__ = False  # pytest takes it for a test by its name

    def __init__(self, devices: Sequence[str], *options: str, memory_mib: int = 192) -> None:
        """`devices`: arguments of net_virtio_user, one port each."""
        program = shutil.which("dpdk-testpmd")
        require(program is not None, "needs dpdk-testpmd: apt-get install dpdk-dev, which ./run test does where it may")
        cpu = min(os.sched_getaffinity(0))
        command = [str(program), f"--lcores=0@{cpu},1@{cpu}", "--no-pci", "--no-huge", "-m", str(memory_mib)]
        # virtio-user hands over what it has by whole files, eight at the most.
        command += ["--single-file-segments", "--no-telemetry", f"--file-prefix=rw{os.getpid()}"]
        for number, device in enumerate(devices):
            command += ["--vdev", f"net_virtio_user{number},{device}"]
        command += ["--", "-i", "--nb-cores=1", "--total-num-mbufs=8192", "--no-mlockall", *options]
        self.output = ""
        # Into a pipe it would write by whole blocks, and what it answers would come with later answers.
        self._terminal, its_end = os.openpty()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=its_end, stderr=its_end, bufsize=0)
        os.close(its_end)
        self._await(0, "testpmd> ")

    def say(self, line: str, until: str = "testpmd> ") -> str:
        """What it answers, up to `until`; notices of its own come between, with another prompt behind them."""
        assert self._process.stdin is not None
        begin = len(self.output)
        self._process.stdin.write(f"{line}\n".encode())
        self._await(begin, until)
        return self.output[begin:]

    def counts(self, port: int = 0) -> tuple[int, int]:
        """Frames that the port has received and sent since it was started."""
        found = dict(_COUNT.findall(self.say(f"show port stats {port}", until="Tx-pps")))
        return int(found["R"]), int(found["T"])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        os.close(self._terminal)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _await(self, begin: int, text: str) -> None:
        deadline = time.monotonic() + _TIMEOUT_S
        while text not in self.output[begin:]:
            readable, _, _ = select.select([self._terminal], [], [], max(0, deadline - time.monotonic()))
            assert readable, f"testpmd does not say {text!r}: {self.output}"
            try:
                self.output += os.read(self._terminal, 65536).decode(errors="replace")
            except OSError:  # EIO: it has ended
                raise AssertionError(f"testpmd has ended before it said {text!r}: {self.output}") from None
