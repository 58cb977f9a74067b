"""The demo's last step: a short race of this chain against one of the kernel's, run by `bench race`, as bars."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chain import Chain
from traffic import expect

_ROOT = Path(__file__).resolve().parents[2]
_WIDTH = 50  # characters of the longest bar
# What the bench says of a machine that cannot run it: one core, no nft, a kernel that has no such chain for us.
_NOT_OURS = ("two cores are needed", "not found", "not allowed here", "the kernel's chain cannot be made")


def race(chain: Chain) -> Iterator[str]:
    """a short race: the same rules and traffic through veth, bridges and a router with nftables"""
    done = subprocess.run(
        [sys.executable, "-m", "bench", "race", "--quick", "--json"],
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.strip()
        expect(any(cause in said for cause in _NOT_OURS), said or f"it ended with {done.returncode}")
        yield f"not run here: {said.splitlines()[-1]}"
        return
    for row in json.loads(done.stdout)["rows"]:
        yield from bars(row)


def bars(row: dict[str, Any]) -> Iterator[str]:
    """A row as two bars of one scale, and how many times the kernel's ours is."""
    longest = max(row["ours"], row["peer"])
    yield f"{row['case']}: {row['ratio']:.1f} times the kernel's"
    for name, value in (("ringway", row["ours"]), ("kernel", row["peer"])):
        bar = "█" * round(_WIDTH * value / longest) or "▏"
        yield f"  {name:7} {bar} {value:.3g} {row['unit']}"
    yield f"  {row['notes']}"
