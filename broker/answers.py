"""Answers already given, so that a request that comes twice is carried out once."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

KEPT_MAX: Final = 256
KEPT_SIZE: Final = 16 << 20  # bytes of all kept answers


class Answers:
    """Request ids with their answers, the oldest forgotten first."""

    def __init__(self) -> None:
        self._given: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0
        self._open: dict[str, list[bytes]] = {}  # who waits for a request that is being carried out

    def repeated(self, request_id: str) -> bytes | None:
        return self._given.get(request_id)

    def open(self, request_id: str, identity: bytes) -> bool:
        """Note who asks. False when the same request is being carried out: then its answer goes to both."""
        waiting = self._open.setdefault(request_id, [])
        waiting.append(identity)
        return len(waiting) == 1

    def give_up(self, request_id: str) -> list[bytes]:
        """It has no answer that is worth keeping: the next one to ask is the first again. Who is waiting for it."""
        return self._open.pop(request_id, [])

    def give(self, request_id: str, answer: bytes) -> list[bytes]:
        """Keep the answer. Returns the identities that it goes to."""
        self._given[request_id] = answer
        self._size += len(answer)
        while len(self._given) > KEPT_MAX or (self._size > KEPT_SIZE and len(self._given) > 1):
            self._size -= len(self._given.popitem(last=False)[1])
        return self._open.pop(request_id, [])
