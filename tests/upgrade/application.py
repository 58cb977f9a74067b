"""An application of a VM's port p, of whichever release it finds: application.py KIND RUNTIME VM.

`echo` sends back what comes. `ask` does a round of frames there and back for each line that comes in, and answers it
with one. Both go over to the next link when theirs is replaced.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ringway.agent import Agent, AgentError, Port

PATIENCE = 30.0  # seconds
LENGTHS = (14, 60, 1514, 2048, 2049, 9000, 65536)
PATTERN = bytes(range(251)) * 300
FRAMES = [PATTERN[number : number + length] for number in range(20) for length in LENGTHS]  # of a round, per queue


def echo(port: Port, queue: int) -> None:
    try:
        while True:
            port.send(port.receive(queue=queue), queue=queue)
    except AgentError:
        return  # withdrawn: the link was replaced


def echo_on(agent: Agent) -> None:
    while True:
        try:
            port = agent.port("p")
        except AgentError:
            continue
        threads = [threading.Thread(target=echo, args=(port, queue)) for queue in range(port.region.geometry.queues)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def there_and_back(port: Port, queue: int) -> None:
    for frame in FRAMES:
        port.send([frame], queue=queue, timeout=PATIENCE)
        got = port.receive(queue=queue, timeout=PATIENCE)
        if got != [frame]:
            sys.exit(f"queue {queue}: {len(frame)} bytes went, and {[len(one) for one in got]} came back")


def a_round(agent: Agent) -> None:
    """SystemExit when something does not come back, or the link stays away."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            port = agent.port("p")
            for queue in range(port.region.geometry.queues):
                there_and_back(port, queue)
            return
        except AgentError as error:
            if time.monotonic() > deadline:
                sys.exit(str(error))


def ask_on(agent: Agent) -> None:
    for _ in sys.stdin:
        a_round(agent)
        print("came back", flush=True)


def main() -> None:
    kind, runtime, vm = sys.argv[1:]
    work: Callable[[Agent], None] = {"echo": echo_on, "ask": ask_on}[kind]
    with Agent(vm, Path(runtime)) as agent:
        print("ready", flush=True)
        work(agent)


if __name__ == "__main__":
    main()
