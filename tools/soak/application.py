"""An application at the ends of some links: sends numbered frames over each, and logs what comes."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ringway.agent import Agent, Port
from tools.soak.frames import Maker, Stream, read
from tools.soak.ledger import Received, Sent
from tools.soak.pace import BURST_MAX, Pace, Pacer, send_numbered

_LOOK_S = 0.05  # how often a receiver says that it has logged everything, while nothing comes


@dataclass(frozen=True)
class Line:
    """One port: what it sends, and what it may receive."""

    port: str
    out: Stream
    into: tuple[Stream, ...]


@dataclass(frozen=True)
class Task:
    """What an application is to be, and where things are."""

    vm: str
    lines: tuple[Line, ...]
    dropping: bool  # what finds no room is dropped, instead of waiting
    runtime: Path
    ledgers: Path  # their folder
    rows: int
    incarnation: int
    pace: Pace


def sent_path(folder: Path, direction: int) -> Path:
    return folder / f"sent-{direction}"


def received_path(folder: Path, direction: int, receiver: str) -> Path:
    return folder / f"received-{direction}-{receiver}"


def enter(log: Path) -> None:
    """What this process says goes into the log, and it ends with the supervisor, however that ends."""
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(fd, number)
    os.close(fd)


def _end_with_supervisor() -> None:
    supervisor = parent_process()
    assert supervisor is not None
    supervisor.join()
    os.kill(os.getpid(), signal.SIGKILL)


def in_thread(work: Callable[..., None], *arguments: object) -> None:
    """Whatever ends it ends the process: the supervisor takes that for a crash, and shows the log."""

    def run() -> None:
        try:
            work(*arguments)
        except BaseException:  # noqa: BLE001 - the whole of it goes into the log
            os.write(2, traceback.format_exc().encode())
            os._exit(3)

    threading.Thread(target=run, daemon=True).start()


def _send(task: Task, line: Line, port: Port, pacer: Pacer) -> None:
    sent = Sent(sent_path(task.ledgers, line.out.direction), task.rows)
    send = port.send_or_drop if task.dropping else port.send
    send_numbered(Maker(line.out, task.incarnation), sent, pacer, send)


def _receive(task: Task, line: Line, port: Port, pacer: Pacer) -> None:
    directions = [stream.direction for stream in line.into]
    received = {at: Received(received_path(task.ledgers, at, task.vm), task.rows) for at in directions}
    first = directions[0]  # a death counts all that comes by the port
    while True:
        frames = port.receive(pacer.most(first, BURST_MAX), timeout=_LOOK_S)
        pacer.moved(first, "taken", len(frames))
        for frame in frames:
            seen = read(frame, line.into)
            if seen is None:
                received[first].note_foreign()
            else:
                received[seen.direction].note(seen)
        pacer.moved(first, "logged", len(frames))
        for ledger in received.values():
            ledger.note_round()


def main(task: Task, commands: Connection[Any, Any], log: Path) -> None:
    enter(log)
    pacer = Pacer(task.pace, len(task.lines))
    with Agent(task.vm, task.runtime, timeout=None, log=lambda text: print(text, flush=True)) as agent:
        for line in task.lines:
            port = agent.port(line.port, timeout=60.0)
            in_thread(_receive, task, line, port, pacer)
            in_thread(_send, task, line, port, pacer)
        pacer.serve(commands)
        os._exit(0)  # threads are inside calls, and the kernel takes the ends back as it does after a kill
