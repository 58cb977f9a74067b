"""The kernel's side of a tap: logs what comes out of the interface, and sends numbered frames in. Never killed."""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tools.soak.application import Line, enter, in_thread, received_path, sent_path
from tools.soak.frames import Maker, read
from tools.soak.ledger import Received, Sent
from tools.soak.pace import Pacer, send_numbered

INTERFACE = "rwsoak0"
_ALL = 3  # ETH_P_ALL, linux/if_ether.h
_SOL_PACKET, _STATISTICS, _IGNORE_OUTGOING = 263, 6, 23  # linux/socket.h, linux/if_packet.h
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_BUFFER = 16 << 20  # bytes
_LOOK_S = 0.05  # how often the socket is asked for what it could not keep
_AWAY = (errno.ENODEV, errno.ENXIO, errno.ENETDOWN, errno.ENOBUFS)


@dataclass(frozen=True)
class WireTask:
    line: Line
    ledgers: Path
    rows: int


def _receive(task: WireTask, source: socket.socket) -> None:
    received = Received(received_path(task.ledgers, task.line.into[0].direction, "wire"), task.rows)
    source.settimeout(_LOOK_S)
    while True:
        try:
            frame = source.recv(1 << 16)
        except TimeoutError:
            _, lost = struct.unpack("II", source.getsockopt(_SOL_PACKET, _STATISTICS, 8))
            if lost:
                received.note_lost(lost)
            received.note_round()
            continue
        except OSError as error:
            if error.errno not in _AWAY:
                raise
            continue
        seen = read(frame, task.line.into)
        if seen is not None:
            received.note(seen)


def _send(task: WireTask, pacer: Pacer) -> None:
    target = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)

    def send(frames: list[bytes]) -> None:
        """What the kernel does not take is lost, as on any wire."""
        for frame in frames:
            try:
                target.sendto(frame, (INTERFACE, 0))
            except OSError as error:
                if error.errno not in _AWAY:
                    raise
                pacer.rest(0.002)
                return
        pacer.rest(0.001)  # the interface's queue is short

    sent = Sent(sent_path(task.ledgers, task.line.out.direction), task.rows)
    send_numbered(Maker(task.line.out, 1), sent, pacer, send)


def main(task: WireTask, commands: Connection[Any, Any], log: Path) -> None:
    enter(log)
    pacer = Pacer("stopped", 1)
    # Of all interfaces, so that it is there before the agent makes its own, each time.
    source = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
    source.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    source.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    in_thread(_receive, task, source)
    in_thread(_send, task, pacer)
    pacer.serve(commands)
    os._exit(0)
