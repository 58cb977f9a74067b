"""What a hostile or broken neighbour can send to a broker, and that it serves the others meanwhile and afterwards."""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Iterator

import msgpack
import msgspec
import pytest
import zmq

from ringway.broker.handover_server import SILENCE, SILENT_MAX
from ringway.control import wire
from ringway.control.errors import ControlError
from ringway.control.handover import CLAIM_SIZE, take
from ringway.control.messages import FROM_BROKER, FROM_HANDOVER, Cause, Claim, ErrorReply, Notice, Offer, Show, Status
from ringway.control.runtime import control_path, handover_path
from tests.support.broker_process import (
    BrokerProcess,
    only_offer,
    own_descriptors,
    room_for_descriptors,
    session_of,
    short_directory,
)


@pytest.fixture
def broker() -> Iterator[BrokerProcess]:
    with short_directory() as path, BrokerProcess(path / "run") as process:
        process.apply()
        yield process


@pytest.fixture
def offer(broker: BrokerProcess) -> Iterator[Offer]:
    with session_of(broker.runtime, "client") as session:
        yield only_offer(session.hello())


@contextlib.contextmanager
def knocking(broker: BrokerProcess) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(10)
        connection.connect(str(handover_path(broker.runtime)))
        yield connection


def claim_of(offer: Offer) -> Claim:
    return Claim(vm="client", link=offer.link, side=offer.side, ticket=offer.ticket)


def refused(broker: BrokerProcess, claim: Claim) -> Cause:
    with pytest.raises(ControlError) as caught:
        take(handover_path(broker.runtime), claim)
    return caught.value.cause


def test_a_ticket_misused_is_refused_by_name_and_stays_good_for_its_end(broker: BrokerProcess, offer: Offer) -> None:
    claim = claim_of(offer)
    for change, cause in (
        ({"ticket": "0" * 32}, Cause.TICKET_WRONG),
        ({"link": "two"}, Cause.TICKET_MISMATCH),
        ({"side": 1}, Cause.TICKET_MISMATCH),
        ({"vm": "server"}, Cause.TICKET_MISMATCH),
    ):
        assert refused(broker, msgspec.structs.replace(claim, **change)) is cause
    first = broker.take(offer, "client")
    assert refused(broker, claim) is Cause.TICKET_USED
    with session_of(broker.runtime, "client") as other, pytest.raises(ControlError):
        other.hello()
    first.discard()


def test_a_second_claim_of_a_held_side_is_refused(broker: BrokerProcess) -> None:
    with session_of(broker.runtime, "client") as session:
        held = broker.take(only_offer(session.hello()), "client")
        again = only_offer(session.hello())
        assert refused(broker, claim_of(again)) is Cause.ALREADY_ATTACHED
        held.discard()
        broker.take(again, "client").discard()


def test_taking_and_letting_go_leaks_no_descriptor_on_either_side(broker: BrokerProcess) -> None:
    with session_of(broker.runtime, "client") as session:
        broker.take(only_offer(session.hello()), "client").discard()
        before = (broker.descriptors(), own_descriptors())
        for _ in range(50):
            broker.take(only_offer(session.hello()), "client").discard()
            assert refused(broker, Claim(vm="client", link="one", side=0, ticket="0" * 32)) is Cause.TICKET_WRONG
        assert (broker.descriptors(), own_descriptors()) == before


@pytest.mark.parametrize(
    "payload",
    [
        b"\xc1",
        b"\x91" * CLAIM_SIZE,
        b"x" * (CLAIM_SIZE + 1),
        b"x" * 60_000,
        wire.encode("a" * 32, Show()),
        wire.encode("a" * 32, Claim(vm="client", link="one", side=7, ticket="x")),
        msgpack.packb({"v": 1, "id": "a" * 32, "kind": "Claim", "body": {"é" * 1988: 1}}),
    ],
    ids=["not msgpack", "deep", "one byte too long", "far too long", "another kind", "bad body", "a key to be quoted"],
)
def test_a_claim_that_is_none_is_answered_and_hung_up_on(broker: BrokerProcess, payload: bytes) -> None:
    with knocking(broker) as connection:
        connection.send(payload)
        answer = wire.decode(connection.recv(CLAIM_SIZE), FROM_HANDOVER).message
        assert isinstance(answer, ErrorReply)
        assert answer.cause is Cause.BAD_MESSAGE
        assert connection.recv(CLAIM_SIZE) == b""


def test_descriptors_sent_with_a_claim_are_not_kept(broker: BrokerProcess, offer: Offer) -> None:
    before = broker.descriptors()
    claim = wire.encode("a" * 32, claim_of(offer))
    gift = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 100))]
    for _ in range(20):
        with knocking(broker) as connection:
            connection.sendmsg([claim], gift)
            answer = wire.decode(connection.recv(CLAIM_SIZE), FROM_HANDOVER).message
            assert isinstance(answer, ErrorReply)
    assert broker.descriptors() == before
    broker.take(offer, "client").discard()


def test_a_connection_that_says_nothing_is_closed_after_its_second(broker: BrokerProcess) -> None:
    with knocking(broker) as connection:
        connection.settimeout(SILENCE * 10)
        assert connection.recv(CLAIM_SIZE) == b""


def test_silent_connections_take_all_places_for_a_second_at_most(broker: BrokerProcess, offer: Offer) -> None:
    with contextlib.ExitStack() as crowd:
        silent = [crowd.enter_context(knocking(broker)) for _ in range(SILENT_MAX)]
        with knocking(broker) as late:
            answer = wire.decode(late.recv(CLAIM_SIZE), FROM_HANDOVER).message
        assert isinstance(answer, ErrorReply)
        assert answer.cause is Cause.BUSY
        assert all(connection.recv(CLAIM_SIZE) == b"" for connection in silent)
        broker.take(offer, "client").discard()


def test_a_holder_that_talks_on_is_not_heard_and_keeps_its_end(broker: BrokerProcess, offer: Offer) -> None:
    held = broker.take(offer, "client")
    for _ in range(20):
        held.connection.send(b"more")
    assert broker.link().ends[0].held
    held.discard()


def test_an_agent_short_of_descriptors_hears_so_and_keeps_none(broker: BrokerProcess, offer: Offer) -> None:
    before = own_descriptors()
    with room_for_descriptors(3):  # for the socket and two of its five gifts
        cause = refused(broker, claim_of(offer))
    assert cause is Cause.LIMIT
    assert own_descriptors() == before
    assert not broker.link().ends[0].held


def test_a_region_that_an_end_has_scribbled_over_is_shown_as_broken_and_made_anew(
    broker: BrokerProcess, offer: Offer
) -> None:
    held = broker.take(offer, "client")
    size = os.fstat(held.region_fd).st_size
    for pattern in (b"\xff", b"\x00", b"\x5a"):
        os.pwrite(held.region_fd, pattern * min(size, 1 << 20), 0)
        assert broker.link().state == "broken"
    assert broker.apply().replaced == ["one"]
    assert broker.link().state == "down"
    held.discard()


def test_counters_that_an_end_has_scribbled_over_stay_readable(broker: BrokerProcess, offer: Offer) -> None:
    held = broker.take(offer, "client")
    size = os.fstat(held.region_fd).st_size
    # All but the header, which says where things are: sides, counters, descriptors and slots.
    for at in range(4096, size, 1 << 20):
        os.pwrite(held.region_fd, b"\xff" * min(1 << 20, size - at), at)
    assert broker.link().name == "one"
    assert broker.apply().made == []
    held.discard()


@contextlib.contextmanager
def dealer(broker: BrokerProcess) -> Iterator[zmq.Socket[bytes]]:
    context = zmq.Context()
    with context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.connect(f"ipc://{control_path(broker.runtime)}")
        yield peer
    context.term()


def answer_to(peer: zmq.Socket[bytes]) -> ErrorReply:
    assert peer.poll(10_000)
    message = wire.decode(peer.recv(), FROM_BROKER).message
    assert isinstance(message, ErrorReply)
    return message


def test_an_answer_of_an_agent_that_was_forgotten_is_told_so(broker: BrokerProcess) -> None:
    with dealer(broker) as peer:
        peer.send(wire.encode(wire.new_id(), Status(ports=[], loops=[], rules=[])))
        assert answer_to(peer).cause is Cause.NOT_GREETED


def test_a_message_over_the_size_limit_is_dropped_and_disturbs_nobody(broker: BrokerProcess) -> None:
    with dealer(broker) as peer:
        peer.send(b"x" * (wire.MESSAGE_SIZE + 1))
        assert not peer.poll(200)
        assert broker.link().name == "one"


def test_a_message_of_100000_frames_is_refused(broker: BrokerProcess) -> None:
    with dealer(broker) as peer:
        peer.send_multipart([b"x"] * 100_000)
        assert answer_to(peer).cause is Cause.BAD_MESSAGE
    assert broker.link().name == "one"


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x91" * 100_000, b"\xdf\xff\xff\xff\xff"])
def test_bytes_that_are_no_message_are_answered_and_all_goes_on(broker: BrokerProcess, payload: bytes) -> None:
    with dealer(broker) as peer:
        peer.send(payload)
        assert answer_to(peer).cause is Cause.BAD_MESSAGE
        peer.send(wire.encode("a" * 32, Show()))
        assert peer.poll(10_000)
        assert wire.decode(peer.recv(), FROM_BROKER).request_id == "a" * 32


def test_raw_bytes_on_the_control_socket_disturb_nobody(broker: BrokerProcess) -> None:
    with contextlib.ExitStack() as crowd:
        for payload in (b"", b"\xff" * 1000, b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f", b"GET / HTTP/1.1\r\n\r\n"):
            raw = crowd.enter_context(socket.socket(socket.AF_UNIX))
            raw.connect(str(control_path(broker.runtime)))
            raw.send(payload)
        assert broker.link().name == "one"


def test_an_agent_that_tells_without_end_does_not_fill_the_log(broker: BrokerProcess) -> None:
    with session_of(broker.runtime, "client") as session:
        session.hello()
        before = len(broker.log())
        for number in range(3000):
            told = Notice(port="net", link="one", event=f"n{number}") if number % 2 else None
            message = told or ErrorReply(cause=Cause.FAILED, message="x" * 8000)
            assert session.socket.poll(20_000, zmq.POLLOUT)
            session.socket.send(wire.encode(wire.new_id(), message))
        session.hello()  # it is heard after all that
        assert len(broker.log()) - before < 100_000  # of 12 MB
        while "more such lines" not in broker.log():
            session.hello()
        assert "n1" in broker.log()
