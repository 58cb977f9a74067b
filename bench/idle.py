"""What idle agents cost, read from /proc, and how long after a silence the first frame takes through a sleeping one."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from pathlib import Path

from bench.board import Board, Samples
from bench.fabric import Fabric, start
from bench.form import BenchError, Report, Row, await_result, less_is_better
from bench.hop import FABRIC

QUEUES = (1, 16)
IDLE_LIMIT_PERCENT = 1.0
WAKE_LIMIT_US = 1000.0
GAP_US = 5000


def cpu_ns(pid: int) -> int:
    """Time on a processor of all threads, to the nanosecond: the first number of schedstat."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text(encoding="ascii").split()[0]) for task in tasks)


def _fabric(queues: int) -> str:
    return re.sub(r"^(ends = .*)$", rf"\1\nqueues = {queues}", FABRIC.format(stack=""), flags=re.MULTILINE)


def _idle_percent(queues: int, windows: int, seconds: float, settle: float) -> list[float]:
    with Fabric(_fabric(queues)) as fabric:
        agent = fabric.agent("firewall", 1)
        ends = fabric.agent("ends", 0)
        assert ends.pid
        time.sleep(settle)
        return [_used_percent(agent.pid, seconds) for _ in range(windows)]


def _used_percent(pid: int, seconds: float) -> float:
    before, since = cpu_ns(pid), time.monotonic_ns()
    time.sleep(seconds)
    await_result(lambda: cpu_ns(pid) > before, 10)
    return (cpu_ns(pid) - before) / (time.monotonic_ns() - since) * 100


def _wake_up_us(windows: int, seconds: float) -> list[list[float]]:
    """p50 and p99 of each window: one frame through the firewall's two links, all asleep before."""
    with Fabric(_fabric(1)) as fabric, contextlib.ExitStack() as stack:
        fabric.agent("firewall", 1)
        board, samples = Board(), Samples()
        board.native.gap_us = GAP_US
        options = ["--cpu=0", f"--board={board.fd}", f"--samples={samples.fd}", "--pings", "--ports", "out", "in"]
        command = [sys.executable, "-m", "bench.pingpong", "sleeping", *options]
        command += [f"--runtime={fabric.runtime}", "--vm=ends"]
        ends = start("idle-ends", command, "ready", (board.fd, samples.fd))
        stack.callback(_kill, ends)
        return [_percentiles_us(samples, seconds) for _ in range(windows)]


def _percentiles_us(samples: Samples, seconds: float) -> list[float]:
    first = samples.native.count
    time.sleep(seconds)
    await_result(lambda: samples.native.count > first, 10)
    trips = sorted(samples.between(first, samples.native.count))
    if not trips:
        raise BenchError("no frame came through the sleeping firewall; see build/bench/")
    return [trips[int(len(trips) * share)] / 1e3 for share in (0.5, 0.99)]


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def run(quick: bool) -> Report:
    # To settle takes as long as sleeps grow, a second and more; --quick does not wait for all of it.
    windows, seconds, settle = (1, 0.5, 0.5) if quick else (3, 10.0, 2.0)
    rows: list[Row] = []
    for queues in QUEUES:
        percent = _idle_percent(queues, windows, seconds, settle)
        case = f"idle agent that forwards, {queues} queue{'s' if queues > 1 else ''}"
        limit = [IDLE_LIMIT_PERCENT] * len(percent)
        rows.append(less_is_better(case, "% of a core", percent, limit, "limit", f"windows of {seconds:g} s"))
    wakes = _wake_up_us(2 if quick else 10, 0.5 if quick else 3.0)
    for index, label in enumerate(("p50", "p99")):
        values = [one[index] for one in wakes]
        case = f"wake-up through a sleeping firewall, {label}"
        note = f"one frame every {GAP_US // 1000} ms, two links and a forwarder, two wake-ups"
        limits = [WAKE_LIMIT_US] * len(values)
        rows.append(less_is_better(case, "us", values, limits, "limit", note))
    return Report("idle", rows)
