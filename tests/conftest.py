"""What every test may use: environment requirements, and the choice between the ordinary and the full suite."""

import os

import pytest
from hypothesis import HealthCheck, settings

# How long examples take says how busy the machine is: no test fails for that.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def require(condition: bool, reason: str) -> None:
    """Skip the test where the machine cannot do what it needs; where RINGWAY_REQUIRE is set, fail it instead."""
    if condition:
        return
    if os.environ.get("RINGWAY_REQUIRE"):
        pytest.fail(f"required here (RINGWAY_REQUIRE is set), but: {reason}", pytrace=False)
    pytest.skip(reason)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also run the tests marked full")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_root"):
        require(
            os.environ.get("RINGWAY_SANDBOX") == "1",
            "needs to be root in namespaces of its own: start the tests with ./run test, as root or where users may "
            "make namespaces",
        )
