"""Both releases, by the names that the tests call them by."""

from __future__ import annotations

import pytest

from tests.upgrade.release import TREE, Release, release_before

Releases = dict[str, Release]


@pytest.fixture(scope="session")
def releases() -> Releases:
    return {release.name: release for release in (release_before(), TREE)}
