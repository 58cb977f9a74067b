"""The books of a soak, as they stand at a quiet point: senders stopped, rings empty, everybody alive.

What is checked, over all that has happened between two quiet points, or `from kernel` ever. `D` is the drops by all
causes on the way.

    each ring       published = taken out, nothing in flight
    each ring       done by its sender <= offered <= intended by its sender; equal while no sender was killed
    chain           owed by the ring in = paid to the ring out (delivered and replicated, offered and not originated),
                    summed over queues: a forwarder's kill loses nothing that is not counted as `restart` there
    to application  offered to the first ring = logged by the receiver + D + unlogged. Unlogged is 0, or after kills of
                    the receiver, up to 256 frames for each: those it had taken out and not yet logged, which only it
                    could have counted
    to kernel       delivered <= seen there <= delivered + `restart`: a frame that the agent was handing on when it was
                    killed counts as lost, and may have gone out
    from kernel     offered <= sent there: what the interface's queue did not take, or the agent had read and not yet
                    published, is lost, and nobody can count that
    policy          what the rule drops is what the sender made for it, less what other causes took before
    bridge          owed by the rings in = paid to the rings out, summed over its three ports: each copy that a kill
                    took along is counted as `restart`, and none that was not made
    from bridge     offered to the ring out = logged by the receiver, from whomever + D + unlogged, as above
    restart         64 (RWAY_BURST) for each queue of a ring, or of the one that is forwarded to it, and each kill of
                    one of its ends, at most; and two copies of a burst for each queue of a bridge
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ringway.shm import RegionSnapshot, RingSnapshot
from tools.soak.draw import (
    CHAIN_BACK,
    CHAIN_OUT,
    DIRECT_BACK,
    DIRECT_OUT,
    HUB,
    HUB_CLIENT,
    HUB_GUEST,
    HUB_SERVER,
    WIRE_BACK,
    WIRE_OUT,
    Link,
    Setup,
)
from tools.soak.ledger import Received, Sent
from tools.soak.pace import BURST_MAX

_RWAY_BURST = 64
_HUB_COPIES = 2  # of a frame that is flooded
_WORD = 1 << 64
_CHAIN = ("inside", "outside")
_HUB_LINKS = {host: f"hub-{host}" for host in HUB}

# By direction: who sends and who receives, and the way, as links with the side that produces.
SENDERS = {
    CHAIN_OUT: "client",
    CHAIN_BACK: "server",
    DIRECT_OUT: "client",
    DIRECT_BACK: "server",
    WIRE_OUT: "client",
    WIRE_BACK: "wire",
    HUB_CLIENT: "client",
    HUB_SERVER: "server",
    HUB_GUEST: "guest",
}
RECEIVERS = {
    CHAIN_OUT: "server",
    CHAIN_BACK: "client",
    DIRECT_OUT: "server",
    DIRECT_BACK: "client",
    WIRE_OUT: "wire",
    WIRE_BACK: "client",
    HUB_CLIENT: "server",
    HUB_SERVER: "guest",
    HUB_GUEST: "client",
}
WAYS = {
    CHAIN_OUT: (("inside", 0), ("outside", 0)),
    CHAIN_BACK: (("outside", 1), ("inside", 1)),
    DIRECT_OUT: (("direct", 0),),
    DIRECT_BACK: (("direct", 1),),
    WIRE_OUT: (("wire", 0),),
    WIRE_BACK: (("wire", 1),),
    HUB_CLIENT: (("hub-client", 0), ("hub-server", 1)),
    HUB_SERVER: (("hub-server", 0), ("hub-guest", 1)),
    HUB_GUEST: (("hub-guest", 0), ("hub-client", 1)),
}
# Who may hear what: a bridge floods.
HEARD = [
    *RECEIVERS.items(),
    *((at, host) for at in HUB.values() for host in HUB if host not in (SENDERS[at], RECEIVERS[at])),
]


@dataclass(frozen=True)
class Totals:
    """All queues of one direction of a link."""

    offered: int
    delivered: int
    drops: dict[str, int]
    originated: int = 0  # by a forwarder that sends here
    replicated: int = 0  # by one that takes frames out, modulo 2 to the 64

    def __sub__(self, before: Totals) -> Totals:
        drops = {cause: count - before.drops.get(cause, 0) for cause, count in self.drops.items()}
        return Totals(
            self.offered - before.offered,
            self.delivered - before.delivered,
            drops,
            self.originated - before.originated,
            self.replicated - before.replicated,
        )

    @property
    def owed(self) -> int:
        """To the links that a forwarder sends to."""
        return (self.delivered + self.replicated) % _WORD

    @property
    def paid(self) -> int:
        return (self.offered - self.originated) % _WORD

    @property
    def dropped(self) -> int:
        return sum(self.drops.values())


def _totals(rings: list[RingSnapshot]) -> Totals:
    drops: dict[str, int] = {}
    for ring in rings:
        for half in (ring.produced.drops, ring.consumed.drops):
            for cause, count in half.items():
                drops[cause] = drops.get(cause, 0) + count
    return Totals(
        sum(ring.offered for ring in rings),
        sum(ring.delivered for ring in rings),
        drops,
        sum(ring.originated for ring in rings),
        sum(ring.replicated for ring in rings),
    )


@dataclass(frozen=True)
class Account:
    """One direction: what its sender and its receiver have logged."""

    done: int
    intended: int
    denied_done: int
    denied_intended: int
    received: int

    def __sub__(self, before: Account) -> Account:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(before), strict=True)
        return Account(*(now - earlier for now, earlier in pairs))


@dataclass(frozen=True)
class Statement:
    """Everything at one quiet point."""

    rings: dict[tuple[str, int], Totals]
    accounts: dict[int, Account]
    heard: dict[str, int]  # logged by the hosts of the bridge, from whomever
    unbalanced: list[str]


def nothing(setup: Setup) -> Statement:
    """Of a fabric that has just been made."""
    rings = {(link.name, side): Totals(0, 0, {}) for link in setup.links for side in (0, 1)}
    accounts = {direction: Account(0, 0, 0, 0, 0) for direction in setup.directions}
    return Statement(rings, accounts, dict.fromkeys(HUB, 0), [])


def state(
    regions: Mapping[str, RegionSnapshot], sent: Mapping[int, Sent], received: Mapping[tuple[int, str], Received]
) -> Statement:
    """`received`: by direction and who has logged it."""
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
            received[direction, RECEIVERS[direction]].total,
        )
        for direction in sent
    }
    heard = dict.fromkeys(HUB, 0)
    for (direction, receiver), ledger in received.items():
        if direction in HUB.values():
            heard[receiver] += ledger.total
    return Statement(rings, accounts, heard, unbalanced)


def held_between(forwarder: str, regions: Mapping[str, RegionSnapshot]) -> Iterator[int]:
    """How many frames a forwarder has released and not published, by direction or in all. Exact while it rests."""
    rings = {
        (link, side): _totals([ring for ring in region.rings if ring.producing_side == side])
        for link, region in regions.items()
        for side in (0, 1)
    }
    if forwarder == "bridge":
        yield _unpaid(rings)
        return
    for into, out in (WAYS[CHAIN_OUT], WAYS[CHAIN_BACK]):
        yield rings[into].owed - rings[out].paid


def _unpaid(rings: Mapping[tuple[str, int], Totals]) -> int:
    """By the bridge, over all its ports."""
    owed = sum(rings[link, 0].owed for link in _HUB_LINKS.values()) % _WORD
    return (owed - sum(rings[link, 1].paid for link in _HUB_LINKS.values())) % _WORD


def discrepancies(setup: Setup, before: Statement, now: Statement, kills: Mapping[str, int]) -> Iterator[str]:
    """What is wrong, a sentence each. `kills`: how often who was killed between the two."""
    for text in now.unbalanced:
        yield f"published and taken out differ: {text}"
    for direction in setup.directions:
        if direction in HUB.values():
            yield from _of_host(SENDERS[direction], before, now, kills)
        else:
            yield from _of_direction(direction, before, now, kills)
    if unpaid := _unpaid(now.rings):
        yield f"the bridge owes {unpaid} over all its ports (modulo 2 to the 64)"
    for link in setup.links:
        for side in (0, 1):
            ring = now.rings[link.name, side] - before.rings[link.name, side]
            yield from _of_restarts(setup, link, side, ring, kills)


def _of_direction(direction: int, before: Statement, now: Statement, kills: Mapping[str, int]) -> Iterator[str]:
    way = [now.rings[part] - before.rings[part] for part in WAYS[direction]]
    account = now.accounts[direction] - before.accounts[direction]
    if direction == WIRE_BACK:
        wrong = list(_of_kernel(now.rings[WAYS[direction][0]].offered, now.accounts[direction].intended))
    else:
        wrong = list(_of_sender(way[0].offered, account, kills.get(SENDERS[direction], 0)))
    wrong += _of_receiver(direction, way, account.received, kills.get(RECEIVERS[direction], 0))
    if len(way) == 2:
        wrong += _of_firewall(way, account)
    yield from (f"direction {direction}: {text}" for text in wrong)


def _of_host(host: str, before: Statement, now: Statement, kills: Mapping[str, int]) -> Iterator[str]:
    """One of the bridge's: what it sent there, and what came from there, of whomever."""
    account = now.accounts[HUB[host]] - before.accounts[HUB[host]]
    link = _HUB_LINKS[host]
    into, out = (now.rings[link, side] - before.rings[link, side] for side in (0, 1))
    killed = kills.get(host, 0)
    wrong = list(_of_sender(into.offered, account, killed))
    unlogged = out.offered - (now.heard[host] - before.heard[host]) - out.dropped
    if unlogged not in (allowed := range(BURST_MAX * killed + 1)):
        yield f"{link}: {unlogged} are not accounted for, where {allowed} may be, of {out}"
    yield from (f"{link}: {text}" for text in wrong)


def _of_kernel(offered: int, sent: int) -> Iterator[str]:
    """Both since the beginning: the interface's queue may hold some from one quiet point to the next."""
    if offered > sent:
        yield f"{offered} were offered, and {sent} sent to the interface"


def _of_sender(offered: int, account: Account, kills: int) -> Iterator[str]:
    """One that was killed has a last burst, of which its ring knows how much was sent; its log does not."""
    least = account.done if kills else account.intended
    if not least <= offered <= account.intended:
        yield f"{offered} were offered, and the sender says {least} to {account.intended}"


def _of_receiver(direction: int, way: list[Totals], received: int, kills: int) -> Iterator[str]:
    unlogged = way[0].offered - received - sum(part.dropped for part in way)
    allowed = range(BURST_MAX * kills + 1)
    if direction == WIRE_OUT:
        allowed = range(-way[0].drops.get("restart", 0), 1)
    if unlogged not in allowed:
        yield f"{unlogged} are not accounted for, where {allowed} may be: {received} were received, of {way}"


def _of_firewall(way: list[Totals], account: Account) -> Iterator[str]:
    into, out = way
    if into.owed != out.paid:
        yield f"the forwarder owed {into.owed} of what came in, and {out.paid} went out"
    policy = into.drops.get("policy", 0)
    least = account.denied_done - (into.dropped - policy) - out.dropped
    if not least <= policy <= account.denied_intended:
        yield f"the rule dropped {policy}, and {least} to {account.denied_intended} were made for it"


def _of_restarts(setup: Setup, link: Link, side: int, ring: Totals, kills: Mapping[str, int]) -> Iterator[str]:
    queues = link.queues
    if link.name in _CHAIN:  # what is lost between the two counts with the ring out, by the ring in's queues
        queues += max(each.queues for each in setup.links if each.name in _CHAIN)
    if link.name in _HUB_LINKS.values():
        queues += _HUB_COPIES * max(each.queues for each in setup.links if each.name in _HUB_LINKS.values())
    most = sum(kills.get(end.split(".")[0], 0) for end in link.ends) * queues * _RWAY_BURST
    lost = ring.drops.get("restart", 0)
    if lost > most:
        yield f"{link.name}, from side {'ab'[side]}: {lost} lost in restarts, and {most} at most can be"
