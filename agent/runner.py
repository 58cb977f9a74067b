"""What runs over a VM's attached ports: one C loop for each queue, or fewer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ringway.agent.functions import FunctionDirectory
from ringway.agent.interface import Owner
from ringway.agent.port import Port
from ringway.control.messages import Offer, WhenFull
from ringway.engine.loop import Loop
from ringway.stack.function import Function


class Runner(Protocol):
    """Something that uses ports until it is closed; only then may they be detached."""

    ports: tuple[Port, ...]
    loops: list[Loop]

    def failed(self) -> bool:
        """It cannot go on, and is to be closed and made again."""

    def told(self, port: Port, /) -> str:
        """What `show` says of the port beside its state."""

    def when_full(self, port: Port) -> WhenFull:
        """What becomes of frames that find no room in the port's rings."""

    def close(self) -> None: ...


class StackRunner(Runner, Protocol):
    """Joins ports of a stack."""

    def follow_settings(self) -> None:
        """Settings of a port have changed, such as what a full ring means for it."""

    def use(self, functions: Sequence[Function]) -> None:
        """Go on with these, in order: what runs is stopped between two bursts, and what comes meanwhile stays in the
        rings. When that fails nothing runs, until it is called again."""


class PortRunner(Runner, Protocol):
    """Runs one port, as its kind wants it."""

    problem: str  # what it lacks, or of the port's settings does not take; the rest works

    def takes(self, offer: Offer) -> bool:
        """Change the settings to those of the offer, without a frame lost; false when it takes another runner."""

    def try_again(self) -> None:
        """What has not worked before may work now."""

    def follow_peer(self, now: float) -> float | None:
        """Do what follows from the other end's coming and going. When to look again (monotonic), if that is needed."""


class Terms(NamedTuple):
    """What all of a VM's runners have in common."""

    owner: Owner  # of the interfaces that the VM's agents leave to each other
    runtime: Path  # the broker's runtime directory
    spin_us: int
    most_loops: int
    functions: FunctionDirectory
    log: Callable[[str], None]


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
