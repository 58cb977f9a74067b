"""What a packet function of one's own costs: the examples in C and in Python, each given bursts of parsed packets.

In processor time of a thread of its own, as a loop has, less what making the bursts takes.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from bench.fabric import RINGWAY
from bench.form import BenchError, Report, less_is_better
from bench.native import ROOT, lib, pointer
from bench.native import ffi as native_ffi
from ringway.shm._native import ffi
from ringway.stack.function import Function
from ringway.stack.library import load_library
from ringway.stack.prototype import load_prototype

EXAMPLES = ROOT / "examples" / "functions"
IN_C, IN_PYTHON = "mark.c", "sizes.py"


def _built(folder: Path) -> bytes:
    headers = subprocess.run([RINGWAY, "headers"], capture_output=True, text=True, check=True).stdout.strip()
    target = folder / "mark.so"
    command = ["cc", "-shared", "-fPIC", "-O2", f"-I{headers}", "-o", str(target), str(EXAMPLES / IN_C)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{IN_C} could not be built: {done.stderr}")
    return target.read_bytes()


class _Running:
    """A function with the state of one loop."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self._start = ffi.new(
            "struct rway_function_start *", {"options": function.options, "counters": function.array()}
        )
        self._state = function.native.start(self._start)
        if self._state == ffi.NULL:
            raise BenchError(f"{function.name} does not start")

    def packet_ns(self) -> float:
        return _checked(lib.bench_function_ns(pointer(self._function.native), pointer(self._state)))


def _checked(ns: float) -> float:
    if ns < 0:
        raise BenchError("no thread for the bench, or its frame is not well-formed: a bug of ours, please report it")
    return ns


def _less_besides(running: _Running) -> float:
    return max(0.1, running.packet_ns() - _checked(lib.bench_function_ns(native_ffi.NULL, native_ffi.NULL)))


def run(quick: bool) -> Report:
    rounds = 2 if quick else 7
    with tempfile.TemporaryDirectory(prefix="ringway-function-") as folder:
        in_c = _Running(load_library("mark", _built(Path(folder)), {}, ""))
    in_python = _Running(load_prototype("sizes", (EXAMPLES / IN_PYTHON).read_bytes(), {}, ""))
    pairs = [(_less_besides(in_python), _less_besides(in_c)) for _ in range(rounds)]
    ours, peer = ([pair[side] for pair in pairs] for side in (0, 1))
    note = "a packet of 64 bytes, in bursts of 32; processor time"
    return Report("function", [less_is_better(f"a packet through {IN_PYTHON}", "ns", ours, peer, IN_C, note)])
