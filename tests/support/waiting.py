"""How tests wait for what nobody announces: they look again until it is so."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(true: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Wait for a state that nobody announces."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
