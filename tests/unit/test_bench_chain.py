"""What `bench chain` makes of what it has measured: when a chain is flat, and that a single lost frame is an error."""

from __future__ import annotations

import pytest

from bench.chain import HOPS, check_lossless, flatness, row
from bench.form import NEAR_NS, BenchError, Round, Window
from ringway.control.messages import GeometryPart, LinkShown, RingShown

NEAR, FAR = NEAR_NS / 2, NEAR_NS * 2
FRAMES = 1000


def window(cost_ns: int, hops: int, distance_ns: float = NEAR) -> Window:
    return Window(distance_ns, seconds=0.5, frames=FRAMES, lost=0, cpu_ns=cost_ns * hops * FRAMES)


def turn(*costs_ns: int, distances_ns: tuple[float, ...] = (NEAR,) * len(HOPS)) -> Round:
    """By frame and forwarder, of each chain."""
    played = zip(HOPS, costs_ns, distances_ns, strict=True)
    return {f"{hops} forwarders": window(cost, hops, distance) for hops, cost, distance in played}


def test_a_row_is_the_cost_of_one_frame_and_forwarder_against_the_shortest_chain() -> None:
    found = row(64, 8, [turn(50, 60, 100), turn(60, 60, 120)])
    assert (found.case, found.unit, found.against) == ("64 B, 8 forwarders", "ns/frame and hop", "2 forwarders")
    assert (found.ours, found.peer, found.ratio) == (110.0, 55.0, 0.5)


def test_only_windows_of_one_distance_are_paired() -> None:
    moved = turn(10, 60, 100, distances_ns=(FAR, NEAR, NEAR))
    assert row(64, 8, [turn(50, 50, 50), moved]).windows == 1
    with pytest.raises(BenchError, match="8 forwarders and 2 forwarders never carried in one round of one distance"):
        row(64, 8, [moved])


@pytest.mark.parametrize(
    ("costs", "said"), [((50, 54, 46), "flat within 10 %"), ((50, 50, 57), "NOT flat within 10 %")]
)
def test_a_chain_is_flat_when_no_forwarder_costs_a_tenth_more_or_less(costs: tuple[int, ...], said: str) -> None:
    played = [turn(*costs)]
    assert flatness([row(64, hops, played) for hops in HOPS[1:]]).startswith(said)


def link(**drops: dict[str, int]) -> LinkShown:
    ring = RingShown(
        producing_side=0,
        queue=0,
        offered=9,
        published=9,
        delivered=9,
        in_flight=0,
        drops_produced=drops.get("drops_produced", {}),
        drops_consumed=drops.get("drops_consumed", {}),
        balanced=True,
        produced={},
        consumed={},
    )
    geometry = GeometryPart(queues=1, slot_count=64, slot_payload=2048, headroom=64)
    return LinkShown("link3", 1, "up", [], geometry, 65536, 1 << 20, "ordinary", "", [ring])


@pytest.mark.parametrize("half", ["drops_produced", "drops_consumed"])
def test_one_frame_dropped_in_a_ring_is_an_error_that_names_link_and_cause(half: str) -> None:
    check_lossless("8 forwarders", [link()])
    with pytest.raises(BenchError, match="8 forwarders: link link3 dropped 1 as full"):
        check_lossless("8 forwarders", [link(), link(**{half: {"full": 1}})])
