"""What the agents say to an apply: which could run what it asked for, which could not, and which have not answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ringway.control.messages import AgentFailed, Done, ErrorReply, Status
from ringway.control.names import printable

VERDICT_TIME: Final = 2.0  # seconds that the answer to an apply waits for the agents
CAUSES_MAX: Final = 64  # failures whose causes are told; further ones are names

Answer = Done | Status | ErrorReply | None  # None: none in time


class Verdicts:
    """Of one apply. `told` for each message to an agent, `close` after the last; `complete` is called once."""

    def __init__(self, complete: Callable[[list[str], list[AgentFailed]], None]) -> None:
        self._complete = complete
        self._awaited = 1  # answers; one more until `close`
        self._silent: dict[str, None] = {}  # in the order in which they were told
        self._failed: dict[str, str] = {}

    def told(self) -> None:
        self._awaited += 1

    def heard(self, vm: str, answer: Answer) -> None:
        if answer is None:
            self._silent[vm] = None
        elif isinstance(answer, ErrorReply):
            # An agent's first failure is mostly the cause of its others.
            self._failed.setdefault(vm, printable(answer.message) if len(self._failed) < CAUSES_MAX else "")
        self._one_less()

    def close(self) -> None:
        self._one_less()

    def _one_less(self) -> None:
        self._awaited -= 1
        if self._awaited == 0:
            failed = [AgentFailed(vm=vm, cause=cause) for vm, cause in self._failed.items()]
            self._complete([vm for vm in self._silent if vm not in self._failed], failed)
