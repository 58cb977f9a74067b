"""The books of a soak, as they stand at a quiet point: senders stopped, rings empty, everybody alive.

What is checked, over all that has happened between two quiet points. `D` is the drops by all causes on the way.

    each ring       published = taken out, nothing in flight
    each ring       done by its sender <= offered <= intended by its sender; equal while no sender was killed
    chain           delivered by the ring in = offered to the ring out, summed over queues: a forwarder's kill loses
                    nothing that is not counted as `restart` there
    to application  offered to the first ring = logged by the receiver + D + unlogged. Unlogged is 0, or after kills of
                    the receiver, up to 256 frames for each: those it had taken out and not yet logged, which only it
                    could have counted
    to kernel       delivered <= seen there <= delivered + `restart`: a frame that the agent was handing on when it was
                    killed counts as lost, and may have gone out
    from kernel     offered <= sent there: what the interface's queue did not take, or the agent had read and not yet
                    published, is lost, and nobody can count that
    policy          what the rule drops is what the sender made for it, less what other causes took before
    restart         64 (RWAY_BURST) for each queue of a ring, or of the one that is forwarded to it, and each kill of
                    one of its ends, at the most
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ringway.shm import RegionReading, RingReading
from tools.soak.draw import CHAIN_BACK, CHAIN_OUT, DIRECT_BACK, DIRECT_OUT, WIRE_BACK, WIRE_OUT, Setup
from tools.soak.ledger import Received, Sent
from tools.soak.pace import BURST_MAX

_RWAY_BURST = 64

# By direction: who sends and who receives, and the way, as links with the side that produces.
SENDERS = {
    CHAIN_OUT: "client",
    CHAIN_BACK: "server",
    DIRECT_OUT: "client",
    DIRECT_BACK: "server",
    WIRE_OUT: "client",
    WIRE_BACK: "wire",
}
RECEIVERS = {
    CHAIN_OUT: "server",
    CHAIN_BACK: "client",
    DIRECT_OUT: "server",
    DIRECT_BACK: "client",
    WIRE_OUT: "wire",
    WIRE_BACK: "client",
}
WAYS = {
    CHAIN_OUT: (("inside", 0), ("outside", 0)),
    CHAIN_BACK: (("outside", 1), ("inside", 1)),
    DIRECT_OUT: (("direct", 0),),
    DIRECT_BACK: (("direct", 1),),
    WIRE_OUT: (("wire", 0),),
    WIRE_BACK: (("wire", 1),),
}


@dataclass(frozen=True)
class Totals:
    """All queues of one direction of a link."""

    offered: int
    delivered: int
    drops: dict[str, int]

    def __sub__(self, before: Totals) -> Totals:
        drops = {cause: count - before.drops.get(cause, 0) for cause, count in self.drops.items()}
        return Totals(self.offered - before.offered, self.delivered - before.delivered, drops)

    @property
    def dropped(self) -> int:
        return sum(self.drops.values())


def _totals(rings: list[RingReading]) -> Totals:
    drops: dict[str, int] = {}
    for ring in rings:
        for half in (ring.produced.drops, ring.consumed.drops):
            for cause, count in half.items():
                drops[cause] = drops.get(cause, 0) + count
    return Totals(sum(ring.offered for ring in rings), sum(ring.delivered for ring in rings), drops)


@dataclass(frozen=True)
class Account:
    """One direction: what its sender and its receiver have logged."""

    done: int
    intended: int
    denied_done: int
    denied_intended: int
    received: int


@dataclass(frozen=True)
class Statement:
    """Everything at one quiet point."""

    rings: dict[tuple[str, int], Totals]
    accounts: dict[int, Account]
    unbalanced: list[str]


def nothing(setup: Setup) -> Statement:
    """Of a fabric that has just been made."""
    rings = {(link.name, side): Totals(0, 0, {}) for link in setup.links for side in (0, 1)}
    return Statement(rings, {direction: Account(0, 0, 0, 0, 0) for direction in setup.directions}, [])


def state(
    regions: Mapping[str, RegionReading], sent: Mapping[int, Sent], received: Mapping[int, Received]
) -> Statement:
    rings: dict[tuple[str, int], Totals] = {}
    unbalanced = []
    for link, region in regions.items():
        for side in (0, 1):
            found = [ring for ring in region.rings if ring.producing_side == side]
            rings[link, side] = _totals(found)
            unbalanced += [f"{link}: {ring}" for ring in found if not ring.balanced or ring.in_flight]
    accounts = {
        direction: Account(
            sent[direction].total_done,
            sent[direction].total_intended,
            sent[direction].denied(done=True),
            sent[direction].denied(done=False),
            received[direction].total,
        )
        for direction in sent
    }
    return Statement(rings, accounts, unbalanced)


def held_between(regions: Mapping[str, RegionReading]) -> Iterator[int]:
    """How many frames the forwarder has released and not published, in each direction. Exact while it stands still."""
    for (link_in, side_in), (link_out, side_out) in (WAYS[CHAIN_OUT], WAYS[CHAIN_BACK]):
        taken = _totals([ring for ring in regions[link_in].rings if ring.producing_side == side_in])
        given = _totals([ring for ring in regions[link_out].rings if ring.producing_side == side_out])
        yield taken.delivered - given.offered


def discrepancies(setup: Setup, before: Statement, now: Statement, kills: Mapping[str, int]) -> Iterator[str]:
    """What is wrong, a sentence each. `kills`: how often who was killed between the two."""
    for text in now.unbalanced:
        yield f"published and taken out differ: {text}"
    for direction in setup.directions:
        yield from _of_direction(direction, before, now, kills)
    for link in setup.links:
        for side in (0, 1):
            yield from _of_restarts(
                setup, link.name, side, now.rings[link.name, side] - before.rings[link.name, side], kills
            )


def _of_direction(direction: int, before: Statement, now: Statement, kills: Mapping[str, int]) -> Iterator[str]:
    way = [now.rings[part] - before.rings[part] for part in WAYS[direction]]
    dropped = sum(part.dropped for part in way)
    restarts = sum(part.drops.get("restart", 0) for part in way)
    first, last = now.accounts[direction], before.accounts[direction]
    least, most, received = first.done - last.done, first.intended - last.intended, first.received - last.received
    # A sender that was killed has a last burst of which its ring knows how much was sent; its log does not.
    offered, killed = way[0].offered, kills.get(SENDERS[direction], 0)
    if direction == WIRE_BACK:
        least = 0
    if not least <= offered <= most or (
        killed == 0 and direction != WIRE_BACK and offered != first.intended - last.intended
    ):
        yield f"direction {direction}: {offered} were offered, and the sender says {least} to {most}"
    if len(way) == 2 and way[0].delivered != way[1].offered:
        yield f"direction {direction}: {way[0].delivered} went into the junction, and {way[1].offered} came out of it"
    unlogged = offered - received - dropped
    allowed = range(BURST_MAX * kills.get(RECEIVERS[direction], 0) + 1)
    if direction == WIRE_OUT:
        allowed = range(-restarts, 1)
    if unlogged not in allowed:
        missing = f"{offered} offered, {received} received, {dropped} dropped ({way})"
        yield f"direction {direction}: {unlogged} are not accounted for, where {allowed} may be: {missing}"
    if len(way) == 2:
        policy, others = way[0].drops.get("policy", 0), dropped - way[0].drops.get("policy", 0)
        denied_least = first.denied_done - last.denied_intended - others
        denied_most = first.denied_intended - last.denied_done
        if not denied_least <= policy <= denied_most:
            made = f"{denied_least} to {denied_most} were made for it"
            yield f"direction {direction}: the rule dropped {policy}, and {made}"


def _of_restarts(setup: Setup, link: str, side: int, ring: Totals, kills: Mapping[str, int]) -> Iterator[str]:
    (found,) = (each for each in setup.links if each.name == link)
    queues = found.queues
    if link in ("inside", "outside"):  # what is lost between the two counts with the ring out, by the ring in's queues
        queues += max(each.queues for each in setup.links if each.name in ("inside", "outside"))
    most = sum(kills.get(end.split(".")[0], 0) for end in found.ends) * queues * _RWAY_BURST
    lost = ring.drops.get("restart", 0)
    if lost > most:
        yield f"{link}, from side {'ab'[side]}: {lost} lost in restarts, and {most} at the most can be"
