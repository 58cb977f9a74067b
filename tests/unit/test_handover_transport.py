"""The handover socket as transport: what comes in is said once, and nothing is judged."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator

import pytest

from ringway.broker.desk import Claim, Closed, Desk, listen
from ringway.control import wire
from ringway.control.errors import ControlError
from ringway.control.messages import Cause, Done, ErrorReply, Take
from tests.support.broker_process import short_directory

TAKE = Take(vm="a", link="wire", side=0, ticket="0" * 32)


@pytest.fixture
def desk() -> Iterator[Desk]:
    with short_directory() as place, contextlib.closing(select.epoll()) as events:
        made = Desk(listen(place / "handover.sock"), events)
        yield made
        made.close()


def adopted(desk: Desk) -> tuple[socket.socket, int]:
    """The agent's half of a connection, and the number of the broker's."""
    agent, broker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = broker.detach()
    desk.adopt(fd)
    return agent, fd


def test_a_claim_from_before_the_broker_outlives_a_look_at_whether_its_end_is_held(desk: Desk) -> None:
    agent, fd = adopted(desk)
    with agent:
        agent.send(wire.encode("1" * 32, TAKE))
        assert desk.is_open(fd)
        assert desk.on_readable(fd, 0.0) == Claim(fd, "1" * 32, TAKE, again=True)


def test_a_claim_is_read_for_good_when_it_is_settled(desk: Desk) -> None:
    agent, fd = adopted(desk)
    with agent:
        agent.send(wire.encode("1" * 32, TAKE))
        claim = desk.on_readable(fd, 0.0)
        assert isinstance(claim, Claim)
        assert desk.answer(claim, Done(), ())
        assert wire.decode(agent.recv(4096), (Done,)) == ("1" * 32, Done())
        desk.settle(claim)
    assert desk.on_readable(fd, 0.0) == Closed(fd)
    assert not desk.is_ours(fd)


def test_a_word_that_is_no_claim_is_read_and_forgotten(desk: Desk) -> None:
    agent, fd = adopted(desk)
    with agent:
        agent.send(b"anything")
        assert desk.on_readable(fd, 0.0) is None
        assert desk.is_ours(fd)


def test_a_refused_claim_is_told_why_and_hung_up(desk: Desk) -> None:
    listener = next(fd for fd in range(3, 1024) if desk.is_ours(fd))
    with socket.socket(fileno=os.dup(listener)) as same:
        path = same.getsockname()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as agent:
        agent.settimeout(20)
        agent.connect(path)
        agent.send(wire.encode("2" * 32, TAKE))
        assert desk.on_readable(listener, 0.0) is None
        fd = next(fd for fd in range(3, 1024) if fd != listener and desk.is_ours(fd))
        claim = desk.on_readable(fd, 0.0)
        assert claim == Claim(fd, "2" * 32, TAKE, again=False)
        assert isinstance(claim, Claim)
        desk.refuse(claim, ControlError(Cause.TICKET_WRONG, "no"))
        assert wire.decode(agent.recv(4096), (ErrorReply,)).message == ErrorReply(
            cause=Cause.TICKET_WRONG, message="no"
        )
        assert agent.recv(4096) == b""
        assert not desk.is_ours(fd)
