"""Crowds on the control socket: they take neither the broker, nor links, nor agents that are connected."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from ringway.control import wire
from ringway.control.errors import ControlError
from ringway.control.messages import FROM_BROKER, Cause, Hello, Welcome
from ringway.control.release import RELEASE
from ringway.control.runtime import control_path
from tests.support.broker_process import BrokerProcess, only_offer, session_of, short_directory

LIMIT = 700  # the hard limit on descriptors of the broker and of what it starts
PATIENCE = 20  # seconds


@pytest.fixture
def broker() -> Iterator[BrokerProcess]:
    with room_for_many(), short_directory() as path, BrokerProcess(path / "run", descriptors_max=LIMIT) as process:
        process.apply()
        yield process


@contextlib.contextmanager
def room_for_many() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip(f"a crowd needs more descriptors than the hard limit, {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def listener_pid(broker: BrokerProcess) -> int:
    """Of the broker's children the one that serves the control socket."""
    children = Path(f"/proc/{broker.process.pid}/task/{broker.process.pid}/children").read_text().split()
    (pid,) = [int(pid) for pid in children if b"listener_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return pid


@contextlib.contextmanager
def silent_crowd(broker: BrokerProcess, count: int) -> Iterator[None]:
    with contextlib.ExitStack() as crowd:
        for _ in range(count):
            silent = crowd.enter_context(socket.socket(socket.AF_UNIX))
            silent.connect(str(control_path(broker.runtime)))  # waits for its place in the backlog
        yield


def test_a_silent_crowd_disturbs_no_agent_that_is_connected(broker: BrokerProcess) -> None:
    listener = listener_pid(broker)
    with session_of(broker.runtime, "client") as session:
        held = broker.take(only_offer(session.hello()), "client")
        with silent_crowd(broker, LIMIT - 200):  # more than are let in, and fewer than could take the reserve
            assert session.hello(PATIENCE).vm == "client"
            assert not session.rejoined()
        held.discard()
    assert listener_pid(broker) == listener
    code, log = broker.stop()
    assert code == 0
    assert "connections were closed, for there are" in log


def test_a_crowd_larger_than_all_descriptors_takes_neither_broker_nor_links(broker: BrokerProcess) -> None:
    with session_of(broker.runtime, "client") as session:
        held = broker.take(only_offer(session.hello()), "client")
        with silent_crowd(broker, 2 * LIMIT):
            pass
        assert broker.link().ends[0].held
        held.discard()
    assert broker.stop()[0] == 0


def test_a_listener_that_dies_is_replaced_and_agents_come_back_to_their_links(broker: BrokerProcess) -> None:
    with session_of(broker.runtime, "client") as session:
        held = broker.take(only_offer(session.hello()), "client")
        for _ in range(2):
            os.kill(listener_pid(broker), signal.SIGABRT)
            assert session.monitor.poll(PATIENCE * 1000)
            while not session.rejoined():
                assert session.monitor.poll(PATIENCE * 1000), "the session does not come back"
            assert session.hello(PATIENCE).offers[0].link_id == held.link_id
            assert broker.link().ends[0].held
        held.discard()
    assert "has died" in broker.stop()[1]


def test_a_listener_ends_with_its_broker(broker: BrokerProcess) -> None:
    gone = os.pidfd_open(listener_pid(broker))
    broker.process.kill()
    assert select.select([gone], [], [], PATIENCE)[0]
    os.close(gone)


def test_more_agents_than_can_be_connected_are_not_promised(broker: BrokerProcess) -> None:
    with pytest.raises(ControlError, match=r"agents need 600 connections.*LimitNOFILE") as caught:
        broker.apply("".join(f'[vm.v{number}.port.net]\nkind = "local"\n' for number in range(600)))
    assert caught.value.cause is Cause.LIMIT
    assert broker.link().state == "down", "nothing has been changed"


@pytest.mark.full
def test_all_agents_of_all_links_that_were_promised_can_be_connected() -> None:
    links = (3600 - 520) // 13
    text = "".join(
        f'[vm.a{n}.port.net]\nkind = "local"\n[vm.b{n}.port.net]\nkind = "local"\n'
        f'[link.l{n}]\nends = ["a{n}.net", "b{n}.net"]\nslots = 64\n'
        for n in range(links)
    )
    with room_for_many(), short_directory() as path, BrokerProcess(path / "run", descriptors_max=3600) as broker:
        broker.apply(text)
        with zmq.Context() as context, contextlib.ExitStack() as agents:
            context.set(zmq.MAX_SOCKETS, 2000)
            for vm in (f"{side}{n}" for n in range(links) for side in "ab"):
                dealer: zmq.Socket[bytes] = agents.enter_context(context.socket(zmq.DEALER))
                dealer.setsockopt(zmq.LINGER, 0)
                dealer.connect(f"ipc://{control_path(broker.runtime)}")
                dealer.send(wire.encode(wire.new_id(), Hello(vm=vm, pid=os.getpid(), version=RELEASE)))
                assert dealer.poll(PATIENCE * 1000), f"the agent of {vm} is not heard"
                assert isinstance(wire.decode(dealer.recv(), FROM_BROKER, wire.REPLY_SIZE).message, Welcome)
        assert broker.stop()[0] == 0
