"""One end of a link: all that the broker knows of it. What the keeper holds of an end is derived from it.

state       event              next
free        offer              offered      (an earlier ticket of the end is void)
offered     good ticket        held         (incarnation + 1, the ticket is used)
offered     60 s pass          free
held        offer              held         (a ticket for afterwards)
held        any ticket         held         refused: already attached
held        connection closes  free or offered
any         bad ticket         unchanged    refused by name
"""

from __future__ import annotations

from dataclasses import dataclass

from ringway.broker.config.tables import PortConfig
from ringway.broker.keeper_entries import KeptEnd


@dataclass(frozen=True)
class Holder:
    """Who an end was offered to, or is held by."""

    identity: bytes  # of the agent's connection, which stays the same over reconnects
    pid: int


@dataclass
class Ticket:
    text: str
    expires: float
    to: Holder


@dataclass
class End:
    link_id: int
    side: int
    vm: str
    port: PortConfig
    incarnation: int = 0  # of the holder, or the last one
    ticket: Ticket | None = None
    used: str = ""  # the ticket its last holder came with
    holder: Holder | None = None  # of a lost link: the agent that says it is attached
    connection: int | None = None  # by which it is held
    life_fd: int | None = None  # read end of the holder's lifeline

    def take(self, holder: Holder, ticket: str, connection: int) -> None:
        """From now on it is held by that connection; the incarnation is as it was."""
        self.holder, self.used, self.connection = holder, ticket, connection
        self.ticket = None

    def release(self) -> None:
        """Its holder is gone. The lifeline's descriptor is the caller's to close."""
        self.holder = self.connection = None

    def adopt(self, kept: KeptEnd, descriptors: list[int]) -> None:
        """As a broker before this one knew it."""
        self.incarnation = kept.incarnation
        if descriptors:
            connection, self.life_fd = descriptors
            self.take(Holder(kept.identity, kept.pid), kept.ticket, connection)

    def kept(self) -> KeptEnd:
        """What a later broker has to know."""
        if self.connection is None or self.holder is None:
            return KeptEnd(self.incarnation)
        return KeptEnd(self.incarnation, self.used, self.holder.identity, self.holder.pid)

    def descriptors(self) -> list[int]:
        """What a later broker has to have."""
        return [fd for fd in (self.connection, self.life_fd) if fd is not None] if self.connection is not None else []
