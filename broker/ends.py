"""Who holds the ends of links: hands them out against tickets, saves that before it is said, introduces the two ends.

What an end's holder has, besides the memory:

    its connection to the server tells the broker when it lets go or dies; also in the keeper
    the write end of its life    nobody else has it
    the read end of the other's  handed over the connection, each time the other end is taken; also in the keeper
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ringway.broker import report
from ringway.broker.end import End
from ringway.broker.fabric import Fabric, LinkState
from ringway.broker.handover_server import ClaimReceived, Closed, HandoverServer
from ringway.broker.keeper_entries import KeeperEntries
from ringway.broker.links import Resources
from ringway.control.errors import ControlError
from ringway.control.messages import Cause, Peer


class Recreate(NamedTuple):
    """A link is to be recreated, because of what is wrong with it, and its claim refused then."""

    link: str
    trouble: str
    claim: ClaimReceived


class Ends:
    """`say` takes one line for the log."""

    def __init__(
        self,
        listener: socket.socket,
        events: select.epoll,
        fabric: Fabric,
        resources: Resources,
        keeping: KeeperEntries,
        say: Callable[[str], None],
    ) -> None:
        self.server = HandoverServer(listener, events)
        self.changed = True  # since it was last set to False: which agent holds what
        self._fabric = fabric
        self._resources = resources
        self._keeping = keeping
        self._say = say

    def close(self) -> None:
        self.server.close()
        for link in self._fabric.links.values():
            for end in link.ends:
                _close_life(end)

    def on_readable(self, fd: int, now: float) -> Recreate | None:
        match self.server.on_readable(fd, now):
            case Closed(connection):
                self._released(connection)
            case ClaimReceived() as claim:
                return self._claimed(claim, now)
        return None

    def abandon(self, fd: int) -> None:
        """Give up a connection, after something unforeseen."""
        self.server.abandon(fd)
        self._released(fd)

    def drop(self, ends: Sequence[End]) -> None:
        """Hang up on held ends whose links are gone."""
        self.changed = True
        for end in ends:
            if end.connection is not None:
                self.server.drop(end.connection)
            _close_life(end)

    def take_over(self, end: End) -> None:
        """An end as a broker before this one left it."""
        self._save(end)
        if end.connection is not None:
            self.server.adopt(end.connection)

    def is_held(self, connection: int) -> bool:
        """Asks the socket: its closing may not have been noticed yet."""
        if self.server.is_open(connection):
            return True
        self._released(connection)
        return False

    def any_held(self, vm: str) -> bool:
        return any(self.is_held(connection) for connection, _ in self._fabric.holders(vm))

    def stranger(self, identity: bytes, vm: str) -> int | None:
        """The process of another agent that holds an end of the VM: one per side, also over a broker's restart."""
        for connection, holder in self._fabric.holders(vm):
            if holder.identity != identity and self.is_held(connection):
                return holder.pid
        return None

    def refuse(self, claim: ClaimReceived, error: ControlError) -> None:
        if not claim.again:
            self.server.refuse(claim, error)
        elif not self.server.is_open(claim.connection):  # an end that is held hears nothing of a wrong word
            self._released(claim.connection)

    def _claimed(self, claim: ClaimReceived, now: float) -> Recreate | None:
        try:
            held = self._fabric.held_at(claim.connection)
            if held is not None:
                self._grant_again(claim, *held)
                return None
            pid = self.server.pid_of(claim.connection)
            link, _ = self._fabric.redeem(claim.message, claim.connection, now, pid)
            trouble = report.trouble(link, self._resources.links.get(link.link_id))
            if trouble:
                self._fabric.released(claim.connection)
                return Recreate(claim.message.link, trouble, claim)
            try:
                self._grant(claim, link, claim.message.side)
            except ControlError:
                self._released(claim.connection)  # it is refused, and holds nothing
                raise
        except ControlError as error:
            self.refuse(claim, error)
        return None

    def _grant_again(self, claim: ClaimReceived, link: LinkState, side: int) -> None:
        """To an end that may have had no answer, because the broker died. ControlError when it claims another one."""
        wanted = claim.message
        if (wanted.link, wanted.side, wanted.ticket) != (link.config.name, side, link.ends[side].used):
            raise ControlError(Cause.ALREADY_ATTACHED, "the connection holds an end already")
        _close_life(link.ends[side])
        self._grant(claim, link, side)

    def _grant(self, claim: ClaimReceived, link: LinkState, side: int) -> None:
        """Saved before it is said. ControlError when it cannot be, and nothing was said."""
        end = link.ends[side]
        end.life_fd, own_fd = os.pipe2(os.O_CLOEXEC)
        try:
            self._save(end)
            self.changed = True
            descriptors = [*self._resources.links[link.link_id].descriptors(side), own_fd]
            answered = self.server.answer(claim, self._fabric.granted(link, side), descriptors)
        finally:
            os.close(own_fd)
        if answered:
            self._introduce(link, side)
            self.server.settle(claim)
        else:
            self._released(claim.connection)

    def _introduce(self, link: LinkState, side: int) -> None:
        """Give the new holder of an end and that of the other end each other's lifeline."""
        for told, other in ((link.ends[1 - side], link.ends[side]), (link.ends[side], link.ends[1 - side])):
            if told.connection is not None and other.connection is not None and other.life_fd is not None:
                self.server.say(told.connection, Peer(incarnation=other.incarnation), [other.life_fd])

    def _released(self, connection: int) -> None:
        gone = self._fabric.released(connection)
        if gone is not None:
            link, side = gone
            _close_life(link.ends[side])
            self._save(link.ends[side])
            self.changed = True
            self._say(f"link {link.config.name!r}: side {'ab'[side]} has let go")

    def _save(self, end: End) -> None:
        self._keeping.put_end(end.link_id, end.side, end.kept(), end.descriptors())


def _close_life(end: End) -> None:
    if end.life_fd is not None:
        os.close(end.life_fd)
        end.life_fd = None
