"""A broker is killed at any moment, and the next one has everything; no frame is lost by it."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ringway.control.client import Client
from ringway.control.errors import ControlError
from ringway.control.messages import Applied, Apply, Cause
from ringway.control.runtime import handover_path
from tests.support.broker_process import BrokerProcess, session_of, short_directory
from tests.support.fabric import Fabric
from tests.support.fabrics import FABRIC
from tests.support.keeper_process import await_end, keeper_by_hand, settled_descriptors, watching
from tests.support.restarts import (
    CHAIN,
    Chain,
    Descriptors,
    await_peer,
    come_to,
    ends_of,
    link_ids,
    listed,
    send_through,
)
from tests.support.waiting import until
from tools.soak.census import keeper_pid

SEED = 20
ROUNDS, ROUNDS_FULL = 10, 200
APPLIES, APPLIES_FULL = 6, 100
SIDE = 16  # each of so many VMs on one side has a link with each of so many on the other


@pytest.fixture
def runtime() -> Iterator[Path]:
    with short_directory() as path:
        yield path / "run"


def rounds(config: pytest.Config, few: int, many: int) -> int:
    return many if config.getoption("--full") else few


@pytest.mark.timeout(1800)  # with --full
def test_a_broker_killed_under_traffic_costs_no_frame_and_the_next_has_everything(
    fabric: Fabric, pytestconfig: pytest.Config
) -> None:
    chosen = random.Random(SEED)
    chain = Chain(fabric)
    broker = chain.broker
    before = ends_of(broker.show())
    assert {end.pid for end in before.values()} == {os.getpid(), chain.firewall.process.pid}
    with chain.traffic() as streams:
        after_one: Descriptors | None = None
        for _ in range(rounds(pytestconfig, ROUNDS, ROUNDS_FULL)):
            chosen.choice(streams).pass_on(chosen.randrange(5000))
            broker.restart()
            assert ends_of(broker.show()) == before
            chain.await_agents()
            after_one = after_one or chain.descriptors()
        until(lambda: chain.descriptors() == after_one, f"broker, keeper and agents have {after_one} again")
        assert [link.state for link in broker.show().links] == ["up"] * 3
        assert broker.apply(CHAIN).kept == ["direct", "in", "out"]
    for link in ("direct", "in", "out"):
        fabric.quiet(link)


def test_a_new_broker_adds_replaces_and_removes_links_of_the_old_one(fabric: Fabric) -> None:
    chain = Chain(fabric)
    broker = chain.broker
    broker.restart()
    chain.await_agents()
    more = CHAIN + '[vm.client.port.x]\nkind = "local"\n[vm.server.port.x]\nkind = "local"\n'
    with chain.traffic("net"):
        assert broker.apply(more + '[link.x]\nends = ["client.x", "server.x"]\n').made == ["x"]
        send_through((chain.client.port("x"), chain.server.port("x")), b"a frame of the new link")
        assert broker.apply(more.replace("slots = 64", "slots = 128", 1)).replaced == ["direct"]
        until(lambda: broker.link("direct").state == "up", "both ends have the replacement")
        send_through((chain.client.port("direct"), chain.server.port("direct")), b"a frame of the replacement")
    assert broker.apply(CHAIN).replaced == ["direct"]
    assert sorted(broker.apply("").removed) == ["direct", "in", "out"]
    assert broker.show().links == []


def test_the_registry_names_the_new_broker_and_the_old_holders(fabric: Fabric) -> None:
    chain = Chain(fabric)
    before = listed(fabric.runtime)
    assert before.broker_pid == chain.broker.process.pid
    chain.broker.stop(signal.SIGKILL)
    assert not listed(fabric.runtime).running
    chain.broker.start()
    after = listed(fabric.runtime)
    assert (after.running, after.broker_pid) == (True, chain.broker.process.pid)
    assert (after.links, after.fabric_id) == (before.links, before.fabric_id)


def many_links() -> str:
    pairs = [(a, b) for a in range(SIDE) for b in range(SIDE)]
    ports = "".join(
        f'[vm.left.port.l{a}-{b}]\nkind = "local"\n[vm.right.port.l{a}-{b}]\nkind = "local"\n' for a, b in pairs
    )
    links = "".join(f'[link.l{a}-{b}]\nends = ["left.l{a}-{b}", "right.l{a}-{b}"]\nslots = 64\n' for a, b in pairs)
    return ports + links


def test_256_links_are_adopted_with_all_their_ends(fabric: Fabric) -> None:
    broker = fabric.broker
    broker.apply(many_links())
    left, right = fabric.local("left"), fabric.local("right")
    kept, held = settled_descriptors(broker.runtime), broker.descriptors()
    before = ends_of(broker.show())
    assert len(before) == 2 * 256
    broker.restart()
    assert ends_of(broker.show()) == before
    assert {link.state for link in broker.show().links} == {"up"}
    assert "adopted 256 of 256 links" in broker.log()
    come_to(broker, kept, held)
    send_through((left.port("l3-7"), right.port("l3-7")), b"a frame of one of them")


def test_a_broker_with_a_low_soft_limit_adopts_more_descriptors_than_that(runtime: Path) -> None:
    with BrokerProcess(runtime) as broker:
        broker.apply(many_links())
        broker.stop(signal.SIGKILL)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        try:
            broker.start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert "adopted 256 of 256 links" in broker.log()


def half_of_links(which: int) -> str:
    """20 links, of which 10 are in both halves."""
    ports = "".join(f'[vm.v{n}.port.net]\nkind = "local"\n' for n in range(60))
    chosen = [*range(10), *range(10 + 10 * which, 20 + 10 * which)]
    links = (f'[link.l{n}]\nends = ["v{2 * n}.net", "v{2 * n + 1}.net"]\nslots = 64\n' for n in chosen)
    return ports + "".join(links)


@pytest.mark.timeout(1800)  # with --full
def test_a_broker_killed_in_the_middle_of_an_apply_leaves_the_old_fabric_or_the_new_one_and_nothing_else(
    runtime: Path, pytestconfig: pytest.Config
) -> None:
    chosen = random.Random(SEED)
    with BrokerProcess(runtime) as broker:
        broker.apply(half_of_links(0))
        broker.restart()
        kept, held = settled_descriptors(runtime), broker.descriptors()
        ids = link_ids(broker.show())
        stay = {name: ids[name] for name in list(ids)[:10]}
        of_halves = [set(link_ids_of_text(which)) for which in (0, 1)]
        for round_ in range(rounds(pytestconfig, APPLIES, APPLIES_FULL)):
            killed_over(broker, half_of_links(1 - round_ % 2), chosen.uniform(0, 0.06))
            broker.start()
            found = link_ids(broker.show())
            assert set(found) in of_halves
            assert found.items() >= stay.items()
            come_to(broker, kept, held)
            files = {path.name for path in runtime.iterdir()}
            assert files == {"control.sock", "handover.sock", "journal", "keeper.lock", "keeper.sock", "lock"}


def link_ids_of_text(which: int) -> list[str]:
    return [f"l{n}" for n in (*range(10), *range(10 + 10 * which, 20 + 10 * which))]


def killed_over(broker: BrokerProcess, text: str, seconds: float) -> None:
    """So long after an apply was asked for."""
    with Client(broker.runtime) as client, ThreadPoolExecutor(1) as thread:
        call = thread.submit(client.call, Apply(name="fabric.toml", text=text), Applied, 1.0)
        with contextlib.suppress(TimeoutError):
            call.exception(timeout=seconds)
        broker.stop(signal.SIGKILL)
        error = call.exception()
    over = (Cause.TIMEOUT, Cause.NO_BROKER)  # it did not hear of the end, or it did
    assert error is None or (isinstance(error, ControlError) and error.cause in over)


@pytest.mark.timeout(1800)  # with --full
def test_agents_whose_broker_is_killed_over_their_handovers_are_attached_by_the_next(
    fabric: Fabric, pytestconfig: pytest.Config
) -> None:
    broker = fabric.broker
    chosen = random.Random(SEED)
    ports = "".join(f'[vm.{vm}.port.p{n}]\nkind = "local"\n' for vm in ("left", "right") for n in range(16))
    links = "".join(f'[link.l{n}]\nends = ["left.p{n}", "right.p{n}"]\nslots = 64\n' for n in range(16))
    broker.apply(ports)
    left, right = fabric.local("left"), fabric.local("right")
    for _ in range(rounds(pytestconfig, 2, 30)):
        killed_over(broker, ports + links, chosen.uniform(0, 0.2))
        broker.start()
        broker.apply(ports + links)
        until(lambda: [link.state for link in broker.show().links] == ["up"] * 16, "all links are up")
        for n in range(16):
            ends = left.port(f"p{n}"), right.port(f"p{n}")
            send_through(ends, b"a frame of each of them")
            for end in ends:
                await_peer(end, there=True)
        broker.apply(ports)


def test_an_agent_whose_first_handover_fails_with_its_broker_tries_again_until_there_is_another(fabric: Fabric) -> None:
    """As it is between a broker's Welcome and the next one's start, for as long as that takes."""
    fabric.broker.apply(FABRIC)
    handover = handover_path(fabric.runtime)
    away = handover.with_name("away")
    handover.rename(away)
    agent = fabric.start("client")
    agent.await_line("no broker hands over")
    away.rename(handover)
    agent.await_line("attached port net")
    assert fabric.broker.link().ends[0].held


def test_an_agent_that_dies_while_there_is_no_broker_is_missed_by_the_next(fabric: Fabric) -> None:
    chain = Chain(fabric)
    broker = chain.broker
    (incarnation,) = {end.incarnation for name, end in ends_of(broker.show()).items() if name.startswith("fw.")}
    broker.stop(signal.SIGKILL)
    chain.firewall.stop(signal.SIGKILL)
    broker.start()
    until(lambda: ends_of(broker.show())["fw.inside"].pid == 0, "the broker has noticed")
    assert broker.link("in").state == "half"
    assert broker.vm("fw").state == "away"
    firewall = fabric.agent("fw")
    ends = ends_of(broker.show())
    for port in ("fw.inside", "fw.outside"):
        assert ends[port][1:] == (firewall.process.pid, incarnation + 1)
    with chain.traffic() as streams:
        for stream in streams:
            stream.pass_on(1000)


def test_a_stranger_is_refused_by_the_next_broker_before_the_holder_has_said_hello(fabric: Fabric) -> None:
    chain = Chain(fabric)
    broker, firewall = chain.broker, chain.firewall.process
    before = ends_of(broker.show())
    firewall.send_signal(signal.SIGSTOP)
    try:
        broker.restart()
        with session_of(fabric.runtime, "fw") as stranger, pytest.raises(ControlError) as caught:
            stranger.hello()
        assert caught.value.cause is Cause.AGENT_EXISTS
        assert f"pid {firewall.pid}" in caught.value.message
    finally:
        firewall.send_signal(signal.SIGCONT)
    chain.await_agents()
    assert broker.vm("fw").pid == firewall.pid
    assert ends_of(broker.show()) == before


def test_a_broker_told_to_stop_ends_its_keeper_and_the_next_says_which_links_it_has_not(fabric: Fabric) -> None:
    chain = Chain(fabric)
    broker, runtime = chain.broker, fabric.runtime
    keeper = keeper_pid(runtime)
    assert keeper is not None
    with chain.traffic() as streams:
        with watching(keeper) as pid_fd:
            assert broker.stop(signal.SIGTERM)[0] == 0
            await_end(pid_fd)
        assert sorted(path.name for path in runtime.iterdir()) == ["journal", "keeper.lock", "lock"]
        broker.start()
        chain.await_agents()
        for link in broker.show().links:
            assert (link.state, [end.held for end in link.ends]) == ("lost", [True, True])
            assert "its memory was lost" in link.note
        for stream in streams:
            stream.pass_on(1000)
    lost = ends_of(broker.show())
    with chain.traffic("direct") as streams:
        chain.firewall.stop(signal.SIGKILL)
        fabric.agent("fw")
        until(lambda: [broker.link(name).state for name in ("in", "out")] == ["up", "up"], "both have new links")
        (stream,) = streams
        stream.pass_on(1000)
    assert ends_of(broker.show())["client.direct"] == lost["client.direct"]
    with chain.traffic("net") as streams:
        streams[0].pass_on(1000)


def test_a_keeper_started_by_itself_keeps_everything_when_the_broker_is_told_to_stop(runtime: Path) -> None:
    with keeper_by_hand(runtime) as keeper, BrokerProcess(runtime) as broker:
        broker.apply()
        with session_of(runtime, "client") as session:
            held = broker.take(session.hello().offers[0], "client")
            before = broker.link().link_id
            assert broker.stop(signal.SIGTERM)[0] == 0
            assert keeper_pid(runtime) == keeper
            broker.start()
            link = broker.link()
            assert (link.link_id, link.state, link.ends[0].held) == (before, "down", True)
            held.discard()
            broker.stop(signal.SIGTERM)
