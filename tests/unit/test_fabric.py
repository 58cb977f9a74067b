"""The fabric's state: plans, tickets and who holds which end. Times are made up; nothing is created."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ringway.broker.config.checks import parse_config
from ringway.broker.config.tables import FabricConfig
from ringway.broker.end import Holder
from ringway.broker.fabric import TICKET_LIFE, Fabric, MakeLink, RemoveLink
from ringway.control.errors import ControlError
from ringway.control.messages import Cause, Claim, Offer

VMS = """
[vm.a.port.one]
kind = "local"
[vm.a.port.two]
kind = "local"
[vm.b.port.one]
kind = "tap"
[vm.b.port.two]
kind = "local"
"""
FIRST = '[link.first]\nends = ["a.one", "b.one"]\n'
SECOND = '[link.second]\nends = ["a.two", "b.two"]\n'


AGENT = Holder(b"agent", 4711)


def config_of(text: str) -> FabricConfig:
    return parse_config(VMS + text, "fabric.toml")


def fabric_with(text: str) -> Fabric:
    fabric = Fabric(Path("run"))
    fabric.commit(fabric.plan(config_of(text)))
    return fabric


def take_of(offer: Offer, vm: str = "a") -> Claim:
    return Claim(vm=vm, link=offer.link, side=offer.side, ticket=offer.ticket)


def refused(fabric: Fabric, take: Claim, now: float = 1.0) -> Cause:
    before = [(end.connection, end.incarnation, end.ticket) for link in fabric.links.values() for end in link.ends]
    with pytest.raises(ControlError) as caught:
        fabric.redeem(take, 99, now)
    after = [(end.connection, end.incarnation, end.ticket) for link in fabric.links.values() for end in link.ends]
    assert before == after
    return caught.value.cause


def test_a_first_fabric_is_all_made() -> None:
    plan = Fabric(Path("run")).plan(config_of(FIRST + SECOND))
    assert (plan.made, plan.removed, plan.replaced, plan.kept) == (["first", "second"], [], {}, [])


def test_planning_changes_nothing() -> None:
    fabric = fabric_with(FIRST)
    fabric.plan(config_of(SECOND))
    assert list(fabric.links) == ["first"]


def test_the_same_fabric_again_is_all_kept() -> None:
    plan = fabric_with(FIRST + SECOND).plan(config_of(FIRST + SECOND))
    assert (plan.kept, plan.effects) == (["first", "second"], [])


def test_a_link_that_is_not_asked_for_any_more_is_removed() -> None:
    plan = fabric_with(FIRST + SECOND).plan(config_of(SECOND))
    assert (plan.removed, plan.kept) == (["first"], ["second"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("queues = 2\n", "queues 1 → 2"),
        ("slots = 64\n", "slot_count 1024 → 64"),
        ("huge_pages = true\n", "huge_pages becomes true"),
    ],
)
def test_a_link_with_another_geometry_is_replaced_and_the_plan_says_why(change: str, reason: str) -> None:
    fabric = fabric_with(FIRST)
    old = fabric.links["first"].link_id
    plan = fabric.plan(config_of(FIRST + change))
    assert plan.replaced == {"first": reason}
    fabric.commit(plan)
    assert fabric.links["first"].link_id != old


@pytest.mark.parametrize(
    "setting",
    ["mtu = 1400", "offload = false", 'interface = "x"', 'mac = "02::1"', 'address = ["::1/64"]', "carrier_delay = 3"],
)
def test_a_link_stays_when_a_port_of_it_has_other_settings_and_its_agent_is_told(setting: str) -> None:
    setting = setting.replace("02::1", "02:00:00:00:00:01").replace("::1/64", "fd00::1/64")
    fabric = fabric_with(FIRST)
    link_id = fabric.links["first"].link_id
    fabric.redeem(take_of(fabric.offer("first", 1, 0.0, AGENT), "b"), 7, 1.0)
    plan = fabric.plan(parse_config(VMS.replace('"tap"', f'"tap"\n{setting}') + FIRST, "fabric.toml"))
    assert (plan.kept, plan.replaced, plan.effects) == (["first"], {}, [])
    assert [str(changed) for changed in plan.ports] == ["b.one"]
    changes = fabric.commit(plan)
    ((changed, told),) = changes.ports
    assert (changed.vm, told.port, told.link_id) == ("b", "one", link_id)
    assert fabric.offer("first", 1, 2.0, AGENT).settings == told.settings
    assert fabric.held_at(7) == (fabric.links["first"], 1), "who holds the end goes on"
    assert (changes.withdrawn, changes.offered, changes.dropped) == ([], [], [])


def test_a_link_stays_when_it_says_something_else_about_full_rings_and_both_ends_are_told() -> None:
    fabric = fabric_with(FIRST)
    link_id = fabric.links["first"].link_id
    plan = fabric.plan(config_of(FIRST + 'full = "drop"\n'))
    assert (plan.kept, plan.replaced, plan.effects) == (["first"], {}, [])
    assert [str(changed) for changed in plan.ports] == ["a.one", "b.one"]
    told = [told for _, told in fabric.commit(plan).ports]
    assert [(each.port, each.link_id, each.full) for each in told] == [("one", link_id, "drop")] * 2
    assert fabric.offer("first", 0, 2.0, AGENT).full == "drop"
    assert fabric.plan(config_of(FIRST + 'full = "drop"\n')).ports == [], "and that is what it says from then on"


def test_a_link_whose_port_becomes_of_another_kind_is_replaced() -> None:
    changed = parse_config(VMS.replace('"tap"', '"local"') + FIRST, "fabric.toml")
    assert fabric_with(FIRST).plan(changed).replaced == {"first": "port b.one becomes local"}


def test_an_agent_hears_whether_a_port_whose_link_goes_gets_another_one() -> None:
    fabric = fabric_with(FIRST)
    changes = fabric.commit(fabric.plan(config_of(FIRST.replace("a.one", "a.two"))))
    assert {(vm, gone.port, gone.replaced) for vm, gone in changes.withdrawn} == {
        ("a", "one", False),
        ("b", "one", True),
    }


def test_a_link_with_other_ends_is_replaced() -> None:
    replaced = fabric_with(FIRST).plan(config_of(FIRST.replace("a.one", "a.two"))).replaced
    assert replaced == {"first": "it joins other ports"}


def test_a_broken_link_is_replaced_though_nothing_else_changed() -> None:
    assert fabric_with(FIRST + SECOND).plan(config_of(FIRST + SECOND), {"first": "it is damaged"}).replaced == {
        "first": "it is damaged"
    }


def test_all_makes_come_before_all_removes() -> None:
    plan = fabric_with(FIRST).plan(config_of(FIRST + "queues = 2\n" + SECOND))
    kinds = [type(effect) for effect in plan.effects]
    assert kinds == [MakeLink, MakeLink, RemoveLink]


def test_agents_hear_of_what_changed_and_of_nothing_else() -> None:
    fabric = fabric_with(FIRST + SECOND)
    stack = '[vm.a.stack]\nforward = [["one", "two"]]\ndefault = "deny"\n'
    changes = fabric.commit(fabric.plan(config_of(stack + FIRST)))
    assert [(vm, withdrawn.link) for vm, withdrawn in changes.withdrawn] == [("a", "second"), ("b", "second")]
    assert changes.offered == []
    assert [vm for vm, _ in changes.stacks] == ["a"]


def test_an_offer_is_taken_with_its_ticket() -> None:
    fabric = fabric_with(FIRST)
    offer = fabric.offer("first", 0, 0.0, AGENT)
    link, granted = fabric.redeem(take_of(offer), 5, 1.0, pid=4711)
    assert (link.link_id, granted.link_id, granted.incarnation) == (offer.link_id, offer.link_id, offer.incarnation)
    assert fabric.holders("a") == [(5, AGENT)]


def test_an_end_that_its_agent_has_and_nobody_holds_is_not_handed_out_a_second_time() -> None:
    fabric = fabric_with(FIRST)
    offer = fabric.offer("first", 0, 0.0, AGENT)
    assert not fabric.note_attached("a", AGENT, [])
    assert list(fabric.note_attached("a", AGENT, [offer.link_id])) == ["first"], "as after a keeper's gap"
    fabric.redeem(take_of(offer), 5, 1.0)
    assert not fabric.note_attached("a", AGENT, [offer.link_id])


def test_a_ticket_is_good_once() -> None:
    fabric = fabric_with(FIRST)
    take = take_of(fabric.offer("first", 0, 0.0, AGENT))
    fabric.redeem(take, 5, 1.0)
    assert refused(fabric, take) is Cause.TICKET_USED
    fabric.released(5)
    assert refused(fabric, take) is Cause.TICKET_USED


def test_a_ticket_expires() -> None:
    fabric = fabric_with(FIRST)
    take = take_of(fabric.offer("first", 0, 0.0, AGENT))
    assert refused(fabric, take, TICKET_LIFE) is Cause.TICKET_EXPIRED


def test_a_ticket_is_void_once_there_is_another() -> None:
    fabric = fabric_with(FIRST)
    old = take_of(fabric.offer("first", 0, 0.0, AGENT))
    fabric.offer("first", 0, 1.0, AGENT)
    assert refused(fabric, old) is Cause.TICKET_WRONG


@pytest.mark.parametrize("change", [{"vm": "b"}, {"side": 1}, {"side": 1, "vm": "b"}, {"link": "second"}])
def test_a_ticket_for_another_vm_link_or_side_is_a_mismatch(change: dict[str, object]) -> None:
    fabric = fabric_with(FIRST + SECOND)
    offer = fabric.offer("first", 0, 0.0, AGENT)
    take = msgspec.structs.replace(take_of(offer), **change)
    assert refused(fabric, take) is Cause.TICKET_MISMATCH
    fabric.redeem(take_of(offer), 5, 1.0)


def test_a_made_up_ticket_or_link_is_wrong() -> None:
    fabric = fabric_with(FIRST)
    fabric.offer("first", 0, 0.0, AGENT)
    assert refused(fabric, Claim(vm="a", link="first", side=0, ticket="0" * 32)) is Cause.TICKET_WRONG
    assert refused(fabric, Claim(vm="a", link="none", side=0, ticket="0" * 32)) is Cause.TICKET_WRONG


def test_a_second_holder_of_one_side_is_refused_and_the_ticket_stays_good() -> None:
    fabric = fabric_with(FIRST)
    fabric.redeem(take_of(fabric.offer("first", 0, 0.0, AGENT)), 5, 1.0)
    again = take_of(fabric.offer("first", 0, 1.0, AGENT))
    assert refused(fabric, again) is Cause.ALREADY_ATTACHED
    assert fabric.released(5) == (fabric.links["first"], 0)
    _, granted = fabric.redeem(again, 6, 2.0)
    assert granted.incarnation == 2


def test_both_sides_are_held_apart() -> None:
    fabric = fabric_with(FIRST)
    fabric.redeem(take_of(fabric.offer("first", 0, 0.0, AGENT)), 5, 1.0)
    _, granted = fabric.redeem(take_of(fabric.offer("first", 1, 0.0, AGENT), "b"), 6, 1.0)
    assert granted.incarnation == 1
    assert [[holder for holder, _ in fabric.holders(vm)] for vm in "ab"] == [[5], [6]]


def test_a_removed_link_drops_its_holders() -> None:
    fabric = fabric_with(FIRST)
    fabric.redeem(take_of(fabric.offer("first", 0, 0.0, AGENT)), 5, 1.0)
    assert [end.connection for end in fabric.commit(fabric.plan(config_of(""))).dropped] == [5]
    assert fabric.released(5) is None


def test_tickets_are_128_bits_of_chance() -> None:
    fabric = fabric_with(FIRST)
    tickets = {fabric.offer("first", 0, 0.0, AGENT).ticket for _ in range(100)}
    assert len(tickets) == 100
    assert all(len(ticket) == 32 for ticket in tickets)


class Holding(RuleBasedStateMachine):
    """Offers, claims, closings and fabrics in any order: a side never has two holders, and incarnations only grow."""

    def __init__(self) -> None:
        super().__init__()
        self.fabric = fabric_with(FIRST + SECOND)
        self.now = 0.0
        self.next_holder = 1
        self.open: dict[int, tuple[str, int, int]] = {}  # holder: link, side, link id
        self.seen: dict[tuple[int, int], int] = {}  # link id, side: incarnation
        self.offers: list[Offer] = []

    @rule(link=st.sampled_from(["first", "second"]), side=st.integers(0, 1))
    def offer(self, link: str, side: int) -> None:
        if link in self.fabric.links:
            self.offers.append(self.fabric.offer(link, side, self.now, AGENT))

    @rule(data=st.data(), vm=st.sampled_from("ab"))
    def claim(self, data: st.DataObject, vm: str) -> None:
        if not self.offers:
            return
        offer = data.draw(st.sampled_from(self.offers))
        try:
            link_state, granted = self.fabric.redeem(take_of(offer, vm), self.next_holder, self.now)
        except ControlError:
            return
        assert vm == "ab"[offer.side]
        link_id = link_state.link_id
        assert granted.incarnation > self.seen.get((link_id, offer.side), 0)
        self.seen[link_id, offer.side] = granted.incarnation
        self.open[self.next_holder] = (offer.link, offer.side, link_id)
        self.next_holder += 1

    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        if self.open:
            holder = data.draw(st.sampled_from(sorted(self.open)))
            link, side, _ = self.open.pop(holder)
            assert self.fabric.released(holder) == (self.fabric.links[link], side)

    @rule(text=st.sampled_from([FIRST, SECOND, FIRST + SECOND, FIRST + "queues = 2\n" + SECOND]))
    def apply(self, text: str) -> None:
        for end in self.fabric.commit(self.fabric.plan(config_of(text))).dropped:
            assert end.connection is not None
            del self.open[end.connection]

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def the_holders_are_those_that_were_let_in(self) -> None:
        held = {end.connection for link in self.fabric.links.values() for end in link.ends} - {None}
        assert held == set(self.open)


TestHolding = Holding.TestCase
TestHolding.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
