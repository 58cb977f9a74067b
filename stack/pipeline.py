"""A stack from Python: what one loop runs over its ports, set up here and then left alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ringway.engine.loop import Loop
from ringway.shm import Consumer, Producer
from ringway.shm._native import ffi, lib
from ringway.stack.bridge import Bridge
from ringway.stack.function import Counters, Function, FunctionCause, FunctionError
from ringway.stack.steering import Steering


class Pipeline:
    """The stack of one loop, and part of it from here on. Functions and ports first, then what brings packets."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._native = lib.rway_pipeline_new()
        if self._native == ffi.NULL:
            raise MemoryError("no memory for a stack")
        loop.hook(lib.rway_pipeline_hook(self._native))

    def filter(self, native_filter: Any) -> None:
        """Judge by this filter; by the connections that it remembers, too, if it does."""
        if lib.rway_pipeline_filter(self._native, native_filter) != 0:
            raise RuntimeError("no memory for a reader of the filter, or all its places are taken")

    def function(self, function: Function, port_names: Sequence[str]) -> None:
        """Have this function decide next; ports are named in the order of their numbers. FunctionError."""
        counters = Counters(function)
        self._loop.use(counters)
        texts = [ffi.new("char[]", name.encode()) for name in port_names]
        names = ffi.new("const char *[]", texts)
        native, options = function.native, function.options
        if lib.rway_pipeline_add(self._native, native, options, counters.native, names, len(texts)) != 0:
            message = "it does not start: its start returned NULL, or its stack has too many functions"
            raise FunctionError(FunctionCause.START, function.name, message)

    def out(self, port: int, target: Producer | Steering) -> None:
        """What leaves by port number `port` goes into this queue, or each flow into one of several."""
        add = lib.rway_pipeline_out_steered if isinstance(target, Steering) else lib.rway_pipeline_out
        self._loop.use(target)
        if add(self._native, port, target.native) != 0:
            raise MemoryError(f"no memory for a way out, or port number {port} has one")

    def wire(self, source: Consumer, in_port: int, out_port: int, patience_us: int) -> Any:
        """Send on what comes in by `source`, of port number `in_port`, by `out_port`.

        Frames wait for room in a single out-queue until its consumer has not moved for `patience_us`; 0: they are
        dropped. The job is returned, for `rway_wire_wait`.
        """
        return self._loop.add(lib.rway_wire_new(self._native, source.native, in_port, out_port, patience_us), source)

    def bridge(self, bridge: Bridge, sources: Iterable[tuple[Consumer, int]]) -> None:
        """Send on what comes in by these queues, each of a port with its number, as the bridge has it."""
        job = lib.rway_bridge_job_new(self._native, bridge.native)
        consumers = []
        for source, port in sources:
            if job == ffi.NULL or lib.rway_bridge_job_add(job, source.native, port) != 0:
                raise MemoryError("no memory for a bridge, or too many queues for one loop")
            consumers.append(source)
        self._loop.add(job, *consumers)
