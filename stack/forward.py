"""Forwarding from Python: a filter's judge in a loop, and the jobs that send frames past it."""

from __future__ import annotations

from typing import Any

from ringway.engine.loop import Loop
from ringway.shm import Consumer, Producer
from ringway.shm._native import ffi, lib
from ringway.stack.spread import Spread


class Judge:
    """A filter as one loop's jobs use it; part of that loop from here on."""

    def __init__(self, loop: Loop, native_filter: Any) -> None:
        self._loop = loop
        self._native = lib.rway_judge_new(native_filter)
        if self._native == ffi.NULL:
            raise RuntimeError("no memory for a reader of the filter, or all its places are taken")
        loop.hook(lib.rway_judge_hook(self._native))

    def forward(self, source: Consumer, target: Producer, in_port: int, out_port: int, patience_us: int) -> None:
        """Forward frames past the filter, as coming in by port number `in_port` and leaving by `out_port`.

        Frames wait for room in `target` until its consumer has not moved for `patience_us`; 0: they are dropped.
        """
        job = lib.rway_forward_new(self._native, source.native, target.native, in_port, out_port, patience_us)
        self._loop.add(job, source, target)

    def forward_spread(self, source: Consumer, target: Spread, in_port: int, out_port: int) -> None:
        """The same into several queues, each flow into its own; jobs of the loop may share the spread."""
        job = lib.rway_forward_spread_new(self._native, source.native, target.native, in_port, out_port)
        self._loop.add(job, source, target)
