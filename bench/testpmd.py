"""dpdk-testpmd as a peer: started, spoken to on its standard input, read through DPDK's telemetry socket."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.form import BenchError, Snapshot, await_result, go_on, stop
from bench.native import ROOT

_TIMEOUT_S = 20.0
SEGMENT = 2048  # bytes of data in one of DPDK's default buffers
_MEMORY_MIB = 256  # of huge pages for each process
HUGE_PAGES = 2 * _MEMORY_MIB // 2 + 16  # for two of them


def _telemetry_folder() -> Path:
    """Where EAL puts it: /var/run for root, else the user's run-time directory."""
    if os.geteuid() == 0:
        return Path("/var/run/dpdk")
    return Path(os.environ.get("XDG_RUNTIME_DIR", "/tmp")) / "dpdk"


class Testpmd:
    """One process, with the forwarding core and all others on `cpu`."""

    def __init__(self, name: str, cpu: int, vdevs: Sequence[str], options: Sequence[str]) -> None:
        program = shutil.which("dpdk-testpmd")
        if program is None:
            raise BenchError("dpdk-testpmd is not installed: sudo apt-get install dpdk-dev, and start again")
        self.name = f"ringway-bench-{os.getpid()}-{name}"
        eal = [f"--lcores=0@{cpu},1@{cpu}", "--no-pci", "--in-memory", "-m", str(_MEMORY_MIB)]
        eal += ["--single-file-segments", f"--file-prefix={self.name}"]
        for vdev in vdevs:
            eal += ["--vdev", vdev]
        self._log = ROOT / "build" / "bench" / f"testpmd-{name}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [program, *eal, "--", "-i", "--nb-cores=1", *options],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.pid = self._process.pid
        self._telemetry: socket.socket | None = None

    def _failed(self, what: str) -> BenchError:
        return BenchError(f"testpmd: {what}; see {self._log.relative_to(ROOT)}")

    def wait_ready(self) -> None:
        """Until telemetry answers: all ports are there then, and configured when the prompt is."""
        deadline = time.monotonic() + _TIMEOUT_S
        path = _telemetry_folder() / self.name / "dpdk_telemetry.v2"
        while not (path.exists() and "testpmd>" in self._log.read_text(encoding="utf-8", errors="replace")):
            if self._process.poll() is not None:
                raise self._failed(f"ended with {self._process.returncode}")
            if time.monotonic() > deadline:
                raise self._failed(f"was not ready within {_TIMEOUT_S:.0f} s")
            time.sleep(0.05)  # nothing announces it
        self._telemetry = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._telemetry.settimeout(_TIMEOUT_S)
        self._telemetry.connect(str(path))
        self._telemetry.recv(16384)

    def say(self, *lines: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"{line}\n" for line in lines))
        self._process.stdin.flush()

    def ask(self, command: str) -> Any:
        assert self._telemetry is not None
        self._telemetry.send(command.encode())
        answer = json.loads(self._telemetry.recv(65536))
        return answer[command.partition(",")[0]]

    def received(self, port: int = 0) -> tuple[Snapshot, int]:
        """Frames that came in by a port, and their bytes. The time is the middle of the question."""
        before = time.monotonic_ns()
        stats = self.ask(f"/ethdev/stats,{port}")
        return Snapshot((before + time.monotonic_ns()) // 2, int(stats["ipackets"])), int(stats["ibytes"])

    def close(self) -> None:
        if self._telemetry is not None:
            self._telemetry.close()
        assert self._process.stdin is not None
        go_on(self.pid)
        self._process.stdin.close()  # testpmd ends with its input
        try:
            self._process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class TestpmdPair:
    """Two processes of which the first receives what is counted."""

    check_sequence = 0  # bytes that the generator takes off what it is told

    def __init__(self, name: str, sink: Testpmd, other: Testpmd, note: str) -> None:
        self.name = name
        self.note = note
        self._sink = sink
        self._both = (sink, other)
        self._pids = (sink.pid, other.pid)
        self._len = 0
        self._before: tuple[int, int] | None = None  # frames and bytes when they were read last, of this length

    def start(self) -> None:
        for one in self._both:
            one.say("start")

    def set_len(self, len_: int) -> None:
        """Send frames of another length; one longer than a buffer in several. Running; when it returns they arrive."""
        asked = len_ + self.check_sequence
        segments = [SEGMENT] * (asked // SEGMENT) + ([asked % SEGMENT] if asked % SEGMENT else [])
        for one in self._both:
            one.say("stop", f"set txpkts {','.join(map(str, segments))}", "start")
        self._len, self._before = len_, None
        await_result(lambda: self._is_right(self._mean_now()), _TIMEOUT_S)

    def _mean_now(self) -> float:
        """Bytes of a frame that arrives; 0 where none does."""
        before, bytes_before = self._received()
        time.sleep(0.02)
        after, bytes_after = self._received()
        return (bytes_after - bytes_before) / max(after.frames - before.frames, 1)

    def _is_right(self, mean: float) -> bool:
        """Frames and bytes are not read in one instant."""
        return abs(mean - self._len) <= self._len / 50

    def resume(self) -> None:
        go_on(*self._pids)

    def pause(self) -> None:
        stop(*self._pids)

    def _received(self) -> tuple[Snapshot, int]:
        return self._sink.received()

    def read(self) -> Snapshot:
        reading, bytes_ = self._received()
        if self._before is not None and reading.frames > self._before[0]:
            mean = (bytes_ - self._before[1]) / (reading.frames - self._before[0])
            if not self._is_right(mean):
                raise BenchError(f"{self.name} was to carry {self._len} bytes a frame and carries {mean:.0f}")
        self._before = (reading.frames, bytes_)
        return reading

    def close(self) -> None:
        for one in self._both:
            one.close()


def memif_options(ring_log2: int, burst: int) -> list[str]:
    slots = 1 << ring_log2
    return [f"--burst={burst}", f"--rxd={slots}", f"--txd={slots}", "--total-num-mbufs=16384"]
