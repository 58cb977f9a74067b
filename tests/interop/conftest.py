"""A fabric for tests with other people's programs at one of its ends."""

from __future__ import annotations

from tests.system.conftest import fabric  # noqa: F401 - a fixture
