"""When a tap's carrier is on: it follows the other end of the link, on at once and off after a delay."""

from __future__ import annotations


class Carrier:
    """Times are monotonic seconds, given by the caller."""

    def __init__(self, delay: float, peer_here: bool) -> None:
        self.delay = delay  # seconds that the peer may be gone
        self.on = peer_here
        self._gone_since: float | None = None  # while the carrier is still on

    def follow(self, peer_here: bool, now: float) -> bool:
        """Is it on now?"""
        if peer_here:
            self.on = True
            self._gone_since = None
        elif self.on:
            if self._gone_since is None:
                self._gone_since = now
            if now - self._gone_since >= self.delay:
                self.on = False
                self._gone_since = None
        return self.on

    def deadline(self) -> float | None:
        """When to look again though nothing is heard of the peer."""
        return None if self._gone_since is None else self._gone_since + self.delay
