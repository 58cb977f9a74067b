"""`bench race` compares what it says it does: both chains carry, and each datagram is judged by the same check."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.form import BenchError, Snapshot, duel
from bench.race.racer import End
from tests.conftest import require
from tests.support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
ALL_ONES = (1 << 64) - 1


def race(environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", "race", "--quick", "--json"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)


@pytest.mark.needs_root
def test_all_rows_of_the_race_have_traffic_on_both_sides() -> None:
    require(len(os.sched_getaffinity(0)) >= 2, "needs two cores")
    require(shutil.which("nft") is not None, "needs nft")
    done = race()
    require("the kernel's chain cannot be made here" not in done.stderr, done.stderr)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["name"] == "race"
    assert report["machine"]["cores"] >= 2
    cases = {row["case"].rpartition(", ")[0]: row for row in report["rows"]}
    assert cases.keys() >= {"bulk TCP"}
    assert cases.keys() <= {"small UDP, fast ends", "small UDP, kernel sockets", "bulk TCP"}
    for row in report["rows"]:
        assert row["ours"] > 0
        assert row["peer"] > 0
        assert row["ratio"] > 0
        assert row["windows"] > 0
        assert row["against"] == "kernel chain"
        assert "CPU per" in row["notes"]


@pytest.mark.needs_root
def test_a_race_without_nft_names_it(tmp_path: Path) -> None:
    for tool in ("unshare", "nsenter", "ip", "ping", "gcc"):
        found = shutil.which(tool)
        require(found is not None, f"needs {tool}")
        (tmp_path / tool).symlink_to(str(found))
    done = race(os.environ | {"PATH": str(tmp_path)})
    assert done.returncode != 0
    assert "nft not found" in done.stderr


class Counting:
    """A contestant without processes: what it has delivered grows by `step` with each look."""

    def __init__(self, name: str, step: int) -> None:
        self.name = name
        self._frames, self._step = 0, step

    def resume(self) -> None: ...

    def pause(self) -> None: ...

    def read(self) -> Snapshot:
        self._frames += self._step
        return Snapshot(time.monotonic_ns(), self._frames)


def test_a_chain_that_delivered_nothing_is_an_error() -> None:
    with pytest.raises(BenchError, match="kernel chain delivered nothing"):
        duel((Counting("ringway", 1), Counting("kernel chain", 0)), rounds=2, seconds=0.01)


def word(number: int, place: int) -> bytes:
    """bench/race_traffic.h: one step of splitmix64."""
    value = (number + (place + 1) * 0x9E3779B97F4A7C15) & ALL_ONES
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & ALL_ONES
    return (value ^ (value >> 27)).to_bytes(8, "little")


def datagram(number: int) -> bytes:
    return number.to_bytes(8, "little") + word(number, 8) + word(number, 16)[:2]


@pytest.fixture
def sink() -> Iterator[End]:
    made = End("socket_receive", "127.0.0.1", None)
    yield made
    made.end()


def test_the_sink_tells_lost_late_doubled_and_damaged_datagrams_apart(sink: End) -> None:
    sink.await_ready()
    sent = [datagram(number) for number in (0, 1, 3, 2, 3, 10)]
    sent += [datagram(11)[:-1] + b"x", datagram(11)[:12], datagram(12)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(("127.0.0.1", 7001))
        for payload in sent:
            sender.send(payload)
        until(lambda: sink.books()["delivered"] == 6, "all that are whole were taken")
    books = sink.books()
    assert books["bytes"] == 6 * 18
    assert books["lost"] == 7, "4 to 9, and 11"
    assert books["reordered"] == 1
    assert books["duplicated"] == 1
    assert books["damaged"] == 2
    with pytest.raises(BenchError, match="2 damaged datagrams"):
        sink.check()
