"""The broker that tests of a whole fabric share in kind: one each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.support.broker_process import BrokerProcess, short_directory
from tests.support.fabric import Fabric


@pytest.fixture
def fabric() -> Iterator[Fabric]:
    with short_directory() as path, BrokerProcess(path / "run") as broker, contextlib.closing(Fabric(broker)) as made:
        yield made


@pytest.fixture(scope="module")
def module_fabric() -> Iterator[Fabric]:
    """One for a module whose tests leave it as they found it."""
    with short_directory() as path, BrokerProcess(path / "run") as broker, contextlib.closing(Fabric(broker)) as made:
        yield made
