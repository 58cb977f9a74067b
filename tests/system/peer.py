"""An application at a link's other end, as a process of its own: peer.py KIND RUNTIME VM PORT."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from ringway.agent import Agent, AgentError, Port


def echo(port: Port, queue: int) -> None:
    """Send back whatever comes, on the queue by which it came."""
    try:
        while True:
            port.send(port.receive(queue=queue), queue=queue)
    except AgentError:
        return  # withdrawn


def sink(port: Port, queue: int) -> None:
    try:
        while True:
            port.receive(queue=queue)
    except AgentError:
        return


def main() -> None:
    kind, runtime, vm, name = sys.argv[1:]
    with Agent(vm, Path(runtime)) as agent:
        print("ready", flush=True)
        while True:
            try:
                port = agent.port(name)  # the next one, when the link was replaced
            except AgentError:
                continue
            work = {"echo": echo, "sink": sink}[kind]
            threads = [threading.Thread(target=work, args=(port, q)) for q in range(port.region.geometry.queues)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()


if __name__ == "__main__":
    main()
