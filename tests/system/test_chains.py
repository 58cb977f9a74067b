"""Firewalls in a row at full rate: none of them loses a frame, and behind a dead one only the one before it does."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ringway.agent import Port
from tests.support.fabric import AgentProcess, Fabric, check_books, fell
from tests.support.waiting import until

SLOTS = 64
FRAMES = 20_000
BURST = 256


def chain(hops: int, circle: bool = False) -> str:
    """left → firewall0 → firewall1 → … → right; a circle has no ends, and the last firewall leads to the first."""
    vms, links = [], []
    for hop in range(hops):
        vms += [f'[vm.firewall{hop}.port.{port}]\nkind = "local"' for port in ("inside", "outside")]
        vms.append(f'[vm.firewall{hop}.stack]\nforward = [["inside", "outside"]]\ndefault = "allow"')
    ends = ["left.p", *(f"firewall{hop}.{port}" for hop in range(hops) for port in ("inside", "outside")), "right.p"]
    if circle:
        ends = [*ends[2:-1], ends[1]]
    else:
        vms += [f'[vm.{vm}.port.p]\nkind = "local"' for vm in ("left", "right")]
    for number, pair in enumerate(zip(ends[::2], ends[1::2], strict=True)):
        links.append(f'[link.link{number}]\nends = ["{pair[0]}", "{pair[1]}"]\nslots = {SLOTS}')
    return "\n".join(vms + links)


def frame(number: int) -> bytes:
    return bytes(12) + b"\x88\xb5" + number.to_bytes(4, "big") + bytes(42)


def send_all(port: Port, numbers: range) -> None:
    for first in range(numbers.start, numbers.stop, BURST):
        burst = [frame(number) for number in range(first, min(first + BURST, numbers.stop))]
        assert port.send(burst, timeout=60) == len(burst)


def receive_all(port: Port, numbers: range) -> None:
    due = numbers.start
    while due != numbers.stop:
        frames = port.receive(BURST, timeout=60)
        assert frames, f"{due} of {numbers.stop} frames came"
        numbers_in = [int.from_bytes(one[14:18], "big") for one in frames]
        assert numbers_in == list(range(due, due + len(frames)))
        due += len(frames)


@contextlib.contextmanager
def sending(port: Port, numbers: range) -> Iterator[None]:
    with ThreadPoolExecutor(1) as thread:
        sent = thread.submit(send_all, port, numbers)
        yield
        sent.result()


def dropped(fabric: Fabric, hops: int) -> list[dict[str, int]]:
    """By cause, link by link, on the way from left to right; all books are looked at."""
    found = []
    for number in range(hops + 1):
        for ring in fabric.broker.link(f"link{number}").rings:
            check_books(ring)
        ring = fabric.ring(f"link{number}")
        found.append(ring.drops_produced | ring.drops_consumed)
    return found


@pytest.mark.parametrize("hops", [2, 4, pytest.param(8, marks=pytest.mark.full)])
def test_a_chain_loses_nothing_at_full_rate_and_each_end_agrees_with_the_next(fabric: Fabric, hops: int) -> None:
    fabric.apply(chain(hops))
    for hop in range(hops):
        fabric.agent(f"firewall{hop}")
    left, right = fabric.port("left"), fabric.port("right")
    numbers = range(FRAMES)
    with sending(left, numbers), sending(right, numbers), ThreadPoolExecutor(2) as threads:
        for received in [threads.submit(receive_all, port, numbers) for port in (left, right)]:
            assert received.exception() is None, f"{received.exception()}: {dropped(fabric, hops)}"
    for number in range(hops + 1):
        for ring in fabric.quiet(f"link{number}").rings:
            assert (ring.offered, ring.published, ring.delivered) == (FRAMES,) * 3
            assert (ring.drops_produced, ring.drops_consumed) == ({}, {})


def await_drops(fabric: Fabric, link: str) -> None:
    until(lambda: fabric.ring(link).drops_produced.get("full", 0) > 2 * SLOTS, f"{link} drops", 60)


def test_before_a_receiver_that_stands_still_only_the_last_firewall_drops(fabric: Fabric) -> None:
    hops = 4
    fabric.apply(chain(hops))
    for hop in range(hops):
        fabric.agent(f"firewall{hop}")
    left, right = fabric.port("left"), fabric.port("right")
    send_all(left, range(FRAMES))
    await_drops(fabric, f"link{hops}")
    until(lambda: fabric.ring(f"link{hops}").offered == FRAMES, "all frames came to the end of the chain")
    assert dropped(fabric, hops) == [*[{}] * hops, {"full": FRAMES - SLOTS}]
    receive_all(right, range(SLOTS))
    with sending(left, range(FRAMES)):
        receive_all(right, range(FRAMES))
    assert dropped(fabric, hops) == [*[{}] * hops, {"full": FRAMES - SLOTS}], "it waits again"


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.full)])
def test_before_a_firewall_that_is_killed_or_stopped_only_the_one_before_it_drops(
    fabric: Fabric, number: signal.Signals
) -> None:
    hops, dead = 3, 2
    fabric.apply(chain(hops))
    agents: list[AgentProcess] = [fabric.agent(f"firewall{hop}") for hop in range(hops)]
    left, right = fabric.port("left"), fabric.port("right")
    fell(agents[dead].process, number)
    send_all(left, range(FRAMES))
    await_drops(fabric, f"link{dead}")
    until(lambda: fabric.ring(f"link{dead}").offered == FRAMES, "all frames came to the dead end")
    assert dropped(fabric, hops) == [*[{}] * dead, {"full": FRAMES - SLOTS}, {}]
    if number is signal.SIGKILL:
        fabric.agent(f"firewall{dead}")
    else:
        agents[dead].process.send_signal(signal.SIGCONT)
    receive_all(right, range(SLOTS))
    with sending(left, range(FRAMES)):
        receive_all(right, range(FRAMES))
    assert dropped(fabric, hops) == [*[{}] * dead, {"full": FRAMES - SLOTS}, {}], "it waits again"


def await_moving(fabric: Fabric, link: str) -> None:
    """By a hundred times what it holds."""
    before = fabric.ring(link).delivered
    until(lambda: fabric.ring(link).delivered > before + 100 * SLOTS, f"{link} moves", 60)


def test_a_circle_of_firewalls_that_is_full_in_all_its_rings_goes_on(fabric: Fabric) -> None:
    """The first is an application's at the beginning, which fills the rings from the last one on; its stack comes then.

    The others are stopped as soon as they have no room, so that their time begins when all run.
    """
    hops = 3
    text = chain(hops, circle=True)
    stack = '[vm.firewall0.stack]\nforward = [["inside", "outside"]]\ndefault = "allow"\n'
    fabric.apply(text.replace(stack, ""))
    agents = [fabric.agent(f"firewall{hop}") for hop in range(1, hops)]
    first = fabric.local("firewall0")
    out = first.port("outside")
    for hop in reversed(range(hops)):
        assert out.send([frame(0)] * SLOTS, timeout=60) == SLOTS
        until(lambda link=f"link{hop}": fabric.ring(link).in_flight == SLOTS, f"link{hop} is full")  # type: ignore[misc]
        if hop != 0:
            fell(agents[hop - 1].process, signal.SIGSTOP)
    first.stop()
    fabric.apply(text)
    fabric.agent("firewall0")
    for agent in agents:
        agent.process.send_signal(signal.SIGCONT)
    for link in (f"link{number}" for number in range(hops)):
        await_moving(fabric, link)
