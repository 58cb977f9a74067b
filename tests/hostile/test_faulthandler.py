"""Python's faulthandler and our SIGBUS guard stand each other, in whichever order they were put in."""

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import faulthandler, mmap, os, tempfile
from ringway.shm import Geometry, Region, create_region
GEOMETRY = Geometry(slot_count=64)
def attach():
    fd = create_region(GEOMETRY, 7)
    return Region.attach(fd, GEOMETRY, 7, 0)
def fault():
    with tempfile.TemporaryFile() as file:
        file.truncate(4096)
        memory = mmap.mmap(file.fileno(), 4096)
        file.truncate(0)
        memory[0]
kept = []
"""
ORDERS = {
    "faulthandler first": "faulthandler.enable(); kept.append(attach()); fault()",
    "faulthandler last": "kept.append(attach()); faulthandler.enable(); fault()",
    "faulthandler between two regions": "kept.append(attach()); faulthandler.enable(); kept.append(attach()); fault()",
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
def test_a_sigbus_elsewhere_is_told_by_faulthandler_and_ends_the_process(order: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT + order], capture_output=True, text=True, timeout=20)
    assert done.returncode == -signal.SIGBUS
    assert done.stderr.count("Fatal Python error: Bus error") == 1
