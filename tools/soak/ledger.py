"""What senders and receivers write down, in shared files, so that a SIGKILL loses none of it.

Each direction has two ledgers, one of its sender and one of its receiver. Both have a row for each incarnation of the
sender; a receiver that is started again goes on where the one before it was killed. A word is written by one store, so
that a kill leaves it old or new.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from tools.soak.frames import DENIED_EVERY, FLOWS, Seen, flow_of

_WORDS = 16  # of a row
_INTENDED, _DONE = 0, 1  # of a sender's row
_COUNT, _LAST = 0, 1  # of a receiver's row: how many frames; the number of the last one, by flow
_FOREIGN, _LOST, _ROUNDS = 0, 1, 2  # of a receiver's row 0, which no incarnation has


class DeliveryError(Exception):
    """A frame came twice, or behind a later one of its flow."""


class _Ledger:
    def __init__(self, path: Path, rows: int) -> None:
        size = rows * _WORDS * 8
        with path.open("a+b") as file:
            file.truncate(size)
            self._words = memoryview(mmap.mmap(file.fileno(), size)).cast("Q")
        self._rows = rows

    def _sum(self, word: int) -> int:
        return sum(self._words[_WORDS + word :: _WORDS])


class Sent(_Ledger):
    """Frames are numbered from 1. Those up to `done` were dealt with, those behind `intended` were not made yet."""

    def note_intended(self, incarnation: int, number: int) -> None:
        self._words[incarnation * _WORDS + _INTENDED] = number

    def note_done(self, incarnation: int, number: int) -> None:
        self._words[incarnation * _WORDS + _DONE] = number

    def intended(self, incarnation: int) -> int:
        return self._words[incarnation * _WORDS + _INTENDED]

    @property
    def total_done(self) -> int:
        return self._sum(_DONE)

    @property
    def total_intended(self) -> int:
        return self._sum(_INTENDED)

    def denied(self, done: bool) -> int:
        """How many of the numbers so far the firewall's rule denies."""
        return sum(number // DENIED_EVERY for number in self._words[_WORDS + (_DONE if done else _INTENDED) :: _WORDS])


class Received(_Ledger):
    def note(self, seen: Seen) -> None:
        """DeliveryError when this frame, or a later one of its flow, has been noted already."""
        row = seen.incarnation * _WORDS
        at = row + _LAST + flow_of(seen.number)
        if seen.number <= self._words[at]:
            raise DeliveryError(f"{seen} comes behind number {self._words[at]} of its flow {flow_of(seen.number)}")
        self._words[at] = seen.number
        self._words[row + _COUNT] += 1

    def note_foreign(self) -> None:
        self._words[_FOREIGN] += 1

    def note_lost(self, frames: int) -> None:
        """That the receiver's own source says it could not keep."""
        self._words[_LOST] += frames

    def note_round(self) -> None:
        """All that was taken so far is noted."""
        self._words[_ROUNDS] += 1

    @property
    def rounds(self) -> int:
        return self._words[_ROUNDS]

    def last(self, incarnation: int) -> int:
        row = incarnation * _WORDS
        return max(self._words[row + _LAST : row + _LAST + FLOWS])

    @property
    def total(self) -> int:
        return self._sum(_COUNT) + self._words[_FOREIGN] + self._words[_LOST]
