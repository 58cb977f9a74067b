"""How much memory links can have: read from files as the kernel writes them, below a directory of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringway.broker.memory import available, huge_available

MIB = 1 << 20
GIB = 1 << 30
MOUNT_V2 = "30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
MOUNT_V1 = (
    "34 31 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
UNIT = "system.slice/ringway.service"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def host(total: int, left: int) -> dict[str, str]:
    text = f"MemTotal: {total >> 10} kB\nMemFree: 5 kB\nMemAvailable: {left >> 10} kB\nHugePages_Free: 0\n"
    return {"proc/meminfo": text}


def bytes_of(root: Path) -> int:
    found = available(root)
    assert found is not None
    return found.bytes


def test_the_host_bounds_links_that_no_group_bounds_and_a_part_is_kept_back(tmp_path: Path) -> None:
    found = available(write(tmp_path, host(4 * GIB, 2 * GIB)))
    assert found is not None
    assert found.bytes == 2 * GIB - 4 * GIB // 16
    assert "the host has 2048.0 MiB available of 4096.0" in str(found)
    assert "256.0 MiB are kept back" in str(found)


@pytest.mark.parametrize(("total", "kept"), [(100 * MIB, 16 * MIB), (1 << 40, GIB)])
def test_what_is_kept_back_is_neither_nothing_nor_without_end(tmp_path: Path, total: int, kept: int) -> None:
    assert bytes_of(write(tmp_path, host(total, total))) == total - kept


def test_where_less_is_left_than_is_kept_back_there_is_nothing(tmp_path: Path) -> None:
    assert bytes_of(write(tmp_path, host(4 * GIB, 10 * MIB))) == 0


def test_where_nothing_says_how_much_there_is_nothing_is_said(tmp_path: Path) -> None:
    assert available(tmp_path) is None
    assert available(write(tmp_path, {"proc/meminfo": "MemTotal: many kB\n"})) is None


@pytest.mark.parametrize("at", [UNIT, "system.slice", ""])
@pytest.mark.parametrize("name", ["memory.max", "memory.high"])
def test_the_tightest_group_bounds_links_wherever_it_is_above_the_broker(tmp_path: Path, at: str, name: str) -> None:
    directory = f"sys/fs/cgroup/{at}".rstrip("/")
    root = write(tmp_path, host(64 * GIB, 64 * GIB))
    write(root, {"proc/self/cgroup": f"0::/{UNIT}\n", "proc/self/mountinfo": MOUNT_V2})
    for group in (UNIT, "system.slice"):
        write(root, {f"sys/fs/cgroup/{group}/memory.max": "max\n", f"sys/fs/cgroup/{group}/memory.current": "4096\n"})
    write(root, {f"{directory}/{name}": f"{GIB}\n", f"{directory}/memory.current": f"{300 * MIB}\n"})
    stat = f"anon 5\nfile {250 * MIB}\nshmem {100 * MIB}\ninactive_file {90 * MIB}\nactive_file {60 * MIB}\n"
    write(root, {f"{directory}/memory.stat": stat})
    assert bytes_of(root) == GIB - 150 * MIB - 64 * MIB  # the page cache gives way, shared memory does not
    assert f"{directory}/{name} is 1024.0 MiB, of which 150.0 are in use" in str(available(root))


def test_a_group_of_the_first_version_bounds_links_too(tmp_path: Path) -> None:
    directory = f"sys/fs/cgroup/memory/{UNIT}"
    root = write(tmp_path, host(64 * GIB, 64 * GIB))
    write(root, {"proc/self/cgroup": f"5:cpu:/other\n4:memory:/{UNIT}\n0::/\n", "proc/self/mountinfo": MOUNT_V1})
    limited = {"memory.limit_in_bytes": f"{GIB}\n", "memory.usage_in_bytes": f"{64 * MIB}\n"}
    write(root, {f"{directory}/{name}": text for name, text in limited.items()})
    write(root, {f"{directory}/memory.stat": f"total_inactive_file {32 * MIB}\ntotal_active_file {16 * MIB}\n"})
    unlimited = {"memory.limit_in_bytes": "9223372036854771712\n", "memory.usage_in_bytes": "5\n"}
    write(root, {f"sys/fs/cgroup/memory/{name}": text for name, text in unlimited.items()})
    assert bytes_of(root) == GIB - 16 * MIB - 64 * MIB


@pytest.mark.parametrize(
    ("path", "mounted"),
    [
        ("/docker/abc", "/docker/abc"),  # the container's part is mounted, and named from the host's top
        ("/docker/abc", "/"),  # named from there too, where only the part is seen
        ("/../../abc", "/"),  # moved out of its own namespace
    ],
)
def test_inside_a_container_its_own_top_is_where_the_search_ends(tmp_path: Path, path: str, mounted: str) -> None:
    root = write(tmp_path, host(64 * GIB, 64 * GIB))
    mount = f"30 1 0:26 {mounted} /sys/fs/cgroup rw - cgroup2 cgroup rw\n"
    write(root, {"proc/self/cgroup": f"0::{path}\n", "proc/self/mountinfo": mount})
    write(root, {"sys/fs/cgroup/memory.max": f"{GIB}\n", "sys/fs/cgroup/memory.current": "0\n"})
    assert bytes_of(root) == GIB - 64 * MIB


def test_of_huge_pages_only_those_count_that_nobody_was_promised(tmp_path: Path) -> None:
    assert huge_available(tmp_path) == 0
    pool = "sys/kernel/mm/hugepages/hugepages-2048kB"
    write(tmp_path, {f"{pool}/free_hugepages": "9\n", f"{pool}/resv_hugepages": "2\n"})
    assert huge_available(tmp_path) == 7 * 2 * MIB
