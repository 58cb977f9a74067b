"""A broker's part of the registry in a process of its own, to be killed: FABRIC_ID RUNTIME [once].

Says "ready" when its first state can be read. State k has k % 97 links, and says k in every field that takes a number.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from ringway.broker.registry import Registration
from ringway.control.registry import EndEntry, LinkEntry

SCRIPT = Path(__file__)


def state(number: int) -> list[LinkEntry]:
    ends = (EndEntry("client", "net", number, number), EndEntry("server", "net", number, number))
    return [LinkEntry(f"link-{link}", (number << 16) + link, ends) for link in range(1, number % 97 + 1)]


def number_of(links: list[LinkEntry]) -> int | None:
    """Of which state these are; None of one that has no links. AssertionError of what was never written."""
    if not links:
        return None
    number = links[0].link_id >> 16
    assert links == state(number)
    return number


def main() -> None:
    registration = Registration(sys.argv[1], Path(sys.argv[2]))
    number = 1
    registration.write(state(number))
    print("ready", flush=True)
    if sys.argv[3:]:
        signal.pause()
    while True:
        number += 1
        registration.write(state(number))


if __name__ == "__main__":
    main()
