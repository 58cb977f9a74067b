"""The race itself: what runs against what, and the rows that come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chain import VMS, Chain
from namespaces import enter_private_namespaces

from bench.form import BenchError, Report, Round, Row, duel, rate_rows, stop, window
from bench.race.chains import KERNEL_SERVER, OUR_SERVER, SPIN_US, add_fast_firewall, make_kernels, make_ours, steer
from bench.race.fabric import FAST
from bench.race.racer import End, Racer, pin

TOOLS = ("ping", "nft")
_FAST, _SOCKETS, _KERNEL = "ringway, fast ends", "ringway, sockets", "kernel chain"


@dataclass(frozen=True)
class Entry:
    """A way from end to end: by whom, with what, from and to which place (see bench.race.end)."""

    name: str
    kind: str
    source: str
    target: str
    counts: str = "delivered"  # which of the books is raced for


DATAGRAMS = (
    Entry(_FAST, "ring", FAST["client"], FAST["server"]),
    Entry(_SOCKETS, "socket", OUR_SERVER, OUR_SERVER),
    Entry(_KERNEL, "socket", KERNEL_SERVER, KERNEL_SERVER),
)
STREAMS = (
    Entry(_SOCKETS, "stream", OUR_SERVER, OUR_SERVER, "bytes"),
    Entry(_KERNEL, "stream", KERNEL_SERVER, KERNEL_SERVER, "bytes"),
)
_NOTES = (
    "Small UDP: 18 bytes of payload, a frame of 64 with Ethernet's checksum; each says its number; all is checked.",
    "Sockets are connected; sendmmsg and recvmmsg, 64 a call.",
    f"Fast ends: generator and sink take turns on core 0; the firewall's agent, on core 1, spins {SPIN_US} us.",
    "All others run where the kernel puts them.",
    "CPU is all that the machine used, from /proc/stat, for both: soft interrupts of a router are in no process.",
    "So it also holds what others run on the machine meanwhile: for a cost to be believed, let it be quiet.",
)


def run(quick: bool) -> Report:
    """Both chains in namespaces of the bench's own. BenchError where they cannot be made, or nothing arrives."""
    enter_private_namespaces("bench", TOOLS)
    chain = make_chains()
    add_fast_firewall(chain)
    firewall = chain.agents[FAST["firewall"]].pid
    pin(firewall, 1)
    racers = start_racers((*DATAGRAMS, *STREAMS), {**carriers(chain), _FAST: [firewall]})
    datagrams, streams = racers[: len(DATAGRAMS)], racers[len(DATAGRAMS) :]
    rounds, seconds = _length(quick)
    notes = [*_NOTES]
    if not quick:
        notes.append(f"Small UDP: {_sweep(datagrams[-1], seconds)}")
    played = duel(datagrams, rounds, seconds)
    bulk, said = race_streams(streams, quick)
    rows = [
        *_rows("small UDP, fast ends", "Mpps", 1e6, played, _FAST),
        *_rows("small UDP, kernel sockets", "Mpps", 1e6, played, _SOCKETS),
        *bulk,
    ]
    return Report("race", rows, notes + said)


def _length(quick: bool) -> tuple[int, float]:
    """Rounds, and seconds of a window."""
    return (2, 0.25) if quick else (12, 0.3)


def race_streams(racers: Sequence[Racer], quick: bool) -> tuple[list[Row], list[str]]:
    """Bulk TCP: rows, and what is to be said of them. `racers`: those of STREAMS."""
    rounds, seconds = _length(quick)
    notes = [] if quick else [f"Bulk TCP: {_sweep(racers[-1], seconds)}"]
    return _rows("bulk TCP", "Gbit/s", 1e9 / 8, duel(racers, rounds, seconds), _SOCKETS), notes


def make_chains() -> Chain:
    """Ours and the kernel's, between the same two namespaces; returns ours. BenchError where one cannot be made."""
    try:
        chain = make_ours()
    except RuntimeError as error:
        raise BenchError(f"the chain of ringway cannot be made: {error}") from None
    try:
        make_kernels()
    except RuntimeError as error:
        raise BenchError(f"the kernel's chain cannot be made here: {error}") from None
    return chain


def carriers(chain: Chain) -> dict[str, list[int]]:
    """The processes between and beside the ends, by contestant."""
    return {_SOCKETS: [chain.agents[vm].pid for vm in VMS], _KERNEL: []}


def start_racers(entries: Sequence[Entry], carriers: Mapping[str, list[int]]) -> list[Racer]:
    """All together, because who is paused lets no connection of another through. All are paused then."""
    sinks = [End(f"{entry.kind}_receive", entry.target, "server") for entry in entries]
    for end in sinks:
        end.await_ready()
    senders = [End(f"{entry.kind}_send", entry.source, "client") for entry in entries]
    for end in senders:
        end.await_ready()
        stop(end.pid)
    racers = []
    for entry, sender, sink in zip(entries, senders, sinks, strict=True):
        if entry.kind == "ring":
            pin(sender.pid, 0)
            pin(sink.pid, 0)
        racers.append(Racer(entry.name, sender, sink, carriers[entry.name], entry.counts))
    for racer in racers:
        racer.pause()
    return racers


def _sweep(kernel: Racer, seconds: float) -> str:
    """Leave the kernel's chain at its best of: the router on the sender's core, or on the other one."""
    rates = {}
    for spread in (False, True):
        if not steer(spread):
            return "the kernel's chain as it is: this kernel does not let its packets be steered (RPS)."
        rates[spread] = max(window(kernel, seconds).rate for _ in range(2))
    best = rates[True] > rates[False]
    steer(best)
    gain = rates[best] / rates[not best] if rates[not best] else 0.0
    core = "the other core than the sender's (RPS)" if best else "the sender's core"
    return f"the kernel's chain at its best of a sweep: its router on {core}, {gain:.2f} times what it does otherwise."


def _rows(case: str, unit: str, scale: float, rounds: Sequence[Round], ours: str) -> list[Row]:
    """A row for each distance of the cores, with loss and cost of its own windows."""
    rows = []
    for near in (True, False):
        alike = [turn for turn in rounds if turn[ours].near == turn[_KERNEL].near == near]
        if alike:
            rows += rate_rows(case, unit, scale, alike, ours, _KERNEL, _notes(alike, ours, unit))
    return rows


def _notes(rounds: Sequence[Round], ours: str, unit: str) -> str:
    """Loss and CPU, ours and the kernel's, over all windows of a row."""
    of, size = ("frame", 1) if unit == "Mpps" else ("1500 bytes", 1500)
    losses, costs = [], []
    for name in (ours, _KERNEL):
        windows = [turn[name] for turn in rounds]
        got, lost = sum(window.frames for window in windows), sum(window.lost for window in windows)
        losses.append(f"{100 * lost / max(lost + got, 1):.1f} %")
        costs.append(f"{sum(window.cpu_ns for window in windows) * size / max(got, 1):.0f} ns")
    said = f"CPU per {of} {costs[0]}, the kernel's {costs[1]}"
    return said if unit != "Mpps" else f"lost {losses[0]}, the kernel's {losses[1]}; {said}"
