"""Either end killed at random moments, as `./run soak` does it, from seeds that are always the same ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def soak(seed: int, kills: int) -> None:
    """In a process of its own, whose end takes its server of processes along."""
    command = [sys.executable, "-m", "tools.soak", "--seed", str(seed), "--kills", str(kills)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing stalled, came twice, or is left over" in done.stdout


def test_killed_ends_leave_the_others_in_order() -> None:
    soak(seed=1, kills=6)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_a_hundred_killed_ends_leave_the_others_in_order(seed: int) -> None:
    soak(seed, kills=100)
