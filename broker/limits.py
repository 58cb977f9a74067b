"""What the C of an agent can do at most, by which the broker judges a fabric."""

from __future__ import annotations

from typing import Final

from ringway.shm._native import lib

CONNECTIONS_MIN: Final = int(lib.RWAY_CONNECTIONS_MIN)
CONNECTIONS_MAX: Final = int(lib.RWAY_CONNECTIONS_MAX)
FUNCTIONS_MAX: Final = int(lib.RWAY_FUNCTIONS_MAX) - 1  # of the user's own, behind the filter
LOOPS_MAX: Final = int(lib.RWAY_READERS_MAX)  # that judge by one VM's filter


def connections_size(connections: int) -> int:
    """Bytes that an agent takes to remember so many."""
    return int(lib.rway_conntrack_size(connections))
