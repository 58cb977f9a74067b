"""One forwarder with two pairs of ports: what is dead behind the one neither costs the other a frame nor stops it."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from ringway.control.messages import RingShown
from tests.support.fabric import Fabric, check_books, fell
from tests.support.waiting import until
from tests.system.test_chains import FRAMES, SLOTS, frame, receive_all, send_all

PAIRS = ("dead", "live")
SIDES = ("left", "right")


def fabric_text() -> str:
    """left-dead → firewall → right-dead, and left-live → firewall → right-live."""
    parts = []
    for pair in PAIRS:
        for side in SIDES:
            parts += [f'[vm.{side}-{pair}.port.p]\nkind = "local"', f'[vm.firewall.port.{side}-{pair}]\nkind = "local"']
            parts.append(f'[link.{side}-{pair}]\nends = ["{side}-{pair}.p", "firewall.{side}-{pair}"]\nslots = {SLOTS}')
    pairs = ", ".join(f'["left-{pair}", "right-{pair}"]' for pair in PAIRS)
    return "\n".join([*parts, f'[vm.firewall.stack]\nforward = [{pairs}]\ndefault = "allow"'])


def rings(fabric: Fabric, pair: str) -> list[RingShown]:
    return [ring for side in SIDES for ring in fabric.broker.link(f"{side}-{pair}").rings]


def to_the_dead(fabric: Fabric) -> RingShown:
    return fabric.ring("right-dead", producing_side=1)


def carry_both_ways(fabric: Fabric) -> None:
    """All numbers over the live pair, in both directions, each in order."""
    left, right = (fabric.port(f"{side}-live") for side in SIDES)
    with ThreadPoolExecutor(4) as threads:
        work = [threads.submit(what, port, range(FRAMES)) for what in (send_all, receive_all) for port in (left, right)]
        for done in work:
            done.result()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_pair_neither_holds_up_nor_costs_a_frame_of_the_live_one_beside_it(
    fabric: Fabric, number: signal.Signals
) -> None:
    fabric.apply(fabric_text())
    fabric.agent("firewall")
    left = fabric.port("left-dead")
    fell(fabric.peer("sink", "right-dead"), number)
    with ThreadPoolExecutor(1) as thread:
        sending = thread.submit(left.send, [frame(0)] * FRAMES, timeout=60)
        until(lambda: to_the_dead(fabric).in_flight == SLOTS, "the ring towards the dead one is full")
        carry_both_ways(fabric)
        assert sending.result() == FRAMES, "the forwarder gives up waiting, and drops"
    until(lambda: to_the_dead(fabric).offered == FRAMES, "all came to the dead end")
    assert to_the_dead(fabric).drops_produced == {"full": FRAMES - SLOTS}
    for side in SIDES:
        fabric.quiet(f"{side}-live")
    for ring in rings(fabric, "live"):
        assert (ring.offered, ring.published, ring.delivered) == (FRAMES,) * 3
        assert (ring.drops_produced, ring.drops_consumed) == ({}, {})
    for ring in rings(fabric, "dead"):
        check_books(ring)
