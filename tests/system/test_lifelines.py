"""The two ends of a link know of each other's death without a broker, and find each other again with one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from ringway.agent import Agent
from tests.support.broker_process import BrokerProcess, own_descriptors
from tests.support.fabric import Fabric
from tests.support.fabrics import FABRIC
from tests.support.keeper_process import settled_descriptors
from tests.support.restarts import Chain, await_peer, send_through
from tests.support.waiting import until

ROUNDS = 50
KILLS, KILLS_FULL = 3, 50


@contextmanager
def logging_agent(vm: str, runtime: Path) -> Iterator[tuple[Agent, list[str]]]:
    lines: list[str] = []
    with Agent(vm, runtime, log=lines.append) as agent:
        yield agent, lines


def test_an_end_that_dies_without_a_broker_is_missed_by_the_other_and_greeted_when_both_are_back(
    fabric: Fabric,
) -> None:
    chain = Chain(fabric)
    port = chain.client.port("net")
    await_peer(port, there=True)
    with chain.traffic("direct") as streams:
        chain.broker.stop(signal.SIGKILL)
        assert port.peer_attached
        chain.firewall.stop(signal.SIGKILL)
        await_peer(port, there=False)
        streams[0].pass_on(1000)
        assert port.send([b"a frame that waits for it"], timeout=20) == 1
        firewall = fabric.start("fw")
        firewall.await_line("waiting")
        chain.broker.start()
        firewall.await_line("ready")
        await_peer(port, there=True)
        assert chain.server.port("net").receive(timeout=20) == [b"a frame that waits for it"]
        streams[0].pass_on(1000)


def is_logged(fabric: Fabric, text: str) -> bool:
    return text in fabric.broker.log()


def test_an_agent_logs_and_tells_the_broker_that_its_peer_left_and_came(fabric: Fabric) -> None:
    fabric.broker.apply(FABRIC)
    with logging_agent("client", fabric.runtime) as (client, lines):
        port = client.port("net")
        for incarnation in (1, 2):
            with Agent("server", fabric.runtime):
                await_peer(port, there=True)
            await_peer(port, there=False)
            for what in ("attached", "left"):
                assert f"the other end of link one {what} (incarnation {incarnation})" in lines
                told = f"VM 'client', port 'net', link 'one': peer {what} (incarnation {incarnation})"
                until(partial(is_logged, fabric, told), told)


def test_descriptors_return_to_their_base_over_50_deaths_of_an_end_and_5_of_the_broker(fabric: Fabric) -> None:
    broker = fabric.broker
    broker.apply(FABRIC)
    with Agent("client", fabric.runtime) as client:
        port = client.port("net")

        def live_and_die() -> None:
            with Agent("server", fabric.runtime) as server:
                send_through((port, server.port("net")), b"a frame to this incarnation")
            await_peer(port, there=False)

        live_and_die()
        broker.restart()
        until(lambda: broker.vm("client").state == "present", "it has said hello")
        base = descriptors(broker)
        for round_ in range(ROUNDS):
            live_and_die()
            if round_ % 10 == 9:
                broker.restart()
                until(lambda: broker.vm("client").state == "present", "it has said hello")
        until(lambda: descriptors(broker) == base, f"broker, keeper and agent have {base} again")
        assert broker.link().ends[1].incarnation == ROUNDS + 1


def descriptors(broker: BrokerProcess) -> tuple[int, int, int]:
    return broker.descriptors(), settled_descriptors(broker.runtime), own_descriptors()


@pytest.mark.timeout(1800)  # with --full
def test_a_firewall_that_is_killed_again_and_again_with_and_without_a_broker_comes_back(
    fabric: Fabric, pytestconfig: pytest.Config
) -> None:
    chain = Chain(fabric)
    port = chain.client.port("net")
    base = chain.descriptors()
    with chain.traffic("direct") as streams:
        for round_ in range(KILLS_FULL if pytestconfig.getoption("--full") else KILLS):
            if round_ % 2 == 0:
                chain.broker.stop(signal.SIGKILL)
            chain.firewall.stop(signal.SIGKILL)
            await_peer(port, there=False)
            streams[0].pass_on(100)
            if round_ % 2 == 0:
                chain.broker.start()
            chain.firewall = fabric.agent("fw")
            await_peer(port, there=True)
            chain.await_agents()
        until(lambda: chain.descriptors() == base, f"broker, keeper and agents have {base} again")
    with chain.traffic("net") as streams:
        streams[0].pass_on(1000)
