"""One hop: generator and sink on one core, a forwarder in a process of its own on the other; against memif
and a bare hop.

ringway: `ringway agent` with a stack; it parses all headers of each frame, judges it by a filter, and copies it once.
memif: a testpmd that generates and frees (flowgen) with two clients, and one that moves buffers between two servers
without looking at them (io). Its frames go both ways at once and are counted together; flowgen writes a frame's headers
and nothing reads the rest. So there are two rows: the ends touch 64 bytes of each frame, as the peer's do, or all.
bare hop: the same ends and one forwarder over bare rings (bare.h) that copies and does nothing else.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench import huge, sweep
from bench.fabric import Fabric, Workers, bare_hop
from bench.form import BenchError, Contestant, Report, Row, Snapshot, duel, rate_rows
from bench.testpmd import HUGE_PAGES, Testpmd, TestpmdPair, memif_options

LENS = (64, 256, 1500)
FABRIC = """
[vm.ends.port.out]
kind = "local"
[vm.ends.port.in]
kind = "local"
[vm.firewall.port.inside]
kind = "local"
[vm.firewall.port.outside]
kind = "local"
[vm.firewall.stack]
forward = [["inside", "outside"]]
default = "allow"
{stack}
[[vm.firewall.stack.rule]]
name = "no-telnet"
action = "deny"
protocol = "tcp"
destination_port = 23
[link.first]
ends = ["ends.out", "firewall.inside"]
[link.second]
ends = ["firewall.outside", "ends.in"]
"""
TOUCHED_BY_PEER = 64
BARE_HOP = "the hop's limit: the same slots, one plain copy; nothing parsed, judged, counted or checked"
SPIN_US = 1_000_000  # both forwarders poll


class _FlowgenPair(TestpmdPair):
    """Counts what comes back to both of the generator's ports."""

    check_sequence = 4  # flowgen makes frames without it

    def _received(self) -> tuple[Snapshot, int]:
        first, bytes_first = self._sink.received(0)
        second, bytes_second = self._sink.received(1)
        return Snapshot((first.time_ns + second.time_ns) // 2, first.frames + second.frames), bytes_first + bytes_second


@contextlib.contextmanager
def memif_hop(ring_log2: int, burst: int, zero_copy: bool) -> Iterator[TestpmdPair]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringway-memif-")))
        options = memif_options(ring_log2, burst)
        extra = ",zero-copy=yes" if zero_copy else ""

        def vdevs(role: str, more: str) -> list[str]:
            return [
                f"net_memif{number},role={role},id={number},socket={folder}/memif{number}.sock,socket-abstract=no,"
                f"rsize={ring_log2}{more}"
                for number in (0, 1)
            ]

        middle = Testpmd("forwarder", 1, vdevs("server", ""), [*options, "--forward-mode=io"])
        stack.callback(middle.close)
        middle.wait_ready()
        ends = Testpmd("ends", 0, vdevs("client", extra), [*options, "--forward-mode=flowgen"])
        stack.callback(ends.close)
        ends.wait_ready()
        note = f"memif at 2^{ring_log2} slots, bursts of {burst}" + (", zero-copy clients" if zero_copy else "")
        pair = _FlowgenPair("memif", ends, middle, note)
        pair.start()
        pair.set_len(64)
        pair.pause()
        yield pair


@contextlib.contextmanager
def ringway_hop(stack: str = "") -> Iterator[Workers]:
    """Generator and sink on CPU 0, the firewall's agent on CPU 1; `stack`: more keys of its stack."""
    with Fabric(FABRIC.format(stack=stack)) as fabric:
        agent = fabric.agent("firewall", 1, f"--spin-us={SPIN_US}")
        ends = fabric.worker("bench_hop", 0, "ends")
        contestant = Workers("ringway", [ends], [agent.pid])
        contestant.pause()
        yield contestant


def run(quick: bool) -> Report:
    rounds, seconds = (3, 0.1) if quick else (15, 0.25)
    rows: list[Row] = []
    with huge.reserved(HUGE_PAGES):
        best = sweep.best(memif_hop, LENS, quick)
        with ringway_hop() as ours, bare_hop() as bare:
            for setting in dict.fromkeys(best.values()):
                with memif_hop(*setting) as peer:
                    for len_ in (one for one in LENS if best[one] == setting):
                        ours.set_len(len_)
                        bare.set_len(len_)
                        peer.resume()
                        peer.set_len(len_)
                        peer.pause()
                        contestants: list[Contestant] = [ours, peer, bare]
                        for touched in (TOUCHED_BY_PEER,) if len_ <= TOUCHED_BY_PEER else (TOUCHED_BY_PEER, 0):
                            ours.set_touched(touched)
                            bare.set_touched(touched)
                            played = duel(contestants, rounds, seconds)
                            said = f"one hop, ours 1 copy, headers parsed and judged, no loss; {peer.note}, io"
                            case = f"{len_} B" + ("" if touched else " all touched")
                            rows += rate_rows(case, "Mframes/s", 1e6, played, "ringway", "memif", said)
                            rows += rate_rows(case, "Mframes/s", 1e6, played, "ringway", "bare hop", BARE_HOP)
    if not rows:
        raise BenchError("no round had two windows of one class: the cores moved too often; run it again")
    return Report("hop", sorted(rows, key=lambda row: (int(row.case.partition(" ")[0]), row.case, row.against)))
