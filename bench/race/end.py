"""One end of a chain in a process of its own: `python -m bench.race.end KIND PLACE BOOKS_FD`.

This only sets up and says `ready`; C carries, until the process is ended. PLACE is the VM for an end in a ring, else
the address to send to or to take at.
"""

from __future__ import annotations

import mmap
import socket
import sys
from collections.abc import Callable
from typing import Any

from chain import RUNTIME

from bench.native import ffi, lib, pointer
from ringway.agent import Agent, Port

PAYLOAD = 18  # bytes of a datagram: with its headers and Ethernet's checksum a frame of 64
_DATAGRAMS, _STREAM = 7001, 7002  # ports at the taking end
_BUFFER = 4 << 20  # bytes that a socket may hold
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h


def _ready() -> None:
    print("ready", flush=True)


def _on_port(vm: str, carry: Callable[[Port], Any]) -> int:
    with Agent(vm, RUNTIME, timeout=20) as agent:
        port = agent.port("net", timeout=20)
        _ready()
        return int(carry(port))


def ring_send(vm: str, books: Any) -> int:
    def carry(port: Port) -> Any:
        return lib.bench_race_ring_send(pointer(port.region.producers[0].native), PAYLOAD, books)

    return _on_port(vm, carry)


def ring_receive(vm: str, books: Any) -> int:
    def carry(port: Port) -> Any:
        consumer, region = pointer(port.region.consumers[0].native), pointer(port.region.native)
        return lib.bench_race_ring_receive(consumer, region, PAYLOAD, books)

    return _on_port(vm, carry)


def _datagrams(buffer: int, forced: int) -> socket.socket:
    """With room for bursts; without the right to more it gets what the kernel allows."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, forced, _BUFFER)
    except PermissionError:
        made.setsockopt(socket.SOL_SOCKET, buffer, _BUFFER)
    return made


def socket_send(address: str, books: Any) -> int:
    with _datagrams(socket.SO_SNDBUF, _SO_SNDBUFFORCE) as sender:
        sender.connect((address, _DATAGRAMS))
        _ready()
        return int(lib.bench_race_socket_send(sender.fileno(), PAYLOAD, books))


def socket_receive(address: str, books: Any) -> int:
    """Connected to whoever sends the first datagram."""
    with _datagrams(socket.SO_RCVBUF, _SO_RCVBUFFORCE) as sink:
        sink.bind((address, _DATAGRAMS))
        _ready()
        sink.connect(sink.recvfrom(1, socket.MSG_PEEK)[1])
        return int(lib.bench_race_socket_receive(sink.fileno(), books))


def stream_send(address: str, books: Any) -> int:
    with socket.create_connection((address, _STREAM), 10) as sender:
        sender.settimeout(None)
        _ready()
        return int(lib.bench_race_stream_send(sender.fileno(), books))


def stream_receive(address: str, books: Any) -> int:
    with socket.create_server((address, _STREAM)) as listener:
        _ready()
        connection, _ = listener.accept()
        with connection:
            return int(lib.bench_race_stream_receive(connection.fileno(), books))


ENDS = (ring_send, ring_receive, socket_send, socket_receive, stream_send, stream_receive)


def main() -> int:
    kind, place, books_fd = sys.argv[1:]
    memory = mmap.mmap(int(books_fd), mmap.PAGESIZE)  # held: the books lie in it
    carry = next(end for end in ENDS if end.__name__ == kind)
    code = carry(place, ffi.cast("struct race_books *", ffi.from_buffer(memory)))
    print(f"{kind} at {place} ended with {code}", flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
