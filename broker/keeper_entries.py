"""What the broker has in the keeper: said once here, put there, put there again when the keeper had to be replaced.

    key                 descriptors                           value
    handover            the handover socket that listens      -
    link/ID             region, then the bells (links.py)   -
    end/ID/SIDE         connection, lifeline; none when free  KeptEnd

A put has arrived when it returns: it lies in the keeper's socket, which outlives the broker.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from ringway.broker.keeper_client import Keeper, KeeperGone, Kept
from ringway.broker.keeper_server import KEPT_BACK
from ringway.control.errors import ControlError
from ringway.control.messages import Cause

RETRY: Final = 1.0  # seconds between attempts to get another keeper
QUICK: Final = 5  # keepers in a row that may die within that time before the next one has to wait for it
PATIENCE: Final = 10  # times as long as an attempt took, if that is more: meanwhile the broker does nothing else
DYING: Final = 0.5  # seconds that one which has hung up may take to exit; it takes some milliseconds
HANDOVER: Final = "handover"


class KeptEnd(Struct, frozen=True):
    """One end of a link, as a later broker has to know it."""

    incarnation: int
    ticket: str = ""  # the one it was taken with; the rest is empty while nobody holds it
    identity: bytes = b""
    pid: int = 0


class Found(NamedTuple):
    """What a broker before this one has left. The descriptors are the caller's."""

    handover: list[int]
    links: dict[int, list[int]]
    ends: dict[tuple[int, int], tuple[KeptEnd, list[int]]]  # by link id and side


def link_key(link_id: int) -> str:
    return f"link/{link_id:016x}"


def end_key(link_id: int, side: int) -> str:
    return f"end/{link_id:016x}/{side}"


class KeeperEntries:
    """`say` takes one line for the log. All descriptors stay the caller's, to be closed after `drop` only."""

    def __init__(self, runtime: Path, say: Callable[[str], None]) -> None:
        self._runtime = runtime
        self._say = say
        self._entries: dict[str, tuple[bytes, tuple[int, ...]]] = {}
        self._keeper: Keeper | None = Keeper.reach(runtime)
        self._dropped: set[str] = set()  # while there was no keeper: the next one may be the same
        self._again_at = 0.0
        self._since = time.monotonic()  # that the keeper is there
        self._short_lived = 0  # keepers in a row
        self._unwatched = True
        self._said = ""

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
                self._lose_and_mend(str(error))

    def put_end(self, link_id: int, side: int, kept: KeptEnd, descriptors: Sequence[int]) -> None:
        self.put(end_key(link_id, side), msgspec.msgpack.encode(kept), descriptors)

    def drop(self, key: str) -> None:
        self._entries.pop(key, None)
        if self._keeper is None:
            self._dropped.add(key)
            return
        try:
            self._keeper.drop(key)
        except ControlError as error:  # whatever keeps it from hearing that: what has happened cannot be undone
            self._dropped.add(key)
            self._lose_and_mend(str(error))

    def forget_link(self, link_id: int) -> None:
        for key in (end_key(link_id, 0), end_key(link_id, 1), link_key(link_id)):
            if key in self._entries:
                self.drop(key)

    def deadline(self) -> float | None:
        """When `mend` is next to be called (monotonic)."""
        return self._again_at if self._keeper is None else None

    def mend(self, now: float) -> bool:
        """Without a keeper: get another and give it everything. Links do not notice. True when `fileno` is another than
        when it last returned that, and has to be watched."""
        if self._keeper is not None and self._keeper.gone():
            self._lose(self._keeper.last_word())
        self._mend(now)
        unwatched = self._unwatched and self._keeper is not None
        self._unwatched = self._unwatched and not unwatched
        return unwatched

    def make_room(self, count: int) -> None:
        """See to it that the keeper can keep so many descriptors, if there is one. ControlError when none can."""
        if self._keeper is not None and count > self._keeper.room:
            keeper = self._replaced(self._keeper, count)
            self._have(keeper)
            self._say(
                f"another keeper (pid {keeper.pid}, with up to {keeper.open_files_max} open files) has everything"
            )

    def _mend(self, now: float) -> None:
        if self._keeper is not None or now < self._again_at:
            return
        began = time.monotonic()
        try:
            keeper = self._another()
        except ControlError as error:
            said = f"there is no keeper, and a broker that dies now takes its links' memory with it: {error}"
            if said != self._said:
                self._say(said)
            self._said = said
            ended = time.monotonic()
            self._again_at = ended + max(RETRY, PATIENCE * (ended - began))
            return
        self._have(keeper)
        self._say(f"another keeper (pid {keeper.pid}) has everything again")

    def _have(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._since = time.monotonic()
        self._unwatched = True
        self._said = ""

    def _another(self) -> Keeper:
        """A keeper that has everything again. ControlError."""
        keeper = Keeper.reach(self._runtime)
        try:
            count = sum(len(descriptors) for _, descriptors in self._entries.values())
            if count > keeper.room:
                return self._replaced(keeper, count)
            self._fill(keeper)
        except BaseException:
            keeper.close()
            raise
        return keeper

    def _fill(self, keeper: Keeper) -> None:
        for key in self._dropped:
            keeper.drop(key)
        # Ends come before links (in the order of their names): a broker that finds a link and not who holds its
        # ends would hand them out a second time.
        for key, (value, descriptors) in sorted(self._entries.items()):
            keeper.put(key, value, descriptors)
        keeper.settle()
        self._dropped.clear()

    def _replaced(self, keeper: Keeper, count: int) -> Keeper:
        """A keeper that can keep so many descriptors and has everything, in the place of one that cannot: that one has
        ended. ControlError, and it stays. Killed at any moment, this broker leaves one that has everything."""
        own = _open_files_max()
        if not keeper.for_broker or own - KEPT_BACK < count:
            raise _too_small(keeper, count, own)
        successor = keeper.successor(self._runtime)
        try:
            self._fill(successor)
            successor.replace(self._runtime)
        except BaseException:
            successor.close()
            raise
        try:
            keeper.end()
        except ControlError as error:  # it does not matter to anybody any more, except for the memory that it holds
            self._say(str(error))
        return successor

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

    def _lose_and_mend(self, why: str) -> None:
        """Without waiting for the caller to come to `mend`; but not for one that only does not listen, since to reach
        that again takes seconds."""
        dead = self._keeper is not None and self._keeper.gone()
        self._lose(why)
        if dead:
            self._mend(time.monotonic())

    def _lose(self, why: str) -> None:
        self._say(why)
        if self._keeper is not None:
            if self._keeper.gone():
                # A process that dies lets go of its connections before its lock, without which no other can be started.
                self._keeper.await_exit(DYING)
            self._keeper.close()
        self._keeper = None
        # The next one is started at once: a broker that dies before takes its links' memory with it. But a host on
        # which each of them dies is not to be kept busy with that alone.
        now = time.monotonic()
        self._short_lived = self._short_lived + 1 if now - self._since < RETRY else 0
        self._again_at = now + RETRY if self._short_lived > QUICK else 0.0


def _open_files_max() -> int:
    """Of this process, and of a keeper that it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return hard if hard != resource.RLIM_INFINITY else sys.maxsize


def _too_small(keeper: Keeper, count: int, own: int) -> ControlError:
    needed = count + KEPT_BACK
    message = f"the keeper (pid {keeper.pid}) may have {keeper.open_files_max} open files, and needs {needed}: "
    if keeper.for_broker:
        message += f"this broker may have {own}, so raise its hard limit (ulimit -Hn, LimitNOFILE) and restart it"
    elif own >= needed:
        message += (
            f"stop it (kill {keeper.pid}), and this broker starts one of its own, which may have {own}; "
            "before `ringway keeper` is run again, raise its hard limit (ulimit -Hn, LimitNOFILE)"
        )
    else:
        message += f"raise its hard limit and this broker's, {own} (ulimit -Hn, LimitNOFILE), and start both again"
    return ControlError(Cause.LIMIT, message)


def close_all(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        os.close(fd)


def _sort(found: Found, kept: Kept) -> bool:
    if kept.key == HANDOVER and len(kept.fds) == 1:
        found.handover.extend(kept.fds)
        return True
    kind, _, rest = kept.key.partition("/")
    number, _, side = rest.partition("/")
    try:
        link_id = int(number, 16)
        if kind == "link" and not side and kept.fds:
            found.links[link_id] = kept.fds
            return True
        if kind == "end" and side in ("0", "1") and len(kept.fds) in (0, 2):
            found.ends[link_id, int(side)] = (msgspec.msgpack.decode(kept.value, type=KeptEnd), kept.fds)
            return True
    except ValueError:  # msgspec's own errors are ValueErrors
        pass
    return False
