"""What agents cause to be logged, so many lines a second of each VM's; the rest is counted, and that is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

LINES_MAX: Final = 10  # of a VM in one period
PERIOD: Final = 1.0  # seconds
LINE_LENGTH: Final = 500  # characters; an agent that fails to attach a port may give a reason of any length


@dataclass
class _Spoken:
    until: float
    lines: int = 0
    more: int = 0


class Chatter:
    """Times are monotonic seconds, given by the caller. `say` takes one line for the log."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._spoken: dict[str, _Spoken] = {}  # by VM, the oldest period first

    def say(self, vm: str, line: str, now: float) -> None:
        self.expire(now)
        spoken = self._spoken.setdefault(vm, _Spoken(now + PERIOD))
        if spoken.lines == LINES_MAX:
            spoken.more += 1
            return
        spoken.lines += 1
        self._say(line if len(line) <= LINE_LENGTH else f"{line[:LINE_LENGTH]}…")

    def deadline(self) -> float | None:
        """When `expire` is next to be called; none while nothing was left out."""
        return min((spoken.until for spoken in self._spoken.values() if spoken.more), default=None)

    def expire(self, now: float) -> None:
        while self._spoken:
            vm, spoken = next(iter(self._spoken.items()))
            if now < spoken.until:
                return
            del self._spoken[vm]
            if spoken.more:
                self._say(f"VM {vm!r}: {spoken.more} more such lines in {PERIOD:g} s")
