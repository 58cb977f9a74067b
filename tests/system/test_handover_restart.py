"""A broker killed in the middle of a handover, each moment of it hit for certain from a connection of the test's own.

The claims lie in the socket until their answers are out and the two ends are introduced. So the moments of a broker's
death can be told by what is in the socket, and a claim sent to a stopped broker is one that it did not live to read.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ringway.control import wire
from ringway.control.client import AgentSession
from ringway.control.errors import ControlError
from ringway.control.handover import Handover, LaterWord, hear, take
from ringway.control.messages import Cause, Claim, Grant, Offer, Peer
from ringway.control.runtime import handover_path
from tests.support.broker_process import BrokerProcess, only_offer, session_of, short_directory
from tests.support.fabrics import FABRIC
from tests.support.keeper_process import PATIENCE_MS
from tests.support.restarts import HeldEnd, ends_of, listed
from tests.support.waiting import until


@pytest.fixture
def broker() -> Iterator[BrokerProcess]:
    with short_directory() as path, BrokerProcess(path / "run") as process:
        process.apply(FABRIC)
        yield process


@contextlib.contextmanager
def greeted(broker: BrokerProcess, vm: str) -> Iterator[tuple[AgentSession, Claim]]:
    """A session with a claim that its ticket is good for."""
    with session_of(broker.runtime, vm) as session:
        yield session, claim_of(only_offer(session.hello()), vm)


def claim_of(offer: Offer, vm: str) -> Claim:
    return Claim(vm=vm, link=offer.link, side=offer.side, ticket=offer.ticket)


def taken(broker: BrokerProcess, claim: Claim) -> Handover:
    return take(handover_path(broker.runtime), claim)


def heard(handover: Handover) -> LaterWord:
    """The broker's next word on the connection, awaited."""
    poll = select.poll()
    poll.register(handover.connection, select.POLLIN)
    assert poll.poll(PATIENCE_MS), "the broker says nothing"
    word = hear(handover.connection)
    assert word is not None, "the broker has hung up"
    return word


def hangs_up(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


@contextlib.contextmanager
def stopped(broker: BrokerProcess) -> Iterator[None]:
    """It hears nothing meanwhile, and is killed then."""
    broker.apply(FABRIC)  # it has read by then what it had only looked at
    broker.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, broker.process.pid, os.WSTOPPED | os.WNOWAIT)
    yield
    broker.stop(signal.SIGKILL)


def end_of(broker: BrokerProcess, vm: str) -> HeldEnd:
    """Without asking the agents, who do not answer here."""
    (found,) = [
        HeldEnd(link.link_id, end.holder_pid, end.incarnation)
        for link in listed(broker.runtime).links
        for end in link.ends
        if end.vm == vm
    ]
    return found


def test_a_claim_that_died_with_its_broker_is_hung_up_on_and_the_end_is_free(broker: BrokerProcess) -> None:
    with greeted(broker, "client") as (session, claim), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as raw:
        raw.connect(str(handover_path(broker.runtime)))
        until(lambda: connections(broker, ACCEPTED) == 1, "the connection is accepted")
        with stopped(broker):
            raw.send(wire.encode(wire.new_id(), claim))
        raw.settimeout(PATIENCE_MS / 1000)
        with contextlib.suppress(ConnectionResetError):
            assert raw.recv(4096) == b""
        broker.start()
        assert end_of(broker, "client")[1:] == (0, 0)
        handover = taken(broker, claim_of(only_offer(session.hello()), "client"))
        assert handover.incarnation == 1
        handover.discard()


WAITING, ACCEPTED = "02", "03"  # in /proc/net/unix, of connections made to a listener's path


def connections(broker: BrokerProcess, state: str) -> int:
    lines = Path("/proc/net/unix").read_text().splitlines()
    path = str(handover_path(broker.runtime))
    return sum(line.split()[5] == state for line in lines if line.endswith(f" {path}"))


def test_claims_that_wait_for_a_killed_broker_are_answered_by_the_next(broker: BrokerProcess) -> None:
    """Their tickets have died with it, and that is what they are told."""
    with ThreadPoolExecutor(8) as threads, greeted(broker, "client") as (session, claim):
        with stopped(broker):
            claims = [threads.submit(take, handover_path(broker.runtime), claim, 20.0) for _ in range(8)]
            until(lambda: connections(broker, WAITING) == 8, "all wait in the backlog")
        broker.start()
        for one in claims:
            error = one.exception()
            assert isinstance(error, ControlError)
            assert error.cause is Cause.TICKET_WRONG
        taken(broker, claim_of(only_offer(session.hello()), "client")).discard()


def test_a_claim_granted_and_not_read_is_granted_once_more_to_the_same_incarnation(broker: BrokerProcess) -> None:
    with greeted(broker, "client") as (_, claim):
        handover = taken(broker, claim)
        with stopped(broker):
            handover.connection.send(wire.encode(wire.new_id(), claim))
        broker.start()
        word = heard(handover)
        assert isinstance(word.message, Grant)
        assert (word.message.link_id, word.message.incarnation) == (handover.link_id, 1)
        assert end_of(broker, "client") == (handover.link_id, os.getpid(), 1)
        os.close(word.fd)
        handover.discard()
        until(lambda: end_of(broker, "client").pid == 0, "the end is free")


def test_the_two_ends_are_introduced_once_more_when_a_claim_was_not_read(broker: BrokerProcess) -> None:
    with greeted(broker, "client") as (_, claim), greeted(broker, "server") as (_, other):
        client, server = taken(broker, claim), taken(broker, other)
        first = {"server": heard(client), "client": heard(server)}
        with stopped(broker):
            client.connection.send(wire.encode(wire.new_id(), claim))
        broker.start()
        granted, met, known = heard(client), heard(client), heard(server)
        assert isinstance(granted.message, Grant)
        assert (met.message, known.message) == (Peer(incarnation=1), Peer(incarnation=1))
        os.close(client.life_fd)  # the one that is of no use any more
        assert hangs_up(first["client"].fd)
        assert not hangs_up(known.fd)
        os.close(granted.fd)
        assert hangs_up(known.fd)
        for fd in (first["client"].fd, first["server"].fd, met.fd, known.fd):
            os.close(fd)
        client.connection.close()
        os.close(client.region_fd)
        server.discard()


@pytest.mark.parametrize("change", ["another ticket", "another link"])
def test_a_held_end_that_claims_anything_else_of_the_next_broker_gets_nothing_and_keeps_its_end(
    broker: BrokerProcess, change: str
) -> None:
    with greeted(broker, "client") as (_, claim):
        handover = taken(broker, claim)
        with stopped(broker):
            wrong = Claim(
                vm="client",
                link="one" if change == "another ticket" else "two",
                side=0,
                ticket="0" * 32 if change == "another ticket" else claim.ticket,
            )
            handover.connection.send(wire.encode(wire.new_id(), wrong))
        broker.start()
        with greeted(broker, "server") as (_, other):
            server = taken(broker, other)  # the connection's turn was before this
            word = heard(handover)
            assert isinstance(word.message, Peer), "nothing but the other end is told of"
            os.close(word.fd)
            server.discard()
        assert end_of(broker, "client")[1:] == (os.getpid(), 1)
        handover.discard()


def test_an_end_that_left_without_a_broker_is_free_at_the_next_also_with_its_claim_unread(
    broker: BrokerProcess,
) -> None:
    with greeted(broker, "client") as (session, claim):
        handover = taken(broker, claim)
        with stopped(broker):
            handover.connection.send(wire.encode(wire.new_id(), claim))
        handover.discard()
        broker.start()
        again = taken(broker, claim_of(only_offer(session.hello()), "client"))
        assert again.incarnation == 2
        again.discard()


def test_claims_that_come_twice_are_forgotten_by_a_living_broker(broker: BrokerProcess) -> None:
    with greeted(broker, "client") as (_, claim):
        handover = taken(broker, claim)
        for _ in range(20):
            handover.connection.send(wire.encode(wire.new_id(), claim))
        assert ends_of(broker.show())["client.net"][1:] == (os.getpid(), 1)
        with pytest.raises(BlockingIOError):
            hear(handover.connection)
        handover.discard()
