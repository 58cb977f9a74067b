"""An application at a link's other end, as a process of its own: peer.py KIND RUNTIME VM PORT."""

from __future__ import annotations

import random
import struct
import sys
import threading
import time
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


FLOWS = 100


def udp(flow: int, number: int) -> bytes:
    """A datagram of a flow, by its source port, with its number in the flow."""
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 46, 0, 0, 64, 17, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    return bytes(12) + b"\x08\0" + ip + struct.pack(">HHHH", 1000 + flow, 80, 26, 0) + struct.pack(">I14x", number)


def send_flows(port: Port) -> None:
    """Send numbered frames of many flows, each by the queue of its flow, until standard input ends; say how many.

    With pauses between bursts, so that no ring on the way is always full: a flow changes its queue in a pause.
    """
    ended = threading.Event()

    def await_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=await_end, daemon=True).start()
    chosen = random.Random(1)
    numbers = [0] * FLOWS
    sent = 0
    while not ended.is_set():
        frames = []
        for _ in range(64):
            flow = chosen.randrange(FLOWS)
            frames.append(udp(flow, numbers[flow]))
            numbers[flow] += 1
        sent += port.send(frames)
        time.sleep(0.001)
    print(sent, flush=True)


def main() -> None:
    kind, runtime, vm, name = sys.argv[1:]
    with Agent(vm, Path(runtime)) as agent:
        print("ready", flush=True)
        while True:
            try:
                port = agent.port(name)  # the next one, when the link was replaced
            except AgentError:
                continue
            if kind == "flows":
                send_flows(port)
                return
            work = {"echo": echo, "sink": sink}[kind]
            threads = [threading.Thread(target=work, args=(port, q)) for q in range(port.region.geometry.queues)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()


if __name__ == "__main__":
    main()
