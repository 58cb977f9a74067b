"""The filter's Python face: which rules it refuses and how it says so, and what happens to counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from ringway.control.rules import Timeouts
from ringway.shm._native import ffi, lib
from ringway.stack.filter import ConnectionTotals, Filter, FilterCause, FilterError, RuleTotals


@dataclasses.dataclass(frozen=True)
class Rule:
    name: str = "rule"
    action: str = "deny"
    from_port: str | None = None
    ether: int | None = None
    protocol: int | None = None
    source: str | None = None
    destination: str | None = None
    source_port: tuple[int, int] | None = None
    destination_port: tuple[int, int] | None = None
    tcp_mask: int = 0
    tcp_value: int = 0
    icmp_type: int | None = None
    icmp_code: int | None = None
    vlan: int | None = None


TELNET = Rule("no-telnet", ether=0x0800, protocol=6, destination_port=(23, 23))
INSIDE = Rule("inside", "allow", from_port="inside")


@pytest.fixture
def filter_() -> Iterator[Filter]:
    with Filter(["inside", "outside"]) as made:
        yield made


def judge(filter_: Filter, in_port: int, destination_port: int) -> int:
    """One TCP frame of 100 bytes, as a loop would have it judged."""
    headers = ffi.new("struct rway_headers *")
    headers.ether, headers.ip_version, headers.protocol = 0x0800, 4, 6
    headers.destination_port, headers.flags = destination_port, lib.RWAY_HEADERS_PORTS
    counts = ffi.new("struct rway_rule_counts **")
    reader = lib.rway_filter_reader_add(filter_.native)
    table = lib.rway_filter_enter(filter_.native, reader, counts)
    verdict: int = lib.rway_filter_judge(table, headers, in_port, counts[0], 100)
    lib.rway_filter_reader_remove(filter_.native, reader)
    return verdict


def refusal(filter_: Filter, *rules: Rule, default: str = "deny") -> FilterError:
    with pytest.raises(FilterError) as caught:
        filter_.replace(rules, default)
    return caught.value


def test_a_filter_without_rules_denies_and_counts_it_under_default(filter_: Filter) -> None:
    assert judge(filter_, 0, 80) == lib.RWAY_DENY
    assert filter_.counts() == [RuleTotals("default", 1, 100)]


def test_a_blocked_port_is_counted_under_its_rule(filter_: Filter) -> None:
    filter_.replace([TELNET, INSIDE], "deny")
    assert judge(filter_, 0, 23) == lib.RWAY_DENY
    assert judge(filter_, 0, 80) == lib.RWAY_ALLOW
    assert judge(filter_, 1, 80) == lib.RWAY_DENY
    assert filter_.counts() == [
        RuleTotals("no-telnet", 1, 100),
        RuleTotals("inside", 1, 100),
        RuleTotals("default", 1, 100),
    ]


def test_counts_stay_with_the_name_when_rules_change(filter_: Filter) -> None:
    filter_.replace([TELNET, INSIDE], "deny")
    judge(filter_, 0, 23)
    filter_.replace([INSIDE, TELNET, Rule("new")], "allow")
    judge(filter_, 1, 23)
    assert filter_.counts() == [
        RuleTotals("inside", 0, 0),
        RuleTotals("no-telnet", 2, 200),
        RuleTotals("new", 0, 0),
        RuleTotals("default", 0, 0),
    ]


def test_a_refused_change_leaves_the_rules_before_in_force(filter_: Filter) -> None:
    filter_.replace([INSIDE], "deny")
    refusal(filter_, TELNET, Rule(action="reject"))
    assert judge(filter_, 0, 23) == lib.RWAY_ALLOW
    assert filter_.counts()[0] == RuleTotals("inside", 1, 100)


def test_a_rule_from_an_unknown_port_is_refused_and_the_ports_are_named(filter_: Filter) -> None:
    error = refusal(filter_, Rule("r", from_port="side"))
    assert error.cause is FilterCause.PORT
    assert error.message == "rule 'r': frames cannot enter by port 'side'; use one of: inside, outside"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": ""}, "length of name is 0"),
        ({"name": "x" * 64}, "value that no packet can have"),
        ({"action": "reject"}, "'reject' is not an action"),
        ({"ether": 0x10000}, "value that no packet can have"),
        ({"protocol": -1}, "value that no packet can have"),
        ({"source": "10.0.0.0/33"}, "'10.0.0.0/33' does not appear to be"),
        ({"source": "10.0.0.1/8"}, "has host bits set"),
        ({"source": "10.0.0.0/8", "destination": "fd00::/8"}, "of different families"),
        ({"destination_port": (1, 70000), "protocol": 6}, "value that no packet can have"),
        ({"destination_port": (2, 1), "protocol": 6}, "destination_port_low is 2, expected 1"),
        ({"destination_port": (1, 2)}, "protocol of a rule with ports is 0"),
        ({"source_port": (1, 2), "protocol": 1}, "protocol of a rule with ports is 1"),
        ({"tcp_mask": 2, "protocol": 17}, "protocol of a rule with tcp flags is 17"),
        ({"tcp_mask": 2, "tcp_value": 3, "protocol": 6}, "tcp_value is 3, expected 2"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_by_name(filter_: Filter, change: dict[str, Any], told: str) -> None:
    error = refusal(filter_, dataclasses.replace(Rule(), **change))
    assert error.cause is FilterCause.RULE
    assert told in error.message
    assert "rule" in error.message


def test_rules_that_cannot_be_together_are_refused(filter_: Filter) -> None:
    assert refusal(filter_, TELNET, TELNET).cause is FilterCause.TABLE
    many = refusal(filter_, *(Rule(f"rule-{number}") for number in range(1025)))
    assert many.cause is FilterCause.TABLE
    assert "number of rules is 1025, expected 1024" in many.message


def test_an_unknown_default_is_refused(filter_: Filter) -> None:
    assert "the default: 'drop' is not an action" in refusal(filter_, default="drop").message


def test_a_loop_that_does_not_come_by_is_told_and_the_new_rules_are_in_force(filter_: Filter) -> None:
    reader = lib.rway_filter_reader_add(filter_.native)
    lib.rway_filter_enter(filter_.native, reader, ffi.new("struct rway_rule_counts **"))
    assert refusal(filter_, INSIDE).cause is FilterCause.STUCK
    assert judge(filter_, 0, 80) == lib.RWAY_ALLOW
    lib.rway_filter_reader_remove(filter_.native, reader)
    filter_.replace([INSIDE], "deny")
    assert filter_.counts() == [RuleTotals("inside", 1, 100), RuleTotals("default", 0, 0)]


def test_a_closed_filter_says_so() -> None:
    closed = Filter([])
    closed.close()
    closed.close()
    for use in (lambda: closed.replace([], "deny"), closed.counts, lambda: closed.native):
        with pytest.raises(FilterError) as caught:
            use()
        assert caught.value.cause is FilterCause.CLOSED


@pytest.mark.parametrize("connections", [1, 1023, 16777217])
def test_a_number_of_connections_that_cannot_be_is_refused(connections: int) -> None:
    with pytest.raises(FilterError) as caught:
        Filter(["inside", "outside"], connections, Timeouts())
    assert caught.value.cause is FilterCause.CONNECTIONS
    assert caught.value.message == f"{connections} connections cannot be remembered: use 1024 to 16777216"


def test_a_filter_that_remembers_connections_says_how_many() -> None:
    with Filter(["inside", "outside"], 1024, Timeouts()) as made:
        assert made.connections() == ConnectionTotals(places=1536, in_use=0, made=0, replaced=0, refused=0)
        assert made.counts() == [RuleTotals("default", 0, 0), RuleTotals("established", 0, 0)]


def test_a_filter_without_connections_says_so(filter_: Filter) -> None:
    assert filter_.connections() is None
