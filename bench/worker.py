"""A worker process: one end of a link, or of what the link is compared with, running one C loop on one core."""

from __future__ import annotations

import argparse
import mmap
import os

from bench.board import Board
from bench.native import ffi, lib, pointer
from ringway.agent import Agent


def _agent_loop(loop: str, runtime: str, vm: str, board: Board) -> None:
    """A loop that produces or consumes has one port, `p`; a hop goes out by `out` and comes back by `in`."""
    with Agent(vm, runtime, timeout=20) as agent:
        names = {"bench_link_produce": ("p",), "bench_link_consume": ("p",), "bench_hop": ("out", "in")}[loop]
        regions = [agent.port(name, timeout=20).region for name in names]
        halves = [region.producers[0] for region in regions[:1]] if loop != "bench_link_consume" else []
        halves_in = [region.consumers[0] for region in regions[-1:]] if loop != "bench_link_produce" else []
        print("ready", flush=True)
        getattr(lib, loop)(*(pointer(half.native) for half in (*halves, *halves_in)), board.native)


def _bare_loop(loop: str, fd: int, board: Board) -> None:
    memory = mmap.mmap(fd, os.fstat(fd).st_size)
    print("ready", flush=True)
    getattr(lib, loop)(ffi.cast("void *", ffi.from_buffer(memory)), board.native)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("loop")
    parser.add_argument("--cpu", type=int, required=True)
    parser.add_argument("--board", type=int, required=True, help="descriptor of the board")
    parser.add_argument("--memory", type=int, help="descriptor of a bare ring")
    parser.add_argument("--runtime")
    parser.add_argument("--vm", default="")
    asked = parser.parse_args()
    os.sched_setaffinity(0, {asked.cpu})
    board = Board(asked.board)
    if asked.memory is not None:
        _bare_loop(asked.loop, asked.memory, board)
    else:
        _agent_loop(asked.loop, asked.runtime, asked.vm, board)


if __name__ == "__main__":
    main()
