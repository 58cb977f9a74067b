"""The victim of the tests in this folder, and the rule that no test leaves descriptors or mappings behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.carrier import carrier, left_behind
from tests.support.victim import Victim


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    before = left_behind()
    yield
    assert left_behind() == before


@pytest.fixture
def victim() -> Iterator[Victim]:
    with (
        carrier() as made,
        carrier() as other,
        made.attach(0) as region,
        other.attach(0) as near,
        other.attach(1) as far,
    ):
        yield Victim(made, region, (near, far))
