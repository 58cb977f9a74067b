"""How the supervisor speaks with a process that sends: how fast, until when, and when it is to kill itself.

supervisor says             the process
("pace", "fast" | "slow")   sends
("pace", "stopped")         answers "idle" once no thread of it is sending
("die", Death)              kills itself after so many frames more
nothing more (closed)       ends
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

from tools.soak.frames import Maker
from tools.soak.ledger import Sent

Pace = Literal["fast", "slow", "stopped"]
DeathMoment = Literal["sent", "taken", "logged"]
BURST_MAX = 256  # frames of one call


@dataclass(frozen=True)
class Death:
    """SIGKILL by itself, once so many frames of a direction were sent, taken out of the ring, or logged as well."""

    direction: int
    moment: DeathMoment
    frames: int


class Pacer:
    """Shared by the threads of one process."""

    def __init__(self, pace: Pace, senders: int) -> None:
        self._changed = threading.Condition()
        self._pace: Pace = pace
        self._sending = senders
        self._death: Death | None = None
        self._left = 0

    def serve(self, connection: Connection[Any, Any]) -> None:
        """Hear the supervisor until it hangs up; the calling thread's business from then on."""
        while True:
            try:
                word, what = connection.recv()
            except EOFError:
                return
            with self._changed:
                if word == "die":
                    self._death, self._left = what, what.frames
                else:
                    self._pace = what
                self._changed.notify_all()
                if word == "pace" and what == "stopped":
                    self._changed.wait_for(lambda: self._sending == 0)
                    connection.send("idle")

    def await_go(self) -> Pace:
        """Between two bursts of a sender."""
        with self._changed:
            if self._pace == "stopped":
                self._sending -= 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._pace != "stopped")
                self._sending += 1
            return self._pace

    def rest(self, seconds: float) -> None:
        """What a trickling sender does between two bursts."""
        with self._changed:
            self._changed.wait(seconds)

    def most(self, direction: int, count: int) -> int:
        """How many of count frames may be moved at once, so that a death falls behind the right one."""
        death = self._death
        return min(count, max(1, self._left)) if death is not None and death.direction == direction else count

    def moved(self, direction: int, moment: DeathMoment, frames: int) -> None:
        death = self._death
        if death is None or death.direction != direction or death.moment != moment:
            return
        self._left -= frames
        if self._left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


def send_numbered(maker: Maker, sent: Sent, pacer: Pacer, send: Callable[[list[bytes]], object]) -> None:
    """For ever. `send` deals with all frames it is given, in order."""
    direction, incarnation = maker.stream.direction, maker.incarnation
    drawn = random.Random(incarnation)
    number = 0
    while True:
        slow = pacer.await_go() == "slow"
        count = pacer.most(direction, drawn.randint(1, 4) if slow else drawn.randint(1, BURST_MAX))
        frames = [maker.make(n) for n in range(number + 1, number + count + 1)]
        number += count
        sent.note_intended(incarnation, number)
        send(frames)
        sent.note_done(incarnation, number)
        pacer.moved(direction, "sent", count)
        if slow:
            pacer.rest(drawn.uniform(0.0, 0.02))
