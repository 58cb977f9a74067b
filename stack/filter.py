"""The filter's Python face: turns checked rules into a table, puts it in force, reads what it counted."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Protocol, Self

from ringway.shm._native import ffi, lib


class FilterCause(StrEnum):
    """Why a filter could not be made or changed."""

    RULE = "rule"  # a rule that cannot be
    PORT = "port"  # a rule names a port that frames cannot enter by
    TABLE = "table"  # rules that cannot be together, or too many
    STUCK = "stuck"  # a packet loop did not come by
    MEMORY = "memory"
    CONNECTIONS = "connections"  # more or fewer than a filter can remember
    CLOSED = "closed"


class FilterError(Exception):
    """A filter was not made or changed. After `FilterCause.STUCK` the new rules are in force all the same."""

    def __init__(self, cause: FilterCause, message: str) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message


class RuleLike(Protocol):
    """A rule as plain values; None means any."""

    @property
    def name(self) -> str: ...
    @property
    def action(self) -> str: ...
    @property
    def from_port(self) -> str | None: ...
    @property
    def ether(self) -> int | None: ...
    @property
    def protocol(self) -> int | None: ...
    @property
    def source(self) -> str | None: ...
    @property
    def destination(self) -> str | None: ...
    @property
    def source_port(self) -> tuple[int, int] | None: ...
    @property
    def destination_port(self) -> tuple[int, int] | None: ...
    @property
    def tcp_mask(self) -> int: ...
    @property
    def tcp_value(self) -> int: ...
    @property
    def icmp_type(self) -> int | None: ...
    @property
    def icmp_code(self) -> int | None: ...
    @property
    def vlan(self) -> int | None: ...


@dataclass(frozen=True)
class RuleTotals:
    """Frames that a rule, or the default action, has decided over, and their bytes."""

    name: str
    frames: int
    bytes: int


class TimeoutsLike(Protocol):
    """Seconds for which a connection is remembered after its last frame; struct rway_conntrack_timeouts."""

    @property
    def tcp_opening(self) -> int: ...
    @property
    def tcp_established(self) -> int: ...
    @property
    def tcp_closing(self) -> int: ...
    @property
    def udp(self) -> int: ...
    @property
    def udp_answered(self) -> int: ...
    @property
    def icmp(self) -> int: ...


@dataclass(frozen=True)
class ConnectionTotals:
    """What a filter remembers: `in_use` of `places`, those included whose time is over and that nobody has missed.

    `made` and `replaced` count connections (`replaced`: unanswered or closed ones that gave way to new ones),
    `refused` counts frames dropped because there was no place for their connection.
    """

    places: int
    in_use: int
    made: int
    replaced: int
    refused: int


DEFAULT_NAME = "default"  # what the default action's counts are listed under
ESTABLISHED_NAME = "established"  # and those of frames that passed because their connection is known
FRAGMENTS_NAME = "established.fragments"  # or because their datagram's first fragment passed
INVALID_NAME = "established.invalid"  # and of those dropped because no TCP segment has such flags

_MALFORMED = "RWAY_MALFORMED_"
CAUSES = {
    value: name.removeprefix(_MALFORMED).lower()
    for value, name in ffi.typeof("enum rway_malformed").elements.items()
    if name.startswith(_MALFORMED) and value != lib.RWAY_MALFORMED_CAUSES
}

TIMEOUT_NAMES = tuple(field for field, _ in ffi.typeof("struct rway_conntrack_timeouts").fields)

_ACTIONS = {"allow": lib.RWAY_ALLOW, "deny": lib.RWAY_DENY}


class Filter:
    """Rules that packet loops judge by. Before the first `replace` everything is denied. Any thread may call it."""

    def __init__(self, port_names: Sequence[str], connections: int = 0, timeouts: TimeoutsLike | None = None) -> None:
        """`port_names` in the order of the numbers by which the loops know the ports that frames enter by.

        `connections`: how many it is to remember, with their `timeouts`; 0: it judges each frame alone. FilterError.
        """
        self._ports = {name: number for number, name in enumerate(port_names)}
        self._names: list[str] = []
        self._lock = threading.Lock()
        self._native = lib.rway_filter_new()
        if self._native == ffi.NULL:
            raise FilterError(FilterCause.MEMORY, "there is no memory for a filter; free some and try again")
        self._places = lib.rway_conntrack_places(connections) if connections else 0
        if connections:
            self._track(connections, timeouts)

    def _track(self, connections: int, timeouts: TimeoutsLike | None) -> None:
        if timeouts is None:
            raise TypeError("a filter that remembers connections needs their timeouts")
        native = ffi.new("struct rway_conntrack_timeouts *", {name: getattr(timeouts, name) for name in TIMEOUT_NAMES})
        error = ffi.new("struct rway_error *")
        if lib.rway_filter_track(self._native, connections, native, error) == 0:
            return
        self.close()
        if error.cause == lib.RWAY_REFUSED_ARGUMENT:
            least, most = lib.RWAY_CONNECTIONS_MIN, lib.RWAY_CONNECTIONS_MAX
            message = f"{connections} connections cannot be remembered: use {least} to {most}"
            raise FilterError(FilterCause.CONNECTIONS, message)
        size = lib.rway_conntrack_size(connections) / (1 << 20)
        message = f"there is no memory to remember {connections} connections, {size:.1f} MiB: free some, or use fewer"
        raise FilterError(FilterCause.MEMORY, message)

    @property
    def native(self) -> Any:
        """The `struct rway_filter *` that loops are given; good until `close`."""
        if self._native == ffi.NULL:
            raise FilterError(FilterCause.CLOSED, "this filter is closed; make a new one")
        return self._native

    @property
    def port_names(self) -> tuple[str, ...]:
        return tuple(self._ports)

    def number_of(self, port: str) -> int:
        """What the loops call the port that frames enter by."""
        return self._ports[port]

    def replace(self, rules: Sequence[RuleLike], default: str, unparsed: str = "deny") -> None:
        """Put other rules in force while traffic conntrack. Counters stay with the names of the rules.

        `unparsed`: what becomes of frames whose headers cannot be judged, "deny" or "allow"; no rule sees them.
        """
        with self._lock:
            native = self.native
            passes = _action(unparsed, "unparsed") == lib.RWAY_ALLOW
            table = self._table(rules, default)
            if passes:
                lib.rway_filter_table_pass_unparsed(table)
            self._names = [rule.name for rule in rules]
            if lib.rway_filter_replace(native, table) != 0:
                raise FilterError(
                    FilterCause.STUCK,
                    "a packet loop did not come by within a second and may still judge by the rules before; the new"
                    " ones are in force for all others. If this lasts, restart the agent",
                )

    def counts(self) -> list[RuleTotals]:
        """What each rule has decided over so far, in the rules' order; then the default action.

        Where connections are remembered, what was decided because of them comes last: frames that passed; and, once
        there were any, later fragments that passed and frames of no valid TCP flags that were dropped.
        """
        with self._lock:
            names = [*self._names, DEFAULT_NAME]
            counts = ffi.new("struct rway_rule_counts[]", len(names))
            lib.rway_filter_counts(self.native, counts, len(names))
            found = [RuleTotals(name, count.frames, count.bytes) for name, count in zip(names, counts, strict=True)]
            if self._places:
                conntrack = self._conntrack_counts()
                found.append(RuleTotals(ESTABLISHED_NAME, conntrack.frames, conntrack.bytes))
                if conntrack.fragments:
                    found.append(RuleTotals(FRAGMENTS_NAME, conntrack.fragments, conntrack.fragment_bytes))
                if conntrack.invalid:
                    found.append(RuleTotals(INVALID_NAME, conntrack.invalid, conntrack.invalid_bytes))
            return found

    def unparsed(self) -> list[tuple[str, int, int]]:
        """Frames whose headers could not be judged: the cause's name, how many were dropped, and passed."""
        with self._lock:
            counts = ffi.new("struct rway_unparsed_counts *")
            lib.rway_filter_unparsed_counts(self.native, counts)
        found = [(name, counts.dropped[cause], counts.passed[cause]) for cause, name in CAUSES.items()]
        return [count for count in found if any(count[1:])]

    def connections(self) -> ConnectionTotals | None:
        """None when none are remembered."""
        with self._lock:
            if not self._places:
                return None
            counts = self._conntrack_counts()
            in_use = max(0, counts.made - counts.gone)  # not of one instant
            return ConnectionTotals(self._places, in_use, counts.made, counts.replaced, counts.refused)

    def _conntrack_counts(self) -> Any:
        counts = ffi.new("struct rway_conntrack_counts *")
        lib.rway_filter_conntrack_counts(self.native, counts)
        return counts

    def close(self) -> None:
        """Free the filter, once no loop uses it any more."""
        with self._lock:
            native, self._native = self._native, ffi.NULL
            lib.rway_filter_free(native)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _table(self, rules: Sequence[RuleLike], default: str) -> Any:
        natives = ffi.new("struct rway_rule[]", len(rules))
        error = ffi.new("struct rway_error *")
        for rule, native in zip(rules, natives, strict=True):
            _compile(rule, self._ports, native)
            if lib.rway_rule_check(ffi.addressof(native), error) != 0:
                raise FilterError(FilterCause.RULE, f"rule {rule.name!r}: {_told(error)}; correct the rule")
        table = lib.rway_filter_table_new(natives, len(rules), _action(default, "the default"), error)
        if table == ffi.NULL:
            cause = FilterCause.MEMORY if error.cause == lib.RWAY_REFUSED_SYSTEM else FilterCause.TABLE
            raise FilterError(cause, f"these rules cannot be put in force: {_told(error)}")
        return table


def _told(error: Any) -> str:
    what = ffi.string(error.what).decode()
    if error.cause == lib.RWAY_REFUSED_SYSTEM:
        return f"no {what}"
    return f"{what} is {error.found}, expected {error.expected}"


def _action(text: str, owner: str) -> int:
    if text not in _ACTIONS:
        raise FilterError(FilterCause.RULE, f'{owner}: {text!r} is not an action; use "allow" or "deny"')
    return int(_ACTIONS[text])


def _compile(rule: RuleLike, ports: dict[str, int], native: Any) -> None:
    """Fill a `struct rway_rule`; what C cannot hold is refused here, what cannot be meant by rway_rule_check."""
    try:
        native.name = rule.name.encode() + b"\0"
        native.action = _action(rule.action, f"rule {rule.name!r}")
        _compile_entry(rule, ports, native)
        _compile_prefix(native, "source", lib.RWAY_MATCH_SOURCE, rule.source)
        _compile_prefix(native, "destination", lib.RWAY_MATCH_DESTINATION, rule.destination)
        _compile_ports(native, "source_port", lib.RWAY_MATCH_SOURCE_PORT, rule.source_port)
        _compile_ports(native, "destination_port", lib.RWAY_MATCH_DESTINATION_PORT, rule.destination_port)
        if rule.tcp_mask != 0 or rule.tcp_value != 0:
            native.match |= lib.RWAY_MATCH_TCP_FLAGS
            native.tcp_mask, native.tcp_value = rule.tcp_mask, rule.tcp_value
        for field in ("icmp_type", "icmp_code", "vlan"):
            if getattr(rule, field) is not None:
                native.match |= getattr(lib, f"RWAY_MATCH_{field.upper()}")
                setattr(native, field, getattr(rule, field))
    except (IndexError, OverflowError, TypeError, ValueError) as error:
        message = f"rule {rule.name!r} has a value that no packet can have: {error}; correct the rule"
        raise FilterError(FilterCause.RULE, message) from error


def _compile_entry(rule: RuleLike, ports: dict[str, int], native: Any) -> None:
    if rule.from_port is not None:
        if rule.from_port not in ports:
            known = ", ".join(sorted(ports)) or "none"
            message = f"rule {rule.name!r}: frames cannot enter by port {rule.from_port!r}; use one of: {known}"
            raise FilterError(FilterCause.PORT, message)
        native.match |= lib.RWAY_MATCH_IN_PORT
        native.in_port = ports[rule.from_port]
    if rule.ether is not None:
        native.match |= lib.RWAY_MATCH_ETHER
        native.ether = rule.ether
    if rule.protocol is not None:
        native.match |= lib.RWAY_MATCH_PROTOCOL
        native.protocol = rule.protocol


def _compile_prefix(native: Any, field: str, match: int, text: str | None) -> None:
    if text is None:
        return
    network = ipaddress.ip_network(text)
    if native.ip_version not in (0, network.version):
        raise ValueError("source and destination are of different families")
    native.match |= match
    native.ip_version = network.version
    setattr(native, f"{field}_bits", network.prefixlen)
    ffi.memmove(getattr(native, field), network.network_address.packed, network.max_prefixlen // 8)


def _compile_ports(native: Any, field: str, match: int, ports: tuple[int, int] | None) -> None:
    if ports is None:
        return
    native.match |= match
    setattr(native, f"{field}_low", ports[0])
    setattr(native, f"{field}_high", ports[1])
