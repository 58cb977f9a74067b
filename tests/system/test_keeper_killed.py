"""The keeper is killed, alone or with its broker: links go on, and what can be mended is mended."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.broker_process import BrokerProcess, run_ringway, short_directory
from tests.support.fabric import Fabric
from tests.support.fabrics import parallel_links
from tests.support.keeper_process import keys, reached, settled_descriptors
from tests.support.restarts import CHAIN, Chain, ends_of, kill_keeper, link_ids
from tests.support.waiting import until
from tools.soak.census import keeper_pid

MENDED = "has everything again"


@pytest.fixture
def runtime() -> Iterator[Path]:
    with short_directory() as path:
        yield path / "run"


def await_another_keeper(broker: BrokerProcess, times: int) -> None:
    until(lambda: broker.log().count(MENDED) == times, "the broker has another keeper")


def test_a_killed_keeper_costs_no_frame_and_the_next_one_has_everything(fabric: Fabric) -> None:
    chain = Chain(fabric)
    broker = chain.broker
    before, base = ends_of(broker.show()), chain.descriptors()
    with chain.traffic() as streams:
        for times in (1, 2, 3):
            first = kill_keeper(fabric.runtime)
            await_another_keeper(broker, times)
            assert keeper_pid(fabric.runtime) != first
            for stream in streams:
                stream.pass_on(1000)
        until(lambda: chain.descriptors() == base, f"broker, keeper and agents have {base} again")
        broker.stop(signal.SIGKILL)
        with reached(fabric.runtime) as keeper:
            kinds = [key.partition("/")[0] for key in keys(keeper)]
        assert kinds == [*["end"] * 6, "handover", *["link"] * 3], (
            "no moment at which a link is there without its holders"
        )
        broker.start()
        assert ends_of(broker.show()) == before
        chain.await_agents()
        assert [link.state for link in broker.show().links] == ["up"] * 3
        assert broker.apply(CHAIN).kept == ["direct", "in", "out"]


def kill_broker_and_keeper(broker: BrokerProcess) -> None:
    """The broker has no time to find another keeper."""
    broker.process.send_signal(signal.SIGSTOP)
    kill_keeper(broker.runtime)
    broker.stop(signal.SIGKILL)


def test_links_go_on_when_broker_and_keeper_are_killed_at_once_and_are_made_anew_for_who_needs_them(
    fabric: Fabric,
) -> None:
    chain = Chain(fabric)
    broker = chain.broker
    with chain.traffic("direct") as streams:
        with chain.traffic("net") as others:
            before = link_ids(broker.show())
            kill_broker_and_keeper(broker)
            for stream in streams + others:
                stream.pass_on(1000)
            broker.start()
            chain.await_agents()
            shown = broker.show().links
            assert [(link.state, [end.held for end in link.ends]) for link in shown] == [("lost", [True, True])] * 3
            assert all("its memory was lost with broker and keeper" in link.note for link in shown)
            assert broker.log().count("it is recreated when an end needs it") == 3
            for stream in streams + others:
                stream.pass_on(1000)
        chain.firewall.stop(signal.SIGKILL)
        fabric.agent("fw")
        until(lambda: [broker.link(name).state for name in ("in", "out")] == ["up", "up"], "the peers have followed")
        with chain.traffic("net") as others:
            others[0].pass_on(1000)
        streams[0].pass_on(1000)
        after = link_ids(broker.show())
        assert after["direct"] == before["direct"]
        assert after["in"] != before["in"]


def test_a_plan_says_which_links_were_lost_and_an_apply_makes_them_anew(fabric: Fabric) -> None:
    chain = Chain(fabric)
    broker = chain.broker
    kill_broker_and_keeper(broker)
    broker.start()
    chain.await_agents()
    file = fabric.runtime.parent / "fabric.toml"
    file.write_text(CHAIN, encoding="utf-8")
    planned = run_ringway("plan", str(file), "--runtime", str(fabric.runtime)).stdout.splitlines()
    lost = "its memory was lost with broker and keeper, and only its two ends have it"
    assert [line.partition("): ")[0] for line in planned[:3]] == [
        f"replaced: {name} ({lost}" for name in ("direct", "in", "out")
    ]
    assert planned[3] == "kept: 0 links, which lose nothing"
    assert broker.apply(CHAIN).replaced == ["direct", "in", "out"]
    until(lambda: [link.state for link in broker.show().links] == ["up"] * 3, "all ends have followed")
    with chain.traffic() as streams:
        for stream in streams:
            stream.pass_on(1000)


def test_a_keeper_that_was_stopped_has_what_was_made_and_not_what_was_removed_meanwhile(runtime: Path) -> None:
    with BrokerProcess(runtime) as broker:
        texts = (parallel_links(100, "a"), parallel_links(100, "b"))
        for text in texts:
            broker.apply(text)
        kept = settled_descriptors(runtime)
        keeper = keeper_pid(runtime)
        assert keeper is not None
        os.kill(keeper, signal.SIGSTOP)
        try:
            turn = 0
            while "did not listen" not in broker.log():
                broker.apply(texts[turn % 2])
                turn += 1
        finally:
            os.kill(keeper, signal.SIGCONT)
        await_another_keeper(broker, 1)
        assert keeper_pid(runtime) == keeper
        assert settled_descriptors(runtime) == kept
        before = link_ids(broker.show())
        broker.restart()
        assert link_ids(broker.show()) == before
        assert "adopted 100 of 100 links" in broker.log()
