"""`bench race`: the demo's chain beside a chain of the kernel's, with the same rules and the same traffic.

    ours      client ─ link ─ firewall's agent ─ link ─ server
    kernel    client ─ veth ─ bridge ─ veth ─ router, nftables ─ veth ─ bridge ─ veth ─ server

Both run with sockets at their ends; ours also with fast ends: programs that write and read frames in the rings.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples" / "firewall_chain"
sys.path.insert(0, str(DEMO))  # it is the demo's own chain that runs, by the demo's own code
