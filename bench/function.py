"""What a packet function of one's own costs: a hop with none, with the example in C, and with the one in Python."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from bench.fabric import RINGWAY
from bench.form import BenchError, Contestant, Report, Round, Row, duel, less_is_better
from bench.hop import ringway_hop
from bench.native import ROOT

EXAMPLES = ROOT / "examples" / "functions"
NONE, IN_C, IN_PYTHON = "no function", "mark.c", "sizes.py"
USE = '[[vm.firewall.stack.function]]\nname = "{}"\n'


def _built(folder: Path) -> Path:
    headers = subprocess.run([RINGWAY, "headers"], capture_output=True, text=True, check=True).stdout.strip()
    command = ["cc", "-shared", "-fPIC", "-O2", f"-I{headers}", "-o", str(folder / "mark.so"), str(EXAMPLES / IN_C)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{IN_C} could not be built: {done.stderr}")
    shutil.copy(EXAMPLES / IN_PYTHON, folder)
    return folder


def _rows(played: list[Round], name: str) -> list[Row]:
    pairs = [(turn[name], turn[NONE]) for turn in played if turn[name].frames and turn[NONE].frames]
    ours, peer = ([1e9 / window.rate for window in side] for side in zip(*pairs, strict=True))
    note = "per frame, through a hop that its forwarder's core or that of its ends limits"
    return [less_is_better(f"hop of 64 B with {name}", "ns", ours, peer, NONE, note)]


def run(quick: bool) -> Report:
    rounds, seconds = (2, 0.1) if quick else (11, 0.25)
    with contextlib.ExitStack() as stack:
        folder = _built(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringway-functions-"))))
        contestants: list[Contestant] = [
            stack.enter_context(ringway_hop(use, f"--functions={folder}", name=name))
            for name, use in ((NONE, ""), (IN_C, USE.format("mark")), (IN_PYTHON, USE.format("sizes")))
        ]
        played = duel(contestants, rounds, seconds)
    return Report("function", [*_rows(played, IN_C), *_rows(played, IN_PYTHON)])
