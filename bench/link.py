"""One link between two processes, every byte written by one and read by the other; against memif and a bare ring.

ringway: no copy; the producer builds frames in the slots, the consumer reads and compares them there. memif: a testpmd
that sends (txonly; it writes the headers of each frame) and one that receives (rxonly; it frees them), with the copy
in and out of the ring that memif makes on each side, or only on the server's side with its zero-copy client. So memif
touches every byte where it copies, and its applications touch none beyond the headers.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import huge, sweep
from bench.fabric import Fabric, Workers, bare_ring
from bench.form import BenchError, Contestant, Report, Row, Window, duel, rate_rows
from bench.testpmd import HUGE_PAGES, Testpmd, TestpmdPair, memif_options

LENS = (64, 256, 1500, 9000)
FABRIC = """
[vm.left.port.p]
kind = "local"
[vm.right.port.p]
kind = "local"
[link.wire]
ends = ["left.p", "right.p"]
"""


@contextlib.contextmanager
def memif(ring_log2: int, burst: int, zero_copy: bool) -> Iterator[TestpmdPair]:
    """Two testpmd over one memif, sending, stopped."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringway-memif-")))
        common = f"socket={folder}/memif.sock,socket-abstract=no,rsize={ring_log2}"
        options = memif_options(ring_log2, burst)
        sink = Testpmd("sink", 0, [f"net_memif0,role=server,{common}"], [*options, "--forward-mode=rxonly"])
        stack.callback(sink.close)
        sink.wait_ready()
        extra = ",zero-copy=yes" if zero_copy else ""
        source = Testpmd("source", 1, [f"net_memif0,role=client,{common}{extra}"], [*options, "--forward-mode=txonly"])
        stack.callback(source.close)
        source.wait_ready()
        note = f"memif at 2^{ring_log2} slots, bursts of {burst}" + (", zero-copy client" if zero_copy else "")
        pair = TestpmdPair("memif", sink, source, note)
        pair.start()
        pair.set_len(64)
        pair.pause()
        yield pair


def _lowest_notes(name: str, len_: int, windows: Sequence[Window]) -> list[str]:
    notes = []
    for near in (True, False):
        rates = [one.rate for one in windows if one.near == near]
        if len(rates) > 1:
            share = min(rates) / statistics.median(rates)
            notes.append(f"{name}, {len_} B, {'near' if near else 'far'}: lowest window {share:.2f} of the median")
    return notes


def run(quick: bool) -> Report:
    rounds, seconds = (3, 0.1) if quick else (15, 0.25)
    rows: list[Row] = []
    notes: list[str] = []
    with huge.reserved(HUGE_PAGES):
        best = sweep.best(memif, LENS, quick)
        with Fabric(FABRIC) as fabric, bare_ring() as bare:
            sides = [
                fabric.worker("bench_link_consume", 0, "right"),
                fabric.worker("bench_link_produce", 1, "left"),
            ]
            ours = Workers("ringway", sides)
            ours.pause()
            for setting in dict.fromkeys(best.values()):
                with memif(*setting) as peer:
                    for len_ in (one for one in LENS if best[one] == setting):
                        peer.resume()
                        contestants: list[Contestant] = [ours, peer, bare]
                        for one in (ours, peer, bare):
                            one.set_len(len_)
                        peer.pause()
                        played = duel(contestants, rounds, seconds)
                        said = f"no hop; ours 0 copies, every byte touched; {peer.note}; no loss on either side"
                        rows += rate_rows(f"{len_} B", "Mframes/s", 1e6, played, "ringway", "memif", said)
                        rows += rate_rows(f"{len_} B", "Mframes/s", 1e6, played, "ringway", "bare ring")
                        notes += _lowest_notes("ringway", len_, [turn["ringway"] for turn in played])
    if not rows:
        raise BenchError("no round had two windows of one class: the cores moved too often; run it again")
    order = {f"{len_} B": number for number, len_ in enumerate(LENS)}
    rows.sort(key=lambda row: (order[row.case.partition(",")[0]], row.against, row.case))
    return Report("link", rows, notes)
