"""What a refusal must look like: its cause, its words, and nothing left behind."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from ringway.shm import RefusalCause, RegionError, read_region
from tests.support.carrier import Carrier, left_behind


def refused(call: Callable[[], object]) -> RegionError:
    """The refusal. It must leave neither descriptor nor mapping behind."""
    before = left_behind()
    with pytest.raises(RegionError) as caught:
        call()
    assert left_behind() == before
    return caught.value


def check_message(error: RegionError, cause: RefusalCause, what: str, found: int | None = None) -> None:
    message = str(error)
    assert (error.cause, error.what) == (cause, what), message
    assert found is None or error.found == found
    number = f"{error.found:#x}" if cause is RefusalCause.MAGIC or "features" in what else str(error.found)
    assert message.startswith(f"{what} is {number}, expected "), message
    assert len(message.partition("; ")[2]) > 20, f"no remedy in: {message}"


def refuses_attach(made: Carrier, cause: RefusalCause, what: str, found: int | None = None) -> None:
    for side in (0, 1):
        check_message(refused(functools.partial(made.attach, side)), cause, what, found)


def refuses_both(made: Carrier, cause: RefusalCause, what: str, found: int | None = None) -> None:
    refuses_attach(made, cause, what, found)
    check_message(refused(lambda: read_region(made.fd)), cause, what, found)


def carries_a_frame(made: Carrier) -> None:
    frame = bytes(range(60))
    with made.attach(0) as a, made.attach(1) as b:
        for queue in range(made.geometry.queues):
            assert a.producers[queue].send([frame]) == 1
            assert b.consumers[queue].receive() == [frame]
    assert read_region(made.fd).geometry == made.geometry
