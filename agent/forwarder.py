"""A VM's stack as it runs: the filter, what joins its ports, and the loops that carry frames past it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

from ringway.agent.functions import FunctionDirectory
from ringway.agent.port import Port
from ringway.agent.runner import StackRunner
from ringway.control.messages import FunctionStatus
from ringway.control.rules import Stack
from ringway.stack.bridge import Bridge
from ringway.stack.filter import Filter
from ringway.stack.function import Function

Start = Callable[[tuple[Port, ...], Filter, Bridge | None, Sequence[Function]], StackRunner]


class Forwarder:
    """Made whole or not at all: an exception leaves nothing behind. One thread at a time."""

    def __init__(self, stack: Stack, directory: FunctionDirectory, start: Start) -> None:
        """`start` makes the runner of a pair, or of a bridge's ports. Nothing is forwarded before `run`."""
        self._start = start
        self._stack = stack
        self._directory = directory
        self.runners: list[StackRunner] = []
        self.bridge: Bridge | None = None
        with contextlib.ExitStack() as begun:
            self.functions = self._load(stack, [], begun)
            self.filter = Filter(stack.port_names(), stack.connections, stack.timeouts)
            begun.callback(self.filter.close)
            self.filter.replace(stack.rules, stack.default, stack.unparsed)
            if (wanted := stack.bridge) is not None:
                self.bridge = Bridge(len(wanted.ports), wanted.addresses, wanted.ageing, wanted.flood_rate)
            begun.pop_all()

    def _load(self, stack: Stack, running: Sequence[Function], begun: contextlib.ExitStack) -> list[Function]:
        """The functions of a stack, those among `running` that are still the same; others are closed with `begun`."""
        functions = []
        for use in stack.functions:
            function = self._directory.load(use, running)
            if function not in running:
                begun.callback(function.close)
            functions.append(function)
        return functions

    def fits(self, stack: Stack) -> bool:
        """Rules and functions change under way, and connections outlive that. Other ports, or room for others, make a
        new filter."""

        def lasting(of: Stack) -> object:
            return of.forward, of.bridge, of.connections, of.timeouts

        return lasting(stack) == lasting(self._stack)

    def judge_by(self, stack: Stack) -> None:
        """The rules of a stack that fits. FilterError: those before stay, and the next call tries again."""
        if stack != self._stack:
            self.filter.replace(stack.rules, stack.default, stack.unparsed)
            self._stack = stack

    def reload(self, stack: Stack) -> bool:
        """Go on with the functions of a stack that fits, as the directory has them now. Was any another one?

        Those of before go on when one of them does not load or start. What is not another one counts on.
        """
        before = self.functions
        with contextlib.ExitStack() as begun:
            fresh = self._load(stack, before, begun)
            if fresh == before:
                return False
            self._use(fresh)
            begun.pop_all()
        for function in fresh:
            function.carry_on_from(before)  # now that none of those counts any more
        for function in before:
            if function not in fresh:
                function.close()
        return True

    def _use(self, functions: list[Function]) -> None:
        before, self.functions = self.functions, functions
        try:
            for runner in self.runners:
                runner.use(functions)
        except BaseException:
            self.functions = before
            for runner in list(self.runners):
                try:
                    runner.use(before)
                except BaseException:
                    self._end([runner])  # `run` makes it anew
                    raise
            raise

    def run(self, ports: Mapping[str, Port]) -> None:
        """Join all ports that are there. Raises the first error when all have been tried."""
        if self._stack.bridge is not None:
            self._run_bridge(ports, self._stack.bridge.ports)
            return
        errors: list[Exception] = []
        for pair in self._stack.forward:
            ends = tuple(ports[name] for name in pair if name in ports)
            if len(ends) == 2 and not any(runner.ports == ends for runner in self.runners):
                try:
                    self.runners.append(self._start(ends, self.filter, None, self.functions))
                except Exception as error:  # noqa: BLE001 - whatever it is, the other pairs are to run
                    errors.append(error)
        if errors:
            raise errors[0]

    def follow_settings(self) -> None:
        """Settings of a port have changed."""
        for runner in self.runners:
            runner.follow_settings()

    def _run_bridge(self, ports: Mapping[str, Port], names: list[str]) -> None:
        """With another port there, what runs is stopped for a moment and started with all; what is known stays."""
        ends = tuple(ports[name] for name in names if name in ports)
        if [runner.ports for runner in self.runners] == [ends]:
            return
        self.pause()
        if ends:
            self.runners.append(self._start(ends, self.filter, self.bridge, self.functions))

    def functions_told(self) -> list[FunctionStatus]:
        """Which run, and what they have counted."""
        told = [FunctionStatus(function.name, function.counts(), function.digest) for function in self.functions]
        return told + ([FunctionStatus("bridge", self.bridge.counts())] if self.bridge is not None else [])

    def let_go(self, port: Port) -> None:
        """End what uses the port."""
        self._end([runner for runner in self.runners if port in runner.ports])
        if self.bridge is not None and port.name in self.filter.port_names:
            self.bridge.forget(self.filter.number_of(port.name))

    def pause(self) -> None:
        """Let go of all ports; `run` goes on."""
        self._end(list(self.runners))

    def _end(self, runners: list[StackRunner]) -> None:
        with contextlib.ExitStack() as ending:
            for runner in runners:
                self.runners.remove(runner)
                ending.callback(runner.close)

    def close(self) -> None:
        self.pause()
        self.filter.close()
        while self.functions:
            self.functions.pop().close()
        if self.bridge is not None:
            self.bridge.close()
            self.bridge = None
