"""Effects carried out for real: memory and bells are made, handed to the right side, and undone when one fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.broker.config.checks import parse_config
from ringway.broker.fabric import Fabric, Plan
from ringway.broker.keeper_entries import KeeperEntries
from ringway.broker.links import RESERVE, Resources, descriptors_of
from ringway.control.errors import ControlError
from ringway.control.messages import Cause
from ringway.shm import read_region
from tests.support.broker_process import own_descriptors, room_for_descriptors, short_directory

VMS = "".join(f'[vm.v{n}.port.net]\nkind = "local"\n' for n in range(6))


def plan_of(count: int) -> Plan:
    links = (
        f'[link.l{n}]\nends = ["v{2 * n}.net", "v{2 * n + 1}.net"]\nslots = 64\nqueues = 2\n' for n in range(count)
    )
    return Fabric(Path("run")).plan(parse_config(VMS + "".join(links), "fabric.toml"))


def settled() -> None:
    """There is no journal here."""


@pytest.fixture
def keeping() -> Iterator[KeeperEntries]:
    """A real keeper, which ends with the test."""
    with short_directory() as runtime:
        kept = KeeperEntries(runtime, print)
        yield kept
        kept.close(end=True)


@pytest.fixture
def resources(keeping: KeeperEntries) -> Iterator[Resources]:
    made = Resources(100_000, keeping)
    yield made
    made.close()


def test_a_made_link_can_be_read_and_removed(resources: Resources) -> None:
    before = own_descriptors()
    resources.carry_out(plan_of(1).effects, settled)
    ((link_id, held),) = resources.links.items()
    assert read_region(held.region_fd).link_id == link_id
    assert own_descriptors() - before == 1 + 8 * 2
    resources.close()
    assert own_descriptors() == before


def test_every_bell_rung_by_one_side_wakes_the_other(resources: Resources) -> None:
    resources.carry_out(plan_of(1).effects, settled)
    (held,) = resources.links.values()
    sides = [held.descriptors(side) for side in (0, 1)]
    assert sides[0][0] == sides[1][0] == held.region_fd
    for ringer, sleeper in (sides, sides[::-1]):
        for queue in (0, 1):
            _, producer_ring, _, consumer_ring = ringer[1 + 4 * queue : 5 + 4 * queue]
            producer_wait, _, consumer_wait, _ = sleeper[1 + 4 * queue : 5 + 4 * queue]
            for ring_fd, wait_fd in ((producer_ring, consumer_wait), (consumer_ring, producer_wait)):
                os.write(ring_fd, b"x")
                assert os.read(wait_fd, 10) == b"x"
                with pytest.raises(BlockingIOError):
                    os.read(wait_fd, 10)


def test_links_that_need_more_descriptors_than_there_are_are_refused_before_anything_is_made(
    keeping: KeeperEntries,
) -> None:
    effects = plan_of(3).effects
    needed = 3 * descriptors_of(plan_of(1).config.links["l0"]) + RESERVE
    before = own_descriptors()
    with pytest.raises(ControlError) as caught:
        Resources(needed - 1, keeping).carry_out(effects, settled)
    assert caught.value.cause is Cause.LIMIT
    assert own_descriptors() == before
    enough = Resources(needed, keeping)
    enough.carry_out(effects, settled)
    enough.close()


def test_what_was_made_is_undone_when_a_later_link_fails(resources: Resources) -> None:
    resources.carry_out(plan_of(1).effects, settled)
    kept = set(resources.links)
    before = own_descriptors()
    with room_for_descriptors(20), pytest.raises(ControlError) as caught:  # one link fits, the second does not
        resources.carry_out(plan_of(3).effects, settled)
    assert caught.value.cause is Cause.SYSTEM
    assert "nothing has been changed" in caught.value.message
    assert set(resources.links) == kept
    assert own_descriptors() == before


def test_what_was_made_is_undone_when_the_journal_cannot_be_written(
    resources: Resources, keeping: KeeperEntries
) -> None:
    def refuse() -> None:
        raise ControlError(Cause.SYSTEM, "the journal cannot be written")

    before = own_descriptors()
    with pytest.raises(ControlError):
        resources.carry_out(plan_of(3).effects, refuse)
    assert own_descriptors() == before
    assert keeping.recover().links == {}


def test_another_broker_adopts_what_the_keeper_holds(resources: Resources, keeping: KeeperEntries) -> None:
    before = own_descriptors()
    plan = plan_of(2)
    resources.carry_out(plan.effects, settled)
    ((first, one), (second, _)) = resources.links.items()
    region = read_region(one.region_fd)
    found = keeping.recover()
    resources.close()
    later = Resources(100_000, keeping)
    assert later.adopt(first, plan.config.links["l0"], found.links[first])
    os.close(found.links[second].pop())
    assert not later.adopt(second, plan.config.links["l1"], found.links[second]), "a bell is missing"
    assert read_region(later.links[first].region_fd) == region
    held = later.links[first].descriptors
    os.write(held(1)[4], b"x")
    assert os.read(held(0)[1], 10) == b"x"
    later.close()
    assert own_descriptors() == before
