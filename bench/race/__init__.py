"""`bench race`: the demo's chain beside a chain of the kernel's, with the same rules and the same traffic.

    ours      client ─ link ─ firewall's agent ─ link ─ server
    kernel    client ─ veth ─ bridge ─ veth ─ router, nftables ─ veth ─ bridge ─ veth ─ server

Both run with sockets at their ends; ours also with fast ends: programs that write and read frames in the rings.
"""

import sys
from pathlib import Path

# It is the demo's own chain that runs, by the demo's own code.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "firewall_chain"))

from bench.race.contest import run

__all__ = ["run"]
