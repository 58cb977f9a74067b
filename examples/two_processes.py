"""Two processes, one link, frames both ways: the smallest use of ringway. Start it with `./run shell`, then python."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from ringway.agent import Agent

FABRIC = """
[vm.left.port.p]
kind = "local"
[vm.right.port.p]
kind = "local"
[link.wire]
ends = ["left.p", "right.p"]
"""
FRAMES, SIZE = 100_000, 1500


def left(runtime: Path) -> None:
    """Send frames and take the answers."""
    with Agent("left", runtime) as agent:
        port = agent.port("p")
        burst = [number.to_bytes(8, "big").ljust(SIZE, b".") for number in range(100)]
        received = 0
        for _ in range(FRAMES // len(burst)):
            port.send(burst)
            returned: list[bytes] = []
            while len(returned) < len(burst):
                new = port.receive(timeout=5.0)
                if not new:
                    sys.exit("left: nothing came back for 5 seconds")
                returned += new
            if returned != burst:
                sys.exit("left: what came back is not what was sent")
            received += len(returned)
        print(f"left: sent {FRAMES} frames of {SIZE} bytes, and {received} came back")


def right(runtime: Path) -> None:
    """Send back whatever comes, until nothing has come for a second."""
    with Agent("right", runtime) as agent:
        port = agent.port("p")
        frames = port.receive(timeout=30.0)
        while frames:
            port.send(frames)
            frames = port.receive(timeout=1.0)


def main() -> None:
    ringway = [str(Path(sys.executable).with_name("ringway"))]
    with tempfile.TemporaryDirectory() as folder:
        runtime = Path(folder) / "runtime"
        fabric = Path(folder) / "fabric.toml"
        fabric.write_text(FABRIC)
        broker = subprocess.Popen(
            [*ringway, "broker", "--runtime", str(runtime), "--fabric", str(fabric)], stdout=subprocess.PIPE, text=True
        )
        assert broker.stdout is not None
        try:
            while "broker ready" not in (line := broker.stdout.readline()):
                if not line:
                    sys.exit("the broker did not start")
            echo = subprocess.Popen([sys.executable, __file__, "right", str(runtime)])
            left(runtime)
            if echo.wait(30) != 0:
                sys.exit("right: failed")
        finally:
            broker.terminate()
            broker.wait(10)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        right(Path(sys.argv[2]))
    else:
        main()
