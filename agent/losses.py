"""What a forwarder that was killed held: counted by the next one, which is then watched in its turn (ADR 27)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ringway.agent.port import Port
from ringway.shm import LossState, count_losses, watch_losses

Way = tuple[Sequence[Port], Sequence[Port]]  # whatever comes in by the first leaves by the second


class Losses:
    """Of a runner that moves nothing yet; close it when it does not any more."""

    def __init__(self, ports: Sequence[Port], ways: Iterable[Way], log: Callable[[str], None]) -> None:
        self._ports = ports
        between = f"between {' and '.join(port.name for port in ports)}"
        state, frames = count_losses([port.region for port in ports])
        if state is LossState.IMPLAUSIBLE:
            log(f"what the last restart lost {between} is not known: {frames} frames cannot be, so none are counted")
        elif frames:
            log(f"{frames} frames {between} were lost by the last restart")
        for sources, targets in ways:
            watch_losses([port.region for port in sources], [port.region for port in targets])

    def close(self) -> None:
        for port in self._ports:
            port.region.forget_losses()
