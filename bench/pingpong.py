"""One end of a round trip, as a process: over a link in C and in Python, over pipes and sockets, over iceoryx2."""

from __future__ import annotations

import argparse
import ctypes
import os
import time
from collections.abc import Callable
from typing import Any

from bench.board import Board, Samples
from bench.native import lib, pointer
from ringway.agent import Agent

SIZE = 64


def _measure(send: Callable[[], object], receive: Callable[[], object], board: Any, samples: Any) -> None:
    """Ping in Python: what a user's loop would be, and a time at both ends of it."""
    clock = time.perf_counter_ns
    while not board.stop:
        start = clock()
        send()
        while not receive():
            pass
        lib.bench_sample(samples, clock() - start)


def _answer(send: Callable[[], object], receive: Callable[[], object], board: Any) -> None:
    while not board.stop:
        for _ in range(1000):
            if receive():
                send()


class Payload(ctypes.Structure):
    """What iceoryx2 sends."""

    _fields_ = (("bytes", ctypes.c_uint8 * SIZE),)


def _iceoryx(name: str, pings: bool) -> tuple[Callable[[], object], Callable[[], object]]:
    import iceoryx2 as iox

    iox.set_log_level(iox.LogLevel.Error)
    node = iox.NodeBuilder.new().create(iox.ServiceType.Ipc)

    def service(direction: str) -> Any:
        named = iox.ServiceName.new(f"{name}/{direction}")
        return node.service_builder(named).publish_subscribe(Payload).open_or_create()

    out, back = ("ping", "pong") if pings else ("pong", "ping")
    publisher = service(out).publisher_builder().create()
    subscriber = service(back).subscriber_builder().create()
    payload = Payload()
    return lambda: publisher.send_copy(payload), lambda: subscriber.receive() is not None


def _run_link(asked: argparse.Namespace, board: Any, samples: Any) -> None:
    with Agent(asked.vm, asked.runtime, timeout=20) as agent:
        port = agent.port("p")
        producer, consumer = port.region.producers[0], port.region.consumers[0]
        print("ready", flush=True)
        if asked.kind == "python":
            frame = [bytes(SIZE)]
            send, receive = (lambda: producer.send(frame)), (lambda: consumer.receive(1))
            _run_python(asked, send, receive, board, samples)
            return
        arguments = (pointer(producer.native), pointer(consumer.native), asked.kind == "sleeping", board)
        lib.bench_ping(*arguments, samples) if asked.pings else lib.bench_pong(*arguments)


def _run_python(
    asked: argparse.Namespace, send: Callable[[], object], receive: Callable[[], object], board: Any, samples: Any
) -> None:
    if asked.pings:
        _measure(send, receive, board, samples)
    else:
        _answer(send, receive, board)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("polling", "sleeping", "python", "kernel", "iceoryx2"))
    parser.add_argument("--pings", action="store_true")
    parser.add_argument("--cpu", type=int, required=True)
    parser.add_argument("--board", type=int, required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--fds", type=int, nargs=2, help="kernel: descriptors to write to and read from")
    parser.add_argument("--name", help="iceoryx2: of the service")
    parser.add_argument("--runtime")
    parser.add_argument("--vm")
    asked = parser.parse_args()
    os.sched_setaffinity(0, {asked.cpu})
    shared_board, shared_samples = Board(asked.board), Samples(asked.samples)
    board, samples = shared_board.native, shared_samples.native
    if asked.kind == "kernel":
        print("ready", flush=True)
        lib.bench_kernel_ping(*asked.fds, board, samples) if asked.pings else lib.bench_kernel_pong(*asked.fds, board)
    elif asked.kind == "iceoryx2":
        send, receive = _iceoryx(asked.name, asked.pings)
        print("ready", flush=True)
        _run_python(asked, send, receive, board, samples)
    else:
        _run_link(asked, board, samples)


if __name__ == "__main__":
    main()
