"""How an end's descriptors reach its agent: the agent's side of the handover socket (SEQPACKET, SCM_RIGHTS).

    agent                        broker
    connect                      check SO_PEERCRED
    Claim{vm, link, side, ticket}
                                 Grant{...} + region, four bells per queue, lifeline     or ErrorReply, and close
                                 Peer{...} + the other end's lifeline, whenever somebody takes that end
    (the connection stays open)  its closing tells that the end has detached or died

A lifeline is a pipe in which nothing is ever written. Its write end is held by an end of the link and by nobody else,
its read end by the other end: that hangs up when the holder lets go or dies, whether there is a broker or not.

Each ring has two pipes: one wakes its consumer, one its producer. Everybody gets the read end of what wakes them and
the write end of what wakes the other.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from ringway.control import wire
from ringway.control.errors import ControlError
from ringway.control.messages import FROM_HANDOVER, Cause, Claim, ErrorReply, GeometryPart, Grant, Message, Peer

CLAIM_SIZE: Final = 4096  # bytes of a message on this socket
QUEUES_MAX: Final = 16
BELLS: Final = 4  # descriptors per queue
DESCRIPTORS_MAX: Final = 1 + BELLS * QUEUES_MAX + 1
CLAIM_TIMEOUT: Final = 5.0  # seconds
DESCRIPTOR_BYTES: Final = array.array("i").itemsize


class Bells(NamedTuple):
    """One queue's bells, as rway_producer_bells and rway_consumer_bells want them."""

    producer_wait: int
    producer_ring: int
    consumer_wait: int
    consumer_ring: int


@dataclass(frozen=True)
class Handover:
    """What an agent has got. The caller owns every descriptor; the connection is to stay open while attached."""

    connection: socket.socket
    region_fd: int
    bells: list[Bells]  # by queue
    link_id: int
    geometry: GeometryPart
    incarnation: int
    life_fd: int  # to be kept open while attached, and by nobody else

    def discard(self) -> None:
        """Close all of it: for when none of the descriptors has been passed on."""
        self.connection.close()
        _close_all([self.region_fd, *(fd for bells in self.bells for fd in bells), self.life_fd])


class LaterWord(NamedTuple):
    """What the broker says after the handover. The caller owns the descriptor."""

    message: Peer | Grant
    fd: int  # the other end's lifeline (Peer), or a new one of one's own (Grant)


def take(path: Path, ticket: Claim, timeout: float = CLAIM_TIMEOUT) -> Handover:
    """Redeem a ticket at the broker's handover socket."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(timeout)
        try:
            connection.connect(os.fsencode(path))
            connection.sendall(wire.encode(wire.new_id(), ticket, CLAIM_SIZE))
            granted, descriptors = _receive_granted(connection)
        except TimeoutError:
            raise ControlError(Cause.TIMEOUT, f"the broker at {path} did not answer within {timeout:g} s") from None
        except OSError as error:
            message = f"no broker hands over at {path} ({error.strerror}): start one with `ringway broker`"
            raise ControlError(Cause.NO_BROKER, message) from None
    except BaseException:
        connection.close()
        raise
    connection.settimeout(None)
    life_fd = descriptors.pop()
    bells = [Bells(*descriptors[at : at + BELLS]) for at in range(1, len(descriptors), BELLS)]
    return Handover(connection, descriptors[0], bells, granted.link_id, granted.geometry, granted.incarnation, life_fd)


def hear(connection: socket.socket) -> LaterWord | None:
    """What the broker says next to an attached end, without waiting; None when it has hung up.

    BlockingIOError when there is nothing; ControlError (PROTOCOL, LIMIT) for what is no word of this release.
    """
    payload, descriptors, flags = _receive(connection, socket.MSG_DONTWAIT)
    try:
        if not payload:
            return None
        message = _check_answer(payload, descriptors, flags)
        assert isinstance(message, Peer | Grant)
        if not descriptors:
            raise ControlError(Cause.PROTOCOL, f"a {type(message).__name__} came without the lifeline it is to bring")
        return LaterWord(message, descriptors.pop())
    finally:
        _close_all(descriptors)


def _receive(connection: socket.socket, how: int = 0) -> tuple[bytes, list[int], int]:
    room = socket.CMSG_SPACE(DESCRIPTORS_MAX * DESCRIPTOR_BYTES)
    payload, ancillary, flags, _ = connection.recvmsg(CLAIM_SIZE, room, socket.MSG_CMSG_CLOEXEC | how)
    return payload, _descriptors(ancillary), flags


def _receive_granted(connection: socket.socket) -> tuple[Grant, list[int]]:
    payload, descriptors, flags = _receive(connection)
    try:
        return _check_granted(payload, descriptors, flags), descriptors
    except BaseException:
        _close_all(descriptors)
        raise


def _check_granted(payload: bytes, descriptors: Sequence[int], flags: int) -> Grant:
    if not payload:
        raise ControlError(Cause.NO_BROKER, "the broker closed the connection: look at its log, then say hello again")
    answer = _check_answer(payload, descriptors, flags)
    if not isinstance(answer, Grant):
        raise ControlError(Cause.PROTOCOL, f"the broker answered with a {type(answer).__name__}")
    expected = 1 + BELLS * answer.geometry.queues + 1
    if len(descriptors) != expected:
        message = f"the handover has {len(descriptors)} descriptors, and its {answer.geometry.queues} queues {expected}"
        raise ControlError(Cause.PROTOCOL, message)
    return answer


def _check_answer(payload: bytes, descriptors: Sequence[int], flags: int) -> Message:
    if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
        # Also what happens when this process may not open so many descriptors.
        message = f"the handover arrived cut short, with {len(descriptors)} descriptors: raise this process's ulimit -n"
        raise ControlError(Cause.LIMIT, message)
    try:
        answer = wire.decode(payload, FROM_HANDOVER, CLAIM_SIZE).message
    except wire.WireError as error:
        raise ControlError(Cause.PROTOCOL, f"the handover is not readable: {error.message}") from None
    if isinstance(answer, ErrorReply):
        raise ControlError(answer.cause, answer.message)
    return answer


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % DESCRIPTOR_BYTES])
    return list(found)


def _close_all(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        os.close(fd)
