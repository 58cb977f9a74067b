"""What the broker has in the keeper: said once here, put there, put there again when the keeper had to be replaced.

    key                 descriptors                           value
    desk                the handover socket that listens      -
    link/ID             region, then the bells (effects.py)   -
    end/ID/SIDE         connection, lifeline; none when free  KeptEnd

A put has arrived when it returns: it lies in the keeper's socket, which outlives the broker.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from ringway.broker.keeper import Keeper, KeeperGone, Kept
from ringway.control.errors import ControlError

RETRY: Final = 1.0  # seconds between attempts to get another keeper
PATIENCE: Final = 10  # times as long as an attempt took, if that is more: meanwhile the broker does nothing else
DESK: Final = "desk"


class KeptEnd(Struct, frozen=True):
    """One end of a link, as a later broker has to know it."""

    incarnation: int
    ticket: str = ""  # the one it was taken with; the rest is empty while nobody holds it
    identity: bytes = b""
    pid: int = 0
    lifeline: bool = False


class Found(NamedTuple):
    """What a broker before this one has left. The descriptors are the caller's."""

    desk: list[int]
    links: dict[int, list[int]]
    ends: dict[tuple[int, int], tuple[KeptEnd, list[int]]]  # by link id and side


def link_key(link_id: int) -> str:
    return f"link/{link_id:016x}"


def end_key(link_id: int, side: int) -> str:
    return f"end/{link_id:016x}/{side}"


class Keeping:
    """`say` takes one line for the log. All descriptors stay the caller's, who closes them after `drop` only."""

    def __init__(self, runtime: Path, say: Callable[[str], None]) -> None:
        self._runtime = runtime
        self._say = say
        self._entries: dict[str, tuple[bytes, tuple[int, ...]]] = {}
        self._keeper: Keeper | None = Keeper.reach(runtime)
        self._dropped: set[str] = set()  # while there was no keeper: the next one may be the same
        self._again_at = 0.0

    def fileno(self) -> int:
        """Readable when the keeper is gone; -1 while there is none."""
        return self._keeper.fileno() if self._keeper is not None else -1

    def recover(self) -> Found:
        """Everything that is kept. What is not understood is dropped there."""
        found = Found([], {}, {})
        assert self._keeper is not None
        for kept in self._keeper.take_all():
            if not _sort(found, kept):
                self._say(f"the keeper had {kept.key!r}, which is nothing of this release's: dropped")
                close_all(kept.fds)
                self.drop(kept.key)
        return found

    def put(self, key: str, value: bytes, descriptors: Sequence[int]) -> None:
        self._entries[key] = (value, tuple(descriptors))
        self._dropped.discard(key)
        if self._keeper is not None:
            try:
                self._keeper.put(key, value, descriptors)
            except KeeperGone as error:
                self._lose(str(error))

    def put_end(self, link_id: int, side: int, kept: KeptEnd, descriptors: Sequence[int]) -> None:
        self.put(end_key(link_id, side), msgspec.msgpack.encode(kept), descriptors)

    def drop(self, key: str) -> None:
        self._entries.pop(key, None)
        if self._keeper is not None:
            try:
                self._keeper.drop(key)
            except ControlError as error:  # whatever keeps it from hearing that: what has happened cannot be undone
                self._lose(str(error))
        if self._keeper is None:
            self._dropped.add(key)

    def forget_link(self, link_id: int) -> None:
        for key in (end_key(link_id, 0), end_key(link_id, 1), link_key(link_id)):
            if key in self._entries:
                self.drop(key)

    def deadline(self) -> float | None:
        """When `mend` is next to be called (monotonic)."""
        return self._again_at if self._keeper is None else None

    def mend(self, now: float) -> bool:
        """Without a keeper: get another, give it everything and return True. Links do not notice."""
        if self._keeper is not None and self._keeper.gone():
            self._lose(self._keeper.last_word())
        if self._keeper is not None or now < self._again_at:
            return False
        began = time.monotonic()
        try:
            self._keeper = self._another()
        except ControlError as error:
            self._say(f"there is no keeper, and a broker that dies now takes its links' memory with it: {error}")
            ended = time.monotonic()
            self._again_at = ended + max(RETRY, PATIENCE * (ended - began))
            return False
        self._say(f"another keeper (pid {self._keeper.pid}) has everything again")
        self._again_at = time.monotonic() + RETRY
        return True

    def _another(self) -> Keeper:
        """A keeper that has everything again. ControlError."""
        keeper = Keeper.reach(self._runtime)
        try:
            for key in self._dropped:
                keeper.drop(key)
            # Ends come before links (in the order of their names): a broker that finds a link and not who holds its
            # ends would hand them out a second time.
            for key, (value, descriptors) in sorted(self._entries.items()):
                keeper.put(key, value, descriptors)
            keeper.settle()
        except BaseException:
            keeper.close()
            raise
        self._dropped.clear()
        return keeper

    @property
    def stays(self) -> bool:
        """The keeper is there for later brokers too, whatever becomes of this one."""
        return self._keeper is not None and not self._keeper.for_broker

    def close(self, end: bool) -> None:
        """Leave the keeper to the next broker, or `end` it."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        if end:
            with contextlib.suppress(ControlError):
                keeper.end()
        keeper.close()

    def _lose(self, why: str) -> None:
        self._say(why)
        if self._keeper is not None:
            self._keeper.close()
        self._keeper = None


def close_all(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        os.close(fd)


def _sort(found: Found, kept: Kept) -> bool:
    if kept.key == DESK and len(kept.fds) == 1:
        found.desk.extend(kept.fds)
        return True
    kind, _, rest = kept.key.partition("/")
    number, _, side = rest.partition("/")
    try:
        link_id = int(number, 16)
        if kind == "link" and not side and kept.fds:
            found.links[link_id] = kept.fds
            return True
        if kind == "end" and side in ("0", "1"):
            found.ends[link_id, int(side)] = (msgspec.msgpack.decode(kept.value, type=KeptEnd), kept.fds)
            return True
    except ValueError:  # msgspec's own errors are ValueErrors
        pass
    return False
