"""When a tap's carrier is on. Times are made up."""

from __future__ import annotations

from ringway.agent.carrier import Carrier


def test_it_is_off_until_the_peer_comes_and_on_at_once_then() -> None:
    carrier = Carrier(1.0, peer_here=False)
    assert not carrier.follow(False, 5.0)
    assert carrier.deadline() is None
    assert carrier.follow(True, 5.1)


def test_it_goes_off_when_the_peer_has_been_gone_for_the_delay_and_not_before() -> None:
    carrier = Carrier(1.0, peer_here=True)
    assert carrier.follow(True, 1.0)
    assert carrier.follow(False, 10.0)
    assert carrier.deadline() == 11.0
    assert carrier.follow(False, 10.9)
    assert not carrier.follow(False, 11.0)
    assert carrier.deadline() is None


def test_a_peer_that_comes_back_in_time_is_not_noticed_and_the_delay_begins_again() -> None:
    carrier = Carrier(1.0, peer_here=True)
    assert carrier.follow(False, 10.0)
    assert carrier.follow(True, 10.5)
    assert carrier.deadline() is None
    assert carrier.follow(False, 10.6)
    assert carrier.follow(False, 11.5)
    assert not carrier.follow(False, 11.6)


def test_without_a_delay_it_goes_off_at_once() -> None:
    assert not Carrier(0.0, peer_here=True).follow(False, 1.0)


def test_another_delay_counts_from_when_the_peer_left() -> None:
    carrier = Carrier(10.0, peer_here=True)
    assert carrier.follow(False, 1.0)
    carrier.delay = 2.0
    assert carrier.deadline() == 3.0
    assert not carrier.follow(False, 3.0)
