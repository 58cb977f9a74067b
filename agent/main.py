"""`ringway agent`: an agent as a process of its own, until it is told to stop."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path

from ringway.agent.agent import Agent
from ringway.agent.errors import AgentCause, AgentError


def main(vm: str, runtime: Path, spin_us: int = 0, loops: int | None = None, functions: Path | None = None) -> None:
    """Run the agent of `vm`. Waits for broker and fabric as long as it takes; SIGTERM and SIGINT end it."""

    def log(text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # whoever read the log may be gone; links do not depend on it
            print(f"agent {vm}: {text}", file=sys.stderr, flush=True)

    agent = Agent(vm, runtime, timeout=None, spin_us=spin_us, loops=loops, functions=functions, log=log)
    agent.stop_on(signal.SIGTERM, signal.SIGINT)
    try:
        with agent:
            log("ready")
            agent.wait()
    except AgentError as error:
        if error.cause is not AgentCause.STOPPED:
            raise
