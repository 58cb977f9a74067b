"""A VM's stack as it runs: the filter, and the loops that forward past it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

from ringway.agent.port import Port
from ringway.agent.runner import ForwardRunner
from ringway.control.rules import Stack
from ringway.stack.filter import Filter

Start = Callable[[Port, Port, Filter], ForwardRunner]


class Forwarder:
    """Made whole or not at all: an exception leaves nothing behind. One thread at a time."""

    def __init__(self, stack: Stack, start: Start) -> None:
        """`start` makes the runner of a pair. Nothing is forwarded before `run`."""
        self._start = start
        self._names = tuple(name for pair in stack.forward for name in pair)
        self._stack = stack
        self.runners: list[ForwardRunner] = []
        self.filter = Filter(self._names, stack.connections, stack.timeouts)
        try:
            self.filter.replace(stack.rules, stack.default, stack.unparsed)
        except BaseException:
            self.filter.close()
            raise

    def fits(self, stack: Stack) -> bool:
        """Rules change under way, and connections outlive that. Other ports, or room for others, make a new filter."""
        names = tuple(name for pair in stack.forward for name in pair)
        remembers = (stack.connections, stack.timeouts)
        return self._names == names and remembers == (self._stack.connections, self._stack.timeouts)

    def judge_by(self, stack: Stack) -> None:
        """The rules of a stack that fits. FilterError: those before stay, and the next call tries again."""
        if stack != self._stack:
            self.filter.replace(stack.rules, stack.default, stack.unparsed)
            self._stack = stack

    def run(self, ports: Mapping[str, Port]) -> None:
        """Forward between all pairs that are there. Raises the first error when all have been tried."""
        errors: list[Exception] = []
        for pair in self._stack.forward:
            ends = tuple(ports[name] for name in pair if name in ports)
            if len(ends) == 2 and not any(runner.ports == ends for runner in self.runners):
                try:
                    self.runners.append(self._start(ends[0], ends[1], self.filter))
                except Exception as error:  # noqa: BLE001 - whatever it is, the other pairs are to run
                    errors.append(error)
        if errors:
            raise errors[0]

    def let_go(self, port: Port) -> None:
        """End what uses the port."""
        self._end([runner for runner in self.runners if port in runner.ports])

    def pause(self) -> None:
        """Let go of all ports; `run` goes on."""
        self._end(list(self.runners))

    def _end(self, runners: list[ForwardRunner]) -> None:
        with contextlib.ExitStack() as ending:
            for runner in runners:
                self.runners.remove(runner)
                ending.callback(runner.close)

    def close(self) -> None:
        self.pause()
        self.filter.close()
