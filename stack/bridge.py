"""A bridge from Python: which address is behind which port, shared by all loops of a stack."""

from __future__ import annotations

from typing import Any

from ringway.shm._native import ffi, lib

COUNTERS = tuple(name for name, _ in ffi.typeof("struct rway_bridge_counts").fields)


class Bridge:
    """Any thread may use it. Close it once no loop uses it any more."""

    def __init__(self, ports: int, addresses: int, ageing: int, flood_rate: int) -> None:
        """See `rway_bridge_new`; `ageing` in seconds, `flood_rate` in frames a second."""
        self.native: Any = lib.rway_bridge_new(addresses, ports, ageing, flood_rate)
        if self.native == ffi.NULL:
            raise MemoryError(f"no memory for {addresses} addresses of each of {ports} ports")

    def forget(self, port: int) -> None:
        """All addresses seen by that port, which is gone."""
        lib.rway_bridge_forget(self.native, port)

    def counts(self) -> dict[str, int]:
        counts = ffi.new("struct rway_bridge_counts *")
        lib.rway_bridge_read(self.native, counts)
        return {name: int(getattr(counts, name)) for name in COUNTERS}

    def close(self) -> None:
        native, self.native = self.native, ffi.NULL
        lib.rway_bridge_free(native)
