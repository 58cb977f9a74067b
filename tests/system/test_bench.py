"""Each bench carries real traffic on both sides, and what it prints with --json can be read by a program."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import huge
from bench.fabric import Worker
from bench.form import BenchError
from bench.machine import huge_pages
from bench.native import lib
from tests.conftest import require
from tests.support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
COUNT = Path("/proc/sys/vm/nr_hugepages")
MACHINE = {"cpu", "cores", "core_to_core_ns", "huge_pages", "kernel", "python", "ringway", "dpdk"}
ROW = {"case", "unit", "ours", "peer", "ratio", "windows", "spread", "against", "notes"}


def require_two_cores() -> None:
    require(len(os.sched_getaffinity(0)) >= 2, "needs two cores")


def require_dpdk() -> None:
    require_two_cores()
    require(shutil.which("dpdk-testpmd") is not None, "needs dpdk-testpmd: install dpdk-dev")
    require(os.access(COUNT, os.W_OK), "DPDK needs huge pages, and the right to reserve them: start as root")


def bench(name: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", name, "--quick", "--json"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)


def well_formed(name: str) -> list[dict[str, Any]]:
    """Run it; its rows, looked over."""
    done = bench(name)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["name"] == name
    assert report["machine"].keys() >= MACHINE
    assert report["machine"]["cores"] >= 2
    assert report["machine"]["core_to_core_ns"] > 0
    assert report["rows"]
    for row in report["rows"]:
        look_over(row)
    cases = [(row["case"], row["against"]) for row in report["rows"]]
    assert len(set(cases)) == len(cases), "each comparison has one row"
    rows: list[dict[str, Any]] = report["rows"]
    return rows


def look_over(row: dict[str, Any]) -> None:
    assert row.keys() >= ROW
    assert row["unit"]
    assert row["against"]
    assert row["windows"] >= 1
    assert min(row["ours"], row["peer"], row["ratio"]) > 0, row
    assert row["spread"].keys() >= {"ours", "peer", "ratio"}
    for value in ("ours", "peer", "ratio"):
        low, high = row["spread"][value]
        assert 0 < low <= high, row
        assert low <= row[value] <= high, row


def lens_against(rows: list[dict[str, Any]], peer: str) -> set[str]:
    """A length has a row for each class of distance that two windows of one round shared."""
    assert all(row["unit"] == "Mframes/s" for row in rows)
    assert all(row["case"].rpartition(", ")[2] in ("near", "far") for row in rows)
    return {row["case"].partition(",")[0] for row in rows if row["against"] == peer}


@pytest.mark.full
@pytest.mark.needs_root
def test_bench_link_compares_lengths_with_memif_and_a_bare_ring() -> None:
    require_dpdk()
    rows = well_formed("link")
    assert {row["against"] for row in rows} <= {"memif", "bare ring"}
    for peer in ("memif", "bare ring"):
        assert set() < lens_against(rows, peer) <= {"64 B", "256 B", "1500 B", "9000 B"}


@pytest.mark.full
@pytest.mark.needs_root
def test_bench_hop_compares_lengths_with_memif_and_a_bare_hop() -> None:
    require_dpdk()
    rows = well_formed("hop")
    assert {row["against"] for row in rows} <= {"memif", "bare hop"}
    like = {"64 B", "256 B", "1500 B"}
    for peer in ("memif", "bare hop"):
        assert set() < lens_against(rows, peer) <= like | {f"{len_} all touched" for len_ in like}


@pytest.mark.full
@pytest.mark.needs_root
def test_bench_chain_holds_long_chains_against_a_short_one_and_the_demos_against_the_kernels() -> None:
    require_two_cores()
    require(shutil.which("nft") is not None, "needs nft")
    rows = well_formed("chain")
    forwarders = {row["case"] for row in rows if row["against"] == "2 forwarders"}
    assert forwarders == {f"{len_} B, {hops} forwarders" for len_ in (64, 1500) for hops in (4, 8)}
    assert {row["case"].partition(",")[0] for row in rows if row["against"] == "kernel chain"} == {"bulk TCP"}


@pytest.mark.full
def test_bench_latency_compares_percentiles_with_iceoryx2_pipes_and_datagrams() -> None:
    require_two_cores()
    require(importlib.util.find_spec("iceoryx2") is not None, "needs iceoryx2: ./run test --full installs it")
    rows = well_formed("latency")
    assert {row["against"] for row in rows} == {"iceoryx2", "pipe", "unix datagram"}
    assert {row["unit"] for row in rows} == {"us"}
    for label in ("p50", "p99", "p99.9"):
        against = [row["against"] for row in rows if row["case"].endswith(f", {label}")]
        assert sorted(against) == ["iceoryx2", "iceoryx2", "pipe", "unix datagram"]


@pytest.mark.full
def test_bench_flow_compares_many_flows_with_few() -> None:
    require_two_cores()
    assert {row["against"] for row in well_formed("flow")} <= {"limit", "1024 flows"}


@pytest.mark.full
def test_bench_function_compares_the_example_in_python_with_that_in_c() -> None:
    require_two_cores()
    assert [(row["case"], row["against"]) for row in well_formed("function")] == [
        ("a packet through sizes.py", "mark.c")
    ]


def test_bench_idle_holds_cost_and_wake_up_against_their_limits() -> None:
    require_two_cores()
    rows = well_formed("idle")
    assert {row["against"] for row in rows} == {"limit"}
    assert [row["unit"] for row in rows] == ["% of a core", "% of a core", "us", "us"]


@pytest.mark.needs_root
@pytest.mark.full
def test_bench_control_times_links_beside_a_veth_pair_and_finds_their_memory_as_stated() -> None:
    require_two_cores()
    rows = well_formed("control")
    times = [(row["case"], row["against"]) for row in rows if row["unit"] != "MiB"]
    for others in (1, 64):
        case = f"one link more, beside {others}"
        assert {(f"{case}, p50", "limit"), (f"{case}, p50", "veth"), (f"{case}, p99", "veth")} <= set(times)
    assert ("256 links of 64 slots at once", "limit") in times
    assert ("a new broker has adopted 256 links", "limit") in times
    assert len(times) == 8
    memory = [row for row in rows if row["unit"] == "MiB"]
    assert len(memory) == 3
    assert [row["ours"] for row in memory] == [row["peer"] for row in memory], "allocated as stated"


@pytest.mark.full
@pytest.mark.needs_root
def test_a_bench_without_its_peer_names_it(tmp_path: Path) -> None:
    require_two_cores()
    require(os.access(COUNT, os.W_OK), "needs huge pages, and the right to reserve them: start as root")
    (tmp_path / "gcc").symlink_to(str(shutil.which("gcc")))
    done = bench("link", os.environ | {"PATH": str(tmp_path)})
    assert done.returncode == 1, done.stderr
    assert "dpdk-testpmd is not installed: sudo apt-get install dpdk-dev" in done.stderr
    assert done.stdout == ""


@pytest.mark.full
@pytest.mark.needs_root
def test_the_kernel_has_as_many_huge_pages_after_a_bench_as_before() -> None:
    require(os.access(COUNT, os.W_OK), "needs the right to reserve huge pages: start as root")
    total, free = huge_pages()
    within = 0
    try:
        with huge.reserved(free + 4):
            within = huge_pages()[0]
    except BenchError as error:
        require("found memory for only" not in str(error), str(error))
        raise
    finally:
        assert huge_pages()[0] == total
    assert within == total + 4


def frame(number: int) -> bytes:
    """bench/touch.h: each word is the frame's number plus its place."""
    return b"".join((number + place).to_bytes(8, "little") for place in range(8))


def test_a_damaged_frame_is_counted_by_the_checking_end_and_is_an_error() -> None:
    require_two_cores()
    damaged = frame(1)[:-1] + b"x"
    ring = os.memfd_create("ring")
    os.truncate(ring, lib.bench_bare_size())
    for slot, payload in enumerate((frame(0), damaged, frame(2))):  # offsets as in bench/bare.h
        os.pwrite(ring, len(payload).to_bytes(4, "little"), 256 + 4 * slot)
        os.pwrite(ring, payload, 256 + 4 * 1024 + 2112 * slot + 64)
    os.pwrite(ring, (3).to_bytes(8, "little"), 0)
    worker = Worker("bench_bare_consume", 0, f"--memory={ring}", fds=(ring,))
    try:
        until(lambda: worker.board.native.frames == 3, "all three were taken")
        with pytest.raises(BenchError, match="1 frames came damaged"):
            worker.read()
    finally:
        worker.close()
        os.close(ring)
