"""Who holds the ends of links: hands them out against tickets, saves that before it is said, introduces the two ends.

What an end's holder has, besides the memory:

    its connection to the desk   tells the broker when it lets go or dies; also in the keeper
    the write end of its life    nobody else has it
    the read end of the other's  handed over the connection, each time the other end is taken; also in the keeper
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Sequence
from functools import partial

from ringway.broker import watch
from ringway.broker.adoption import holder_of, kept_end
from ringway.broker.desk import Desk, Grant
from ringway.broker.effects import Resources
from ringway.broker.fabric import Fabric, LinkState
from ringway.broker.keeping import Keeping, KeptEnd, close_all
from ringway.control.errors import ControlError
from ringway.control.messages import Cause, Granted, Peer, Take


class Ends:
    """`make_anew(link, why)` replaces a link; `say` takes one line for the log."""

    def __init__(
        self,
        listener: socket.socket,
        events: select.epoll,
        fabric: Fabric,
        resources: Resources,
        keeping: Keeping,
        make_anew: Callable[[str, str], None],
        say: Callable[[str], None],
    ) -> None:
        self.desk = Desk(listener, events, self._redeem, self._released)
        self.changed = True  # since it was last set to False: who holds what
        self._fabric = fabric
        self._resources = resources
        self._keeping = keeping
        self._make_anew = make_anew
        self._say = say
        self._lives: dict[int, int] = {}  # read ends of the lifelines of held ends, by connection

    def close(self) -> None:
        self.desk.close()
        close_all(list(self._lives.values()))
        self._lives.clear()

    def drop(self, connections: Sequence[int]) -> None:
        """Hang up on ends whose links are gone."""
        self.changed = True
        for connection in connections:
            self.desk.drop(connection)
            self._end_life(connection)

    def take_over(self, link: LinkState, side: int, kept: KeptEnd, descriptors: list[int]) -> None:
        """An end that has been held since before this broker."""
        connection, life_fd = descriptors
        self._lives[connection] = life_fd
        self._fabric.adopt_end(link, side, connection, holder_of(kept), kept.ticket)
        self._keeping.put_end(link.link_id, side, kept, descriptors)
        self.desk.adopt(connection)

    def is_held(self, connection: int) -> bool:
        """Asks the socket: its closing may not have been noticed yet."""
        if self.desk.holds(connection):
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

    def _redeem(self, take: Take, connection: int, now: float) -> Grant:
        held = self._fabric.held_at(connection)
        if held is not None:
            return self._grant_again(take, connection, *held)
        link, granted = self._fabric.redeem(take, connection, now, self.desk.pid_of(connection))
        trouble = watch.trouble(link, self._resources.links.get(link.link_id))
        if trouble:
            self._fabric.released(connection)
            self._make_anew(take.link, trouble)
            message = f"link {take.link!r} was made anew, because {trouble}: say hello for a ticket of the new one"
            raise ControlError(Cause.TICKET_EXPIRED, message)
        try:
            return self._grant(link, take.side, connection, granted)
        except ControlError:
            self._released(connection)  # it is refused, and holds nothing
            raise

    def _grant_again(self, take: Take, connection: int, link: LinkState, side: int) -> Grant:
        """To an end that may have had no answer, because the broker died. ControlError when it claims another one."""
        if (take.link, take.side, take.ticket) != (link.config.name, side, link.ends[side].used):
            raise ControlError(Cause.ALREADY_ATTACHED, "the connection holds an end already")
        self._end_life(connection)
        return self._grant(link, side, connection, self._fabric.granted(link, side))

    def _grant(self, link: LinkState, side: int, connection: int, granted: Granted) -> Grant:
        """Saved before it is said."""
        life_fd, own_fd = os.pipe2(os.O_CLOEXEC)
        self._lives[connection] = life_fd
        try:
            self._keeping.put_end(link.link_id, side, kept_end(link.ends[side]), [connection, life_fd])
        except ControlError:
            os.close(own_fd)
            raise
        self.changed = True
        descriptors = [*self._resources.links[link.link_id].descriptors(side), own_fd]
        return Grant(granted, descriptors, [own_fd], partial(self._introduce, link, side))

    def _introduce(self, link: LinkState, side: int) -> None:
        """Give the new holder of an end and that of the other end each other's lifeline."""
        for told, other in ((link.ends[1 - side], link.ends[side]), (link.ends[side], link.ends[1 - side])):
            if told.holder is not None and other.holder is not None:
                self.desk.say(told.holder, Peer(incarnation=other.incarnation), [self._lives[other.holder]])

    def _released(self, connection: int) -> None:
        gone = self._fabric.released(connection)
        self._end_life(connection)
        if gone is not None:
            link, side = gone
            self._keeping.put_end(link.link_id, side, kept_end(link.ends[side]), [])
            self.changed = True
            self._say(f"link {link.config.name!r}: side {'ab'[side]} has let go")

    def _end_life(self, connection: int) -> None:
        life_fd = self._lives.pop(connection, None)
        if life_fd is not None:
            os.close(life_fd)
