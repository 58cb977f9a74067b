"""A packet function in Python, to try an idea: it counts frames by their length, and drops those that are too long.

[[vm.firewall.stack.function]]
name = "sizes"
options = { most = 1500 }
"""

from __future__ import annotations

from ringway.stack.prototype import Number, Packet, Start

OPTIONS = {"most": Number(least=64, most=65535, usual=65535)}
COUNTERS = ("up_to_127", "up_to_511", "up_to_1518", "longer", "too_long")
BOUNDS = (127, 511, 1518)


class Function:
    """Of one loop."""

    def __init__(self, start: Start) -> None:
        self._most = start.options["most"]
        self._count = start.count

    def burst(self, packets: list[Packet]) -> None:
        for packet in packets:
            size = packet.len
            self._count(COUNTERS[sum(size > bound for bound in BOUNDS)])
            if size > self._most:
                packet.drop()
                self._count("too_long")
