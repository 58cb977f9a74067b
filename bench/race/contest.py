"""The race itself: who runs against whom, and the rows that come of it."""

from __future__ import annotations

from collections.abc import Sequence

from chain import VMS
from namespaces import enter_private_namespaces

from bench.form import BenchError, Report, Round, Row, duel, rate_rows, stop, window
from bench.race.chains import KERNEL_SERVER, OUR_SERVER, SPIN_US, make_kernels, make_ours, steer
from bench.race.fabric import FAST
from bench.race.racer import End, Racer, pin

_FAST, _SOCKETS, _KERNEL = "ringway, fast ends", "ringway, sockets", "kernel chain"
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
    enter_private_namespaces("bench", ("ping", "nft"))
    carriers = _make_chains()
    (fast, sockets, kernel), (stream, kernel_stream) = _start_ends(carriers)
    rounds, seconds = (2, 0.25) if quick else (12, 0.3)
    notes = [*_NOTES]
    if not quick:
        notes.append(f"Small UDP: {_sweep(kernel, seconds)}")
    datagrams = duel((fast, sockets, kernel), rounds, seconds)
    if not quick:
        notes.append(f"Bulk TCP: {_sweep(kernel_stream, seconds)}")
    bulk = duel((stream, kernel_stream), rounds, seconds)
    rows = [
        *_rows("small UDP, fast ends", "Mpps", 1e6, datagrams, _FAST),
        *_rows("small UDP, kernel sockets", "Mpps", 1e6, datagrams, _SOCKETS),
        *_rows("bulk TCP", "Gbit/s", 1e9 / 8, bulk, _SOCKETS),
    ]
    return Report("race", rows, notes)


def _make_chains() -> dict[str, list[int]]:
    """The agents of ours, by contestant."""
    try:
        chain = make_ours()
    except RuntimeError as error:
        raise BenchError(f"the chain of ringway cannot be made: {error}") from None
    try:
        make_kernels()
    except RuntimeError as error:
        raise BenchError(f"the kernel's chain cannot be made here: {error}") from None
    firewall = chain.agents[FAST["firewall"]].pid
    pin(firewall, 1)
    return {_FAST: [firewall], _SOCKETS: [chain.agents[vm].pid for vm in VMS], _KERNEL: []}


def _start_ends(carriers: dict[str, list[int]]) -> tuple[list[Racer], list[Racer]]:
    """Those who race with datagrams, and those with bulk TCP. All are paused."""
    kinds = [("ring", FAST["client"], FAST["server"]), ("socket", OUR_SERVER, OUR_SERVER)]
    kinds += [("socket", KERNEL_SERVER, KERNEL_SERVER)]
    kinds += [("stream", OUR_SERVER, OUR_SERVER), ("stream", KERNEL_SERVER, KERNEL_SERVER)]
    sinks = [End(f"{kind}_receive", place, "server") for kind, _, place in kinds]
    for end in sinks:
        end.await_ready()
    senders = [End(f"{kind}_send", place, "client") for kind, place, _ in kinds]
    for end in senders:
        end.await_ready()
        stop(end.pid)
    for end in (senders[0], sinks[0]):
        pin(end.pid, 0)
    names = (_FAST, _SOCKETS, _KERNEL, _SOCKETS, _KERNEL)
    counts = ("delivered", "delivered", "delivered", "bytes", "bytes")
    made = zip(names, senders, sinks, counts, strict=True)
    racers = [Racer(name, sender, sink, carriers[name], count) for name, sender, sink, count in made]
    for racer in racers:
        racer.pause()
    return racers[:3], racers[3:]


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
