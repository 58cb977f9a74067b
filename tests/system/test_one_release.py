"""Broker, agents, keeper and ends of a region are of one release: another is refused, and both versions are named."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgpack
import pytest
import zmq

from ringway.agent import Agent
from ringway.broker import keeper_server
from ringway.broker.keeper_client import Keeper
from ringway.control import wire
from ringway.control.client import AgentSession, Client
from ringway.control.errors import ControlError
from ringway.control.messages import FROM_BROKER, Cause, ErrorReply, Show, Shown
from ringway.control.release import RELEASE
from ringway.control.runtime import control_path
from ringway.shm import RefusalCause, RegionError
from tests.support.broker_process import BrokerProcess, short_directory
from tests.support.carrier import carrier
from tests.support.fabrics import FABRIC
from tests.support.keeper_process import running_keeper

OTHER = "0.0.7"
OTHER_WIRE = wire.VERSION + 1


@pytest.fixture
def broker() -> Iterator[BrokerProcess]:
    with short_directory() as path, BrokerProcess(path / "run") as process:
        process.apply(FABRIC)
        yield process


def names_both(text: str, theirs: object, ours: object) -> bool:
    return str(theirs) in text and str(ours) in text


def test_an_agent_of_another_release_is_refused_and_says_what_to_do(
    broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringway.agent.agent.AgentSession", partial(AgentSession, version=OTHER))
    with pytest.raises(ControlError) as refusal, Agent("client", broker.runtime):
        pass
    assert refusal.value.cause is Cause.VERSION
    assert names_both(refusal.value.message, OTHER, RELEASE)
    assert "install one release on both sides, and restart the older one" in refusal.value.message
    (client, _) = broker.show().vms
    assert client.state == "away"


def test_an_agent_that_a_broker_of_another_release_follows_says_so_and_its_link_goes_on(
    broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with Agent("client", broker.runtime, log=said.append) as client, Agent("server", broker.runtime) as server:
        sending, receiving = client.port("net"), server.port("net")
        assert client._session is not None
        monkeypatch.setattr(client._session, "_version", OTHER)  # as if it were the broker that is another
        broker.stop(signal.SIGKILL)
        broker.start()
        frame = b"\x02" * 64
        while not any(names_both(line, OTHER, RELEASE) for line in said):
            assert sending.send([frame], timeout=10) == 1
            assert receiving.receive(timeout=10) == [frame]
        monkeypatch.undo()


def test_a_message_of_another_version_is_answered_with_both(broker: BrokerProcess) -> None:
    context = zmq.Context()
    with context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.connect(f"ipc://{control_path(broker.runtime)}")
        peer.send(msgpack.packb({"v": OTHER_WIRE, "id": "a" * 32, "kind": "Show", "body": {}}))
        assert peer.poll(10_000)
        answer = wire.decode(peer.recv(), FROM_BROKER).message
    context.term()
    assert isinstance(answer, ErrorReply)
    assert answer.cause is Cause.VERSION
    assert names_both(answer.message, f"version {OTHER_WIRE}", f"speaks {wire.VERSION}")


def test_a_command_that_a_broker_of_another_version_answers_names_both(
    broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(broker.runtime) as client:
        monkeypatch.setattr(wire, "VERSION", OTHER_WIRE)
        with pytest.raises(ControlError) as refusal:
            client.call(Show(), Shown)
    assert refusal.value.cause is Cause.VERSION
    assert names_both(refusal.value.message, f"version {OTHER_WIRE - 1}", f"speaks {OTHER_WIRE}")


def test_a_keeper_of_another_version_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours = keeper_server.VERSION
    with short_directory() as path, running_keeper(path / "run") as keeper:
        keeper.close()
        monkeypatch.setattr(keeper_server, "VERSION", ours + 1)
        with pytest.raises(ControlError) as refusal:
            Keeper.reach(path / "run")
        monkeypatch.undo()
    assert names_both(refusal.value.message, f"speaks version {ours}", f"this broker {ours + 1}")


def test_a_region_of_another_layout_is_refused_and_both_versions_are_named() -> None:
    with carrier() as made:
        made.write(1, 0, "rway_header", "minor")
        with pytest.raises(RegionError) as refusal:
            made.attach(0)
    assert refusal.value.cause is RefusalCause.VERSION
    assert names_both(str(refusal.value), "is 1", "expected 0")
    assert "use the same release of ringway at both ends" in str(refusal.value)
