"""What both chains are made from: the demo's fabric, once more with fast ends, and its rules as nft says them."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from chain import HERE

# The VMs of the chain with fast ends, by those of the demo whose places they take.
FAST = {"client": "generator", "firewall": "filter", "server": "sink"}
# The ring to the sink holds what the generator sends in a turn (race_ring.c) and what is in the ring before.
_SLOTS = {"client-firewall": 1024, "firewall-server": 4096}
_DEMO = HERE / "fabric.toml"


def fabric_text() -> str:
    """The demo's fabric as it is, and once more with local ports at its ends, under other names."""
    text = _DEMO.read_text(encoding="utf-8")
    return text + _with_fast_ends(text)


def _with_fast_ends(text: str) -> str:
    text = re.sub(r"^(interface|address) = .*\n", "", text, flags=re.MULTILINE).replace('"tap"', '"local"')
    for link, slots in _SLOTS.items():
        text = re.sub(rf"^\[link\.{link}\]\n", rf"\g<0>slots = {slots}\n", text, flags=re.MULTILINE)
    return re.sub(r"\b(client|firewall|server)\b", lambda match: FAST[match.group()], text)


def nft_text() -> str:
    """The firewall's rules as a chain that a router's forwarded packets pass, counters included."""
    stack = tomllib.loads(_DEMO.read_text(encoding="utf-8"))["vm"]["firewall"]["stack"]
    rules = "".join(f"    {_nft_rule(rule)}\n" for rule in stack["rule"])
    policy = "accept" if stack["default"] == "allow" else "drop"
    hook = f"type filter hook forward priority 0; policy {policy};"
    return f"table ip race {{\n  chain forward {{\n    {hook}\n{rules}  }}\n}}\n"


def _nft_rule(rule: dict[str, Any]) -> str:
    unknown = rule.keys() - {"name", "action", "protocol", "destination_port"}
    if unknown:
        raise ValueError(f"rule {rule['name']}: the race cannot say {', '.join(sorted(unknown))} to nft; teach it here")
    verdict = "accept" if rule["action"] == "allow" else "drop"
    return f"{rule['protocol']} dport {rule['destination_port']} counter {verdict}"
