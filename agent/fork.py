"""A forked child lets go of what is its parent's: ends of links, interfaces, the agent's own descriptors.

A child has copies of all descriptors and mappings of its parent and none of its threads. By the copy of a connection or
lifeline it would keep an end held after the parent's death, and by that of a tap the interface. So each child closes
them before it does anything else. What it has left of these objects refuses, by AgentCause.FORKED.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forked(Protocol):
    def leave_to_parent(self) -> None:
        """In a child, where no other thread runs, and locks may be held for ever by threads that are not there."""


_open: weakref.WeakSet[Forked] = weakref.WeakSet()


def let_go_when_forked(what: Forked) -> None:
    """Call it when `what` has its first descriptor; its end is told by the garbage collector."""
    _open.add(what)


def _in_child() -> None:
    for what in list(_open):
        what.leave_to_parent()
    _open.clear()


os.register_at_fork(after_in_child=_in_child)
