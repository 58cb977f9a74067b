"""Something that runs over a VM's attached ports: one C loop for each queue, or fewer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any, Protocol

from ringway.agent.port import Port
from ringway.stack.loop import Loop


class Runner(Protocol):
    """Something that uses ports until it is closed; only then may they be detached."""

    ports: tuple[Port, ...]
    loops: list[Loop]

    def failed(self) -> bool:
        """It cannot go on, and is to be closed and made again."""

    def close(self) -> None: ...


def serve(port: Port, loops: int) -> None:
    """Tell the port's peer in which queues frames are wanted: a loop for each of them."""
    port.region.serve((1 << loops) - 1)


def new_loop(loops: list[Loop], name: str, spin_us: int) -> Loop:
    loop = Loop(name, spin_us)
    loops.append(loop)
    return loop


def start_loops(loops: Iterable[Loop]) -> None:
    for loop in loops:
        loop.start()


def give_back(ports: Iterable[Port]) -> None:
    for port in ports:
        serve(port, port.region.geometry.queues)
        port.run_by_agent(False)


def close_loops(loops: list[Loop]) -> None:
    for loop in loops:
        loop.close()
    loops.clear()


@contextlib.contextmanager
def closed_on_error(runner: Any) -> Any:
    try:
        yield
    except BaseException:
        runner.close()
        raise
