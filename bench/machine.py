"""What a number was measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from bench.form import distance_ns


def _cpu() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="ascii"), re.MULTILINE)
    return found.group(1) if found else platform.machine()


def huge_pages() -> tuple[int, int]:
    """How many of 2 MiB there are, and how many are free."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    numbers = re.findall(r"^HugePages_(?:Total|Free): +(\d+)$", text, re.MULTILINE)
    return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else (0, 0)


def _debian_version(package: str) -> str:
    try:
        done = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "unknown"
    return done.stdout if done.returncode == 0 else "not installed"


def described() -> dict[str, Any]:
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "core_to_core_ns": round(distance_ns(), 1),
        "huge_pages": huge_pages()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "ringway": importlib.metadata.version("ringway"),
        "dpdk": _debian_version("dpdk-dev"),
    }
