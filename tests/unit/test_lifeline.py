"""How an end knows of the other one: what the broker sends is followed, what cannot be its word changes nothing."""

from __future__ import annotations

import array
import os
import select
import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from ringway.agent.lifeline import Lifeline, PeerEvent
from ringway.control import wire
from ringway.control.errors import ControlError
from ringway.control.handover import Handover
from ringway.control.messages import Cause, Done, GeometryPart, Grant, Message, Peer

GEOMETRY = GeometryPart(queues=1, slot_count=64, slot_payload=256, headroom=128)


class World(NamedTuple):
    lifeline: Lifeline
    broker: socket.socket  # its half of the connection
    own_life: int  # the end that hangs up when this end lets go of its lifeline

    def send(self, message: Message, *descriptors: int) -> None:
        send(self.broker, wire.encode(wire.new_id(), message), *descriptors)

    def read(self) -> list[PeerEvent | None]:
        """All that is there, as an agent's loop would find it."""
        poll = select.poll()
        for fd in self.lifeline.descriptors():
            poll.register(fd, select.POLLIN)
        return [self.lifeline.on_readable(fd) for fd, _ in poll.poll(0)]

    def peer_there(self) -> bool:
        return self.lifeline.peer_attached


def send(connection: socket.socket, payload: bytes, *descriptors: int) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([payload], rights)
    for fd in descriptors:
        os.close(fd)


def hung_up(fd: int) -> bool:
    os.set_blocking(fd, False)
    try:
        return os.read(fd, 1) == b""
    except BlockingIOError:
        return False


@pytest.fixture
def world() -> Iterator[World]:
    agent, broker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    own_life, held_life = os.pipe()
    lifeline = Lifeline(Handover(agent, -1, [], 1, GEOMETRY, 1, held_life))
    yield World(lifeline, broker, own_life)
    lifeline.close()
    broker.close()
    os.close(own_life)


def test_the_other_end_is_there_from_the_brokers_word_on_until_its_lifeline_hangs_up(world: World) -> None:
    assert not world.peer_there()
    peer_read, peer_life = os.pipe()
    world.send(Peer(incarnation=3), peer_read)
    assert world.read() == [PeerEvent(True, 3)]
    assert world.peer_there()
    os.close(peer_life)  # it died
    assert world.read() == [PeerEvent(False, 3)]
    assert not world.peer_there()


def test_a_next_incarnation_takes_the_place_of_the_one_before_it_without_a_gap(world: World) -> None:
    first_read, first_life = os.pipe()
    next_read, next_life = os.pipe()
    world.send(Peer(incarnation=3), first_read)
    world.read()
    world.send(Peer(incarnation=4), next_read)
    os.close(first_life)
    assert world.lifeline.on_readable(world.lifeline.descriptors()[0]) == PeerEvent(True, 4)
    assert world.read() == [], "the first one's lifeline is not looked at"
    assert world.peer_there()
    os.close(next_life)


def test_a_second_grant_brings_another_lifeline_of_its_own_which_the_first_one_gives_way_to(world: World) -> None:
    other_read, other_held = os.pipe()
    world.send(Grant(link_id=1, geometry=GEOMETRY, incarnation=1), other_held)
    assert world.read() == [None]
    assert hung_up(world.own_life)
    assert not hung_up(other_read)
    world.lifeline.close()
    assert hung_up(other_read)
    os.close(other_read)


def test_a_broker_that_hangs_up_takes_nothing_of_the_other_end_with_it(world: World) -> None:
    peer_read, peer_life = os.pipe()
    world.send(Peer(incarnation=3), peer_read)
    world.read()
    world.broker.shutdown(socket.SHUT_RDWR)
    assert world.lifeline.on_readable(world.lifeline.descriptors()[0]) is None
    assert world.peer_there()
    os.close(peer_life)
    assert world.read() == [PeerEvent(False, 3)], "the connection is not polled any more"


@pytest.mark.parametrize(
    "payload",
    [b"\x00" * 40, wire.encode(wire.new_id(), Done())],
    ids=["no message", "a message of another socket"],
)
def test_what_is_no_word_of_a_broker_is_refused_and_its_descriptor_closed(world: World, payload: bytes) -> None:
    read, write = os.pipe()
    send(world.broker, payload, write)
    with pytest.raises(ControlError) as caught:
        world.read()
    assert caught.value.cause is Cause.PROTOCOL
    assert hung_up(read), "the descriptor that came with it is not kept"
    assert not world.peer_there()
    os.close(read)


def test_a_word_without_the_lifeline_that_it_is_to_bring_is_refused(world: World) -> None:
    world.send(Peer(incarnation=3))
    with pytest.raises(ControlError, match="without the lifeline") as caught:
        world.read()
    assert caught.value.cause is Cause.PROTOCOL
    assert not world.peer_there()


def test_a_descriptor_that_is_none_of_its_own_is_left_alone(world: World) -> None:
    assert world.lifeline.on_readable(world.own_life) is None


def test_when_it_is_closed_nothing_is_polled_and_its_own_lifeline_hangs_up(world: World) -> None:
    peer_read, peer_life = os.pipe()
    world.send(Peer(incarnation=3), peer_read)
    world.read()
    world.lifeline.close()
    world.lifeline.close()  # as often as one likes
    assert world.lifeline.descriptors() == []
    assert hung_up(world.own_life)
    assert not world.peer_there()
    os.close(peer_life)
