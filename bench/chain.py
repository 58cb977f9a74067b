"""Forwarders in a row at full rate: what each of them costs a frame, and that none of them loses one; then the demo's
chain with bulk TCP, beside the kernel's.

Generator and sink are one process on core 0: it sends whenever the first ring has room, so that all rings are full and
pressure goes from the sink back to it. All forwarders are on core 1, each `ringway agent` with a stack that parses and
judges; they sleep when they have nothing to do. What they cost is their own processor time, their sleeps included, by
frame that came out at the end and by forwarder. Every frame has to come out, whole and in order, and no ring may have
dropped one: else there is no result.
"""

from __future__ import annotations

import contextlib
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence

from bench.fabric import Fabric, Worker, Workers
from bench.form import BenchError, Report, Round, Row, Snapshot, Window, duel, less_is_better, quartiles
from bench.idle import cpu_ns
from bench.race.contest import STREAMS, TOOLS, carriers, make_chains, race_streams, start_racers
from ringway.control.client import Client
from ringway.control.messages import LinkShown, Show, Shown

# The demo's own modules: bench.race makes them found.
from chain import RUNTIME, Chain  # isort: skip
from namespaces import enter_private_namespaces  # isort: skip

HOPS = (2, 4, 8)
LENS = (64, 1500)
FLAT = 0.1  # a forwarder of a longer chain costs at most so much more, or less, than one of the shortest
ANY = 1 << 32  # under way: as many as find room
PORT = '[vm.{}.port.{}]\nkind = "local"'
STACK = """
[vm.{vm}.stack]
forward = [["inside", "outside"]]
default = "allow"
[[vm.{vm}.stack.rule]]
name = "no-telnet"
action = "deny"
protocol = "tcp"
destination_port = 23
"""


def fabric_text(hops: int) -> str:
    """ends.out → firewall0 → firewall1 → … → ends.in, links of the default geometry."""
    firewalls = [f"firewall{hop}" for hop in range(hops)]
    ports = [(vm, port) for vm in firewalls for port in ("inside", "outside")]
    way = [("ends", "out"), *ports, ("ends", "in")]
    links = [
        f'[link.link{number}]\nends = ["{".".join(one)}", "{".".join(other)}"]'
        for number, (one, other) in enumerate(zip(way[::2], way[1::2], strict=True))
    ]
    return "\n".join([*(PORT.format(*end) for end in way), *(STACK.format(vm=vm) for vm in firewalls), *links])


def check_lossless(chain: str, links: Sequence[LinkShown]) -> None:
    """BenchError when a ring has dropped a frame."""
    for link in links:
        for ring in link.rings:
            if drops := Counter(ring.drops_produced) + Counter(ring.drops_consumed):
                said = ", ".join(f"{count} as {cause}" for cause, count in drops.items())
                raise BenchError(f"{chain}: link {link.name} dropped {said}: nothing may be lost inside a chain")


class _Chain(Workers):
    """Its ends, whose frames count, and the agents between them, whose processor time does."""

    def __init__(self, name: str, ends: Worker, agents: Sequence[int]) -> None:
        super().__init__(name, [ends], agents)
        self._agents = agents

    def read(self) -> Snapshot:
        delivered = super().read()
        return Snapshot(delivered.time_ns, delivered.frames, cpu_ns=sum(map(cpu_ns, self._agents)))


@contextlib.contextmanager
def _chain(hops: int) -> Iterator[tuple[_Chain, Fabric]]:
    with Fabric(fabric_text(hops)) as fabric:
        agents = [fabric.agent(f"firewall{hop}", 1).pid for hop in range(hops)]
        ends = fabric.worker("bench_hop", 0, "ends")
        ends.board.native.under_way = ANY
        chain = _Chain(_name(hops), ends, agents)
        chain.pause()
        yield chain, fabric


def _name(hops: int) -> str:
    return f"{hops} forwarders"


def _race_forwarders(rounds: int, seconds: float) -> tuple[list[Row], list[str]]:
    """A row for each length and each chain but the shortest, which is what the others are held against."""
    rows, notes = [], []
    with contextlib.ExitStack() as stack:
        chains = {hops: stack.enter_context(_chain(hops)) for hops in HOPS}
        for len_ in LENS:
            for chain, _ in chains.values():
                chain.set_len(len_)
            played = duel([chain for chain, _ in chains.values()], rounds, seconds)
            longer = [row(len_, hops, played) for hops in HOPS[1:]]
            rows += longer
            notes.append(f"{len_} B: {_said(played)}; {flatness(longer)}")
        for chain, fabric in chains.values():
            check_lossless(chain.name, fabric.show().links)
    return rows, [*notes, "All that was sent came out, whole and in order; no ring dropped a frame."]


def cost_ns(hops: int, window: Window) -> float:
    """Of a processor, by frame and forwarder; 0 where no frame came out."""
    return window.cpu_ns / window.frames / hops if window.frames else 0.0


def _costs(hops: int, played: Sequence[Round]) -> list[float]:
    return [cost_ns(hops, turn[_name(hops)]) for turn in played]


def row(len_: int, hops: int, played: Sequence[Round]) -> Row:
    """Only windows of a round in which the cores had one distance are compared, and in which both chains carried."""
    ours, peer = _name(hops), _name(HOPS[0])
    alike = [
        turn
        for turn in played
        if turn[ours].near == turn[peer].near and turn[ours].frames > 0 and turn[peer].frames > 0
    ]
    if not alike:
        raise BenchError(f"{len_} B: {ours} and {peer} never carried in one round of one distance; run it again")
    rate = statistics.median(turn[ours].rate for turn in alike) / 1e6
    note = f"{rate:.3g} Mframes/s, all forwarders on one core"
    costs = _costs(hops, alike), _costs(HOPS[0], alike)
    return less_is_better(f"{len_} B, {ours}", "ns/frame and hop", *costs, peer, note)


def _said(played: Sequence[Round]) -> str:
    """What each chain cost, with quartiles over its windows."""
    parts = []
    for hops in HOPS:
        costs = _costs(hops, played)
        low, high = quartiles(costs)
        parts.append(f"{_name(hops)} {statistics.median(costs):.1f} ns a frame and hop ({low:.1f}-{high:.1f})")
    return ", ".join(parts)


def flatness(longer: Sequence[Row]) -> str:
    away = max(abs(1 / row.ratio - 1) for row in longer)
    return f"{'flat' if away <= FLAT else 'NOT flat'} within {100 * FLAT:.0f} %: {100 * away:.0f} % at most"


def _race_bulk(demo: Chain, quick: bool) -> tuple[list[Row], list[str]]:
    """The demo's chain and the kernel's, with TCP of their own kernels at the ends."""
    rows, notes = race_streams(start_racers(STREAMS, carriers(demo)), quick)
    with Client(RUNTIME) as client:
        links = client.call(Show(), Shown).links
    check_lossless("bulk TCP through the demo's chain", links)
    offered = sum(ring.offered for link in links for ring in link.rings)
    return rows, [*notes, f"Bulk TCP: no ring dropped a frame, of {offered} that were offered."]


def run(quick: bool) -> Report:
    """BenchError where a chain cannot be made, delivers nothing, or loses a frame inside."""
    enter_private_namespaces("bench", TOOLS)
    demo = make_chains()
    rounds, seconds = (3, 0.1) if quick else (15, 0.25)
    rows, notes = _race_forwarders(rounds, seconds)
    bulk, said = _race_bulk(demo, quick)
    return Report("chain", rows + bulk, notes + said)
