"""Hostile and broken neighbours of a broker that hands ends out again and again, and of the ends it introduces."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator

import msgspec
import pytest
import zmq

from ringway.control import wire
from ringway.control.client import AgentSession
from ringway.control.errors import ControlError
from ringway.control.handover import CLAIM_SIZE, Handover, hear, take
from ringway.control.messages import FROM_BROKER, FROM_HANDOVER, Cause, Claim, Grant, Hello, Peer, Welcome
from ringway.control.release import RELEASE
from ringway.control.runtime import control_path, handover_path
from tests.support.broker_process import BrokerProcess, only_offer, session_of, short_directory
from tests.support.fabric import Fabric, cpu_ticks
from tests.support.fabrics import FABRIC
from tests.support.keeper_process import settled_descriptors
from tests.support.restarts import Chain, come_to, ends_of, kill_keeper
from tests.support.waiting import until
from tools.soak.census import keeper_pid

RESTARTS = 1000


@pytest.fixture
def broker() -> Iterator[BrokerProcess]:
    with short_directory() as path, BrokerProcess(path / "run") as process:
        process.apply(FABRIC)
        yield process


def take_end(broker: BrokerProcess, session: AgentSession) -> Handover:
    offer = only_offer(session.hello())
    claim = Claim(vm=session.vm, link=offer.link, side=offer.side, ticket=offer.ticket)
    return take(handover_path(broker.runtime), claim)


def test_an_end_that_hears_nothing_of_1000_restarts_of_its_peer_holds_nobody_up(broker: BrokerProcess) -> None:
    with session_of(broker.runtime, "client") as client, session_of(broker.runtime, "server") as server:
        deaf = take_end(broker, server)
        take_end(broker, client).discard()
        broker.apply(FABRIC)
        kept, held = settled_descriptors(broker.runtime), broker.descriptors()
        for incarnation in range(2, RESTARTS + 2):
            handover = take_end(broker, client)
            assert handover.incarnation == incarnation
            handover.discard()
        come_to(broker, kept, held)
        heard = words(deaf)
        assert all(isinstance(word, Peer) for word in heard)
        assert 0 < len(heard) < RESTARTS
        take_end(broker, client).discard()
        broker.apply(FABRIC)  # by then it has said all
        assert words(deaf) == [Peer(incarnation=RESTARTS + 2)], "it hears again, once it listens"
        deaf.discard()


def words(handover: Handover) -> list[Peer | Grant]:
    """What lies in the connection; the descriptors are closed."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while (word := hear(handover.connection)) is not None:
            found.append(word.message)
            os.close(word.fd)
    return found


@pytest.mark.parametrize("change", [{}, {"link": "two"}, {"side": 1}, {"ticket": "0" * 32}])
def test_of_two_claims_on_one_connection_the_first_is_answered(
    broker: BrokerProcess, change: dict[str, object]
) -> None:
    with (
        session_of(broker.runtime, "client") as session,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection,
    ):
        offer = only_offer(session.hello())
        claim = Claim(vm="client", link="one", side=offer.side, ticket=offer.ticket)
        broker.process.send_signal(signal.SIGSTOP)
        connection.connect(str(handover_path(broker.runtime)))
        for each in (claim, msgspec.structs.replace(claim, **change)):
            connection.send(wire.encode(wire.new_id(), each))
        broker.process.send_signal(signal.SIGCONT)
        connection.settimeout(20)
        answer = wire.decode(connection.recv(CLAIM_SIZE), FROM_HANDOVER).message
        assert isinstance(answer, Grant)
        assert ends_of(broker.show())["client.net"][1:] == (os.getpid(), 1)
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(CLAIM_SIZE)
    until(lambda: ends_of(broker.show())["client.net"].pid == 0, "the end is free")


@contextlib.contextmanager
def thief(broker: BrokerProcess, identity: bytes) -> Iterator[zmq.Socket[bytes]]:
    """A local client of the broker's own user, or root: nobody else can reach the socket, or see an identity."""
    context = zmq.Context()
    with context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.setsockopt(zmq.ROUTING_ID, identity)
        peer.setsockopt(zmq.RECONNECT_IVL, -1)
        peer.connect(f"ipc://{control_path(broker.runtime)}")
        yield peer
    context.term()


def test_who_steals_an_agents_identity_gets_its_words_until_the_broker_restarts_and_no_memory(fabric: Fabric) -> None:
    chain = Chain(fabric)
    broker = chain.broker
    before = ends_of(broker.show())
    session = chain.client._session
    assert session is not None
    identity = session.socket.getsockopt(zmq.ROUTING_ID)
    assert isinstance(identity, bytes)
    with chain.traffic() as streams:
        with thief(broker, identity) as stolen:
            stolen.send(wire.encode(wire.new_id(), Hello(vm="client", pid=1, version=RELEASE)))
            assert stolen.poll(20_000)
            welcome = wire.decode(stolen.recv(), FROM_BROKER).message
            assert isinstance(welcome, Welcome), "it is taken for the agent"
            for offer in welcome.offers:
                claim = Claim(vm="client", link=offer.link, side=offer.side, ticket=offer.ticket)
                with pytest.raises(ControlError) as caught:
                    take(handover_path(broker.runtime), claim)
                assert caught.value.cause in (Cause.ALREADY_ATTACHED, Cause.TICKET_WRONG)
        # ZeroMQ has let go of the true agent without a word to it: until it connects again it hears nothing.
        broker.restart()
        chain.await_agents()
        assert ends_of(broker.show()) == before
        for stream in streams:
            stream.pass_on(1000)


def test_an_identity_cannot_be_used_for_another_vm_whose_end_is_held(broker: BrokerProcess) -> None:
    with session_of(broker.runtime, "client") as client, session_of(broker.runtime, "server") as server:
        ends = [take_end(broker, client), take_end(broker, server)]
        with pytest.raises(ControlError) as caught:
            _hello_as(client, "server")
        assert caught.value.cause is Cause.AGENT_EXISTS
        for end in ends:
            end.discard()


def _hello_as(session: AgentSession, vm: str) -> None:
    session.vm = vm
    session.hello()


def test_broker_and_keeper_are_idle_after_all_of_their_restarts(fabric: Fabric) -> None:
    """A descriptor that stays readable, or that epoll goes on about though it is closed, would take a whole core."""
    chain = Chain(fabric)
    chain.broker.restart()
    chain.await_agents()
    chain.firewall.stop(signal.SIGKILL)
    fabric.agent("fw")
    kill_keeper(fabric.runtime)
    until(lambda: "has everything again" in chain.broker.log(), "there is another keeper")
    chain.await_agents()
    keeper = keeper_pid(fabric.runtime)
    assert keeper is not None
    before = [cpu_ticks(pid) for pid in (chain.broker.process.pid, keeper)]
    time.sleep(1)  # being idle is what is measured
    used = [cpu_ticks(pid) - ticks for pid, ticks in zip((chain.broker.process.pid, keeper), before, strict=True)]
    assert max(used) <= os.sysconf("SC_CLK_TCK") / 10, used
