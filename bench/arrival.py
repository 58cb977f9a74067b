"""A worker process beside one VM of `bench control`: its agent, and an application that sends or takes first frames.

A line on its input names ports, some of which may not have a link yet. It says `waiting`, and when on each of them the
first frame has been sent (or, with --receive, has come) the moment of the last one, in ns of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import argparse
import sys
import time

from ringway.agent import Agent, Port

FRAME = b"the first frame of a new link".ljust(64, b".")
PATIENCE_S = 30.0


def _send(port: Port) -> None:
    if port.send([FRAME], timeout=PATIENCE_S) != 1:
        sys.exit(f"{port.name}: no room for the first frame of a new link")


def _receive(port: Port) -> None:
    frames = port.receive(timeout=PATIENCE_S)
    if frames != [FRAME]:
        sys.exit(f"{port.name}: {frames!r} came, not the one frame that was sent")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runtime", required=True)
    parser.add_argument("--vm", required=True)
    parser.add_argument("--receive", action="store_true", help="take first frames; else send them")
    asked = parser.parse_args()
    exchange = _receive if asked.receive else _send
    with Agent(asked.vm, asked.runtime, timeout=PATIENCE_S) as agent:
        print("ready", flush=True)
        for line in sys.stdin:
            print("waiting", flush=True)
            for name in line.split():
                exchange(agent.port(name, timeout=PATIENCE_S))
            print(time.monotonic_ns(), flush=True)


if __name__ == "__main__":
    main()
