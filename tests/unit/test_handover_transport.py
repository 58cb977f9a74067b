"""The handover socket as transport: what comes in is said once, and nothing is judged."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator

import pytest

from ringway.broker.handover_server import ClaimReceived, Closed, HandoverServer, listen
from ringway.control import wire
from ringway.control.errors import ControlError
from ringway.control.messages import Cause, Claim, Done, ErrorReply
from tests.support.broker_process import short_directory

TAKE = Claim(vm="a", link="wire", side=0, ticket="0" * 32)


@pytest.fixture
def server() -> Iterator[HandoverServer]:
    with short_directory() as place, contextlib.closing(select.epoll()) as events:
        made = HandoverServer(listen(place / "handover.sock"), events)
        yield made
        made.close()


def adopted(server: HandoverServer) -> tuple[socket.socket, int]:
    """The agent's half of a connection, and the number of the broker's."""
    agent, broker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = broker.detach()
    server.adopt(fd)
    return agent, fd


def test_a_claim_from_before_the_broker_outlives_a_look_at_whether_its_end_is_held(server: HandoverServer) -> None:
    agent, fd = adopted(server)
    with agent:
        agent.send(wire.encode("1" * 32, TAKE))
        assert server.is_open(fd)
        assert server.on_readable(fd, 0.0) == ClaimReceived(fd, "1" * 32, TAKE, again=True)


def test_a_claim_is_read_for_good_when_it_is_settled(server: HandoverServer) -> None:
    agent, fd = adopted(server)
    with agent:
        agent.send(wire.encode("1" * 32, TAKE))
        claim = server.on_readable(fd, 0.0)
        assert isinstance(claim, ClaimReceived)
        assert server.answer(claim, Done(), ())
        assert wire.decode(agent.recv(4096), (Done,)) == ("1" * 32, Done())
        server.settle(claim)
    assert server.on_readable(fd, 0.0) == Closed(fd)
    assert not server.is_ours(fd)


def test_a_word_that_is_no_claim_is_read_and_forgotten(server: HandoverServer) -> None:
    agent, fd = adopted(server)
    with agent:
        agent.send(b"anything")
        assert server.on_readable(fd, 0.0) is None
        assert server.is_ours(fd)


def test_a_refused_claim_is_told_why_and_hung_up(server: HandoverServer) -> None:
    listener = next(fd for fd in range(3, 1024) if server.is_ours(fd))
    with socket.socket(fileno=os.dup(listener)) as same:
        path = same.getsockname()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as agent:
        agent.settimeout(20)
        agent.connect(path)
        agent.send(wire.encode("2" * 32, TAKE))
        assert server.on_readable(listener, 0.0) is None
        fd = next(fd for fd in range(3, 1024) if fd != listener and server.is_ours(fd))
        claim = server.on_readable(fd, 0.0)
        assert claim == ClaimReceived(fd, "2" * 32, TAKE, again=False)
        assert isinstance(claim, ClaimReceived)
        server.refuse(claim, ControlError(Cause.TICKET_WRONG, "no"))
        assert wire.decode(agent.recv(4096), (ErrorReply,)).message == ErrorReply(
            cause=Cause.TICKET_WRONG, message="no"
        )
        assert agent.recv(4096) == b""
        assert not server.is_ours(fd)
