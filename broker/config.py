"""The fabric that a file asks for, as typed values, and how a file's tables become them."""

from __future__ import annotations

import difflib
import ipaddress
import re
from functools import lru_cache
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec import Struct

from ringway.broker.fabric_file import LINKS_MAX, FabricCause, FabricError, FabricFile, Key
from ringway.control.messages import CARRIER_DELAY_MS
from ringway.control.names import NAME_RULE, PLAIN_NAME_RULE, is_name, is_plain_name
from ringway.control.rules import (
    CONNECTIONS_MAX,
    CONNECTIONS_MIN,
    TIMEOUT_MAX,
    RuleError,
    RuleText,
    Stack,
    Timeouts,
    check_rules,
)
from ringway.shm import Geometry, Shape

MIB: Final = 1 << 20
GIB: Final = 1 << 30
UNITS: Final = {"B": 1, "KiB": 1 << 10, "MiB": MIB, "GiB": GIB, "TiB": 1 << 40}
MTU_MIN: Final = 68  # RFC 791
CARRIER_DELAY_MAX: Final = 3600  # seconds
MTU_MAX: Final = 65521  # what the kernel lets a tap have: 65535 less an Ethernet header
INTERFACE_PATTERN: Final = r"[A-Za-z0-9_.-]{1,15}"  # of what dev_valid_name() takes, what is safe to print
TAKEN_INTERFACES: Final = (".", "..", "lo", "all", "default")  # by the kernel, as names or in /proc/sys/net


class LimitsConfig(Struct, frozen=True):
    link_bytes: int = GIB
    vm_bytes: int = 4 * GIB


class PortConfig(Struct, frozen=True):
    name: str
    kind: Literal["tap", "local"]
    interface: str | None = None  # from here on for tap ports only
    mtu: int | None = None
    offload: bool = False
    mac: str | None = None
    address: tuple[str, ...] = ()
    carrier_delay_ms: int = CARRIER_DELAY_MS


class End(Struct, frozen=True):
    vm: str
    port: str

    def __str__(self) -> str:
        return f"{self.vm}.{self.port}"


@lru_cache(maxsize=64)
def _shape(geometry: Geometry) -> Shape:
    """Computed once for all the links of one size, which are mostly all of them."""
    return geometry.shape()


class LinkConfig(Struct, frozen=True):
    name: str
    ends: tuple[End, End]  # side a, side b
    geometry: Geometry
    huge_pages: bool = False

    def shape(self) -> Shape:
        """The sizes that follow; RegionError when the geometry is not possible."""
        return _shape(self.geometry)

    def memory(self) -> int:
        shape = self.shape()
        return shape.region_size if self.huge_pages else shape.memory


class VmConfig(Struct, frozen=True):
    name: str
    ports: dict[str, PortConfig]
    stack: Stack | None = None


class FabricConfig(Struct, frozen=True):
    name: str
    limits: LimitsConfig
    vms: dict[str, VmConfig]
    links: dict[str, LinkConfig]

    def port(self, end: End) -> PortConfig:
        return self.vms[end.vm].ports[end.port]


# What the tables may hold, key by key. Unknown keys are found before conversion, to name them with their neighbours.


class LimitsTable(Struct, forbid_unknown_fields=True):
    link_bytes: str | int = GIB
    vm_bytes: str | int = 4 * GIB


class PortTable(Struct, forbid_unknown_fields=True):
    kind: str
    interface: str | None = None
    mtu: int | None = None
    offload: bool | None = None
    mac: str | None = None
    address: list[str] | None = None
    carrier_delay: int | float | None = None


class StackTable(Struct, forbid_unknown_fields=True):
    forward: list[list[str]]
    default: str
    rule: list[dict[str, Any]] = []
    connections: int = 0
    timeouts: dict[str, Any] = {}
    unparsed: str = "deny"


class LinkTable(Struct, forbid_unknown_fields=True):
    ends: list[str]
    queues: int = 1
    slots: int = 1024
    slot_payload: int = 2048
    headroom: int = 64
    huge_pages: bool = False


EXAMPLES: Final = {
    "forward": '[["inside", "outside"]]',
    "ends": '["client.net", "firewall.inside"]',
    "address": '["10.77.0.1/24"]',
    "rule": "[[vm.NAME.stack.rule]], with two brackets",
    "timeouts": "[vm.NAME.stack.timeouts], with seconds in it",
}

Table = TypeVar("Table", bound=Struct)


def config_from(file: FabricFile) -> FabricConfig:
    """Everything that can be judged table by table; checks.py judges what spans them."""
    tables = file.tables
    _refuse_unknown(file, (), tables, ("limits", "vm", "link"))
    _refuse_many_links(file, tables.get("link"))
    limits = convert(file, ("limits",), tables.get("limits", {}), LimitsTable)
    return FabricConfig(
        name=file.name,
        limits=LimitsConfig(
            _size(file, ("limits", "link_bytes"), limits.link_bytes),
            _size(file, ("limits", "vm_bytes"), limits.vm_bytes),
        ),
        vms={name: _vm(file, name, table) for name, table in _named(file, ("vm",), plain=True)},
        links={name: _link(file, name, table) for name, table in _named(file, ("link",), plain=False)},
    )


def _refuse_many_links(file: FabricFile, links: object) -> None:
    if isinstance(links, dict) and len(links) > LINKS_MAX:
        message = f"{len(links)} links, and a fabric has {LINKS_MAX} at the most: divide it among several brokers"
        raise file.error(FabricCause.LIMIT, ("link",), message)


def convert(file: FabricFile, key: Key, table: object, kind: type[Table]) -> Table:
    if not isinstance(table, dict):
        raise file.error(
            FabricCause.TYPE,
            key,
            f"is to be a table, and is {_kind_name(table)}: write [{'.'.join(str(part) for part in key)}]",
        )
    _refuse_unknown(file, key, table, kind.__struct_encode_fields__)
    try:
        return msgspec.convert(table, kind, strict=True)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        if missing := re.search(r"missing required field `(\w+)`", what):
            raise file.error(FabricCause.MISSING_KEY, key, f"{missing[1]} is missing: add it") from None
        inner = re.match(r"\.(\w+)(.*)`", path)
        at = (*key, inner[1]) if inner else key
        expected = re.match(r"Expected `(.+)`, got `(.+)`", what)
        if expected:
            what = f"is to be {_plain(expected[1])}, and is {_plain(expected[2])}"
            if inner and inner[2]:
                what = f"what is in the list {what}"
            if inner and inner[1] in EXAMPLES:
                raise file.error(FabricCause.TYPE, at, f"{what}: write {EXAMPLES[inner[1]]}") from None
        raise file.error(FabricCause.TYPE, at, f"{what}: correct the value") from None


def _plain(types: str) -> str:
    words = {"str": "a string", "int": "a whole number", "float": "a number with a point", "bool": "true or false"}
    words |= {"array": "a list", "object": "a table", "null": ""}
    named = [words.get(part.strip(), part.strip()) for part in types.split("|")]
    return " or ".join(word for word in named if word)


def _no_table(file: FabricFile, key: Key, value: object) -> FabricError:
    header = ".".join(str(part) for part in key)
    return file.error(FabricCause.TYPE, key, f"is to be a table, and is {_kind_name(value)}: write [{header}]")


def _kind_name(value: object) -> str:
    kinds = {str: "str", bool: "bool", int: "int", float: "float", list: "array", dict: "object"}
    return _plain(kinds.get(type(value), type(value).__name__))


def _refuse_unknown(file: FabricFile, key: Key, table: dict[str, Any], known: Any) -> None:
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            message = f"unknown key; {hint}known here: {', '.join(known)}"
            raise file.error(FabricCause.UNKNOWN_KEY, (*key, name), message)


def _named(file: FabricFile, key: Key, *, plain: bool) -> list[tuple[str, object]]:
    """The tables below vm, port or link, with their names checked."""
    value: Any = file.tables
    for part in key:
        value = value.get(part, {})
    if not isinstance(value, dict):
        raise _no_table(file, (*key, "NAME"), value)
    for name in value:
        if not (is_plain_name(name) if plain else is_name(name)):
            rule = PLAIN_NAME_RULE if plain else NAME_RULE
            raise file.error(FabricCause.NAME, (*key, name), f"{name!r} is not a name: use {rule}")
    return list(value.items())


def _size(file: FabricFile, key: Key, value: str | int) -> int:
    found = re.fullmatch(r"([0-9]{1,15}) ?([KMGT]iB|B)?", str(value))
    size = int(found[1]) * UNITS[found[2] or "B"] if found else 0
    if size < 1 or size >= 1 << 63:
        raise file.error(FabricCause.VALUE, key, f'{value!r} is not a size: write bytes, or "512 MiB", "4 GiB"')
    return size


def _vm(file: FabricFile, name: str, table: object) -> VmConfig:
    key: Key = ("vm", name)
    if not isinstance(table, dict):
        raise file.error(
            FabricCause.TYPE,
            key,
            f"is to be a table, and is {_kind_name(table)}: write [{'.'.join(str(part) for part in key)}]",
        )
    _refuse_unknown(file, key, table, ("port", "stack"))
    ports = {port: _port(file, name, port, value) for port, value in _named(file, (*key, "port"), plain=True)}
    stack = _stack(file, name, table["stack"], ports) if "stack" in table else None
    return VmConfig(name, ports, stack)


def _port(file: FabricFile, vm: str, name: str, value: object) -> PortConfig:
    key: Key = ("vm", vm, "port", name)
    table = convert(file, key, value, PortTable)
    match table.kind:
        case "tap":
            return _tap(file, key, name, table)
        case "local":
            for option in ("interface", "mtu", "offload", "mac", "address", "carrier_delay"):
                if getattr(table, option) is not None:
                    message = 'is for ports of kind "tap", and this one is "local": take it out'
                    raise file.error(FabricCause.KIND, (*key, option), message)
            return PortConfig(name, "local")
        case "ivshmem" | "vhost":
            message = f'{table.kind!r} comes with a later release; this one has "tap" and "local"'
            raise file.error(FabricCause.KIND, (*key, "kind"), message)
    raise file.error(FabricCause.KIND, (*key, "kind"), f'{table.kind!r} is not a kind of port: use "tap" or "local"')


def _tap(file: FabricFile, key: Key, name: str, table: PortTable) -> PortConfig:
    interface = f"rw-{name}" if table.interface is None else table.interface
    if re.fullmatch(INTERFACE_PATTERN, interface) is None or interface in TAKEN_INTERFACES:
        message = f"{interface!r} is no name for a new interface: use 1 to 15 of A-Z, a-z, 0-9, '_', '.' and '-'"
        raise file.error(FabricCause.VALUE, (*key, "interface"), message)
    mtu = 1500 if table.mtu is None else table.mtu
    if not MTU_MIN <= mtu <= MTU_MAX:
        raise file.error(FabricCause.MTU, (*key, "mtu"), f"{mtu} is out of range: use {MTU_MIN} to {MTU_MAX}")
    if table.mac is not None:
        _check_mac(file, (*key, "mac"), table.mac)
    addresses = tuple(_address(file, (*key, "address"), text) for text in table.address or ())
    offload = table.offload is None or table.offload
    delay = CARRIER_DELAY_MS / 1000 if table.carrier_delay is None else table.carrier_delay
    if not 0 <= delay <= CARRIER_DELAY_MAX:
        message = f"{delay:g} is out of range: use 0 to {CARRIER_DELAY_MAX} seconds"
        raise file.error(FabricCause.VALUE, (*key, "carrier_delay"), message)
    return PortConfig(name, "tap", interface, mtu, offload, table.mac, addresses, round(delay * 1000))


def _address(file: FabricFile, key: Key, text: str) -> str:
    """Normalised, with its prefix length: what Netlink takes."""
    try:
        if re.fullmatch(r"[^/%]+/[0-9]{1,3}", text) is None:
            raise ValueError("no prefix length")
        found = ipaddress.ip_interface(text)
        if found.ip.is_multicast or found.ip.is_unspecified:
            raise ValueError("not the address of one interface")
    except ValueError:
        message = f"{text!r} is not an interface's address with its prefix: write 10.77.0.1/24 or 2001:db8::1/64"
        raise file.error(FabricCause.VALUE, key, message) from None
    return str(found)


def _check_mac(file: FabricFile, key: Key, mac: str) -> None:
    well_formed = re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", mac) is not None
    octets = bytes.fromhex(mac.replace(":", "")) if well_formed else b""
    if not any(octets) or octets[0] & 1:
        message = f"{mac!r} is not the address of one interface: write 02:00:00:00:00:01, the first octet even"
        raise file.error(FabricCause.VALUE, key, message)


def _stack(file: FabricFile, vm: str, value: object, ports: dict[str, PortConfig]) -> Stack:
    key: Key = ("vm", vm, "stack")
    table = convert(file, key, value, StackTable)
    forward = [_pair(file, (*key, "forward"), pair) for pair in table.forward]
    entries: dict[str, None] = {}
    for name in (name for pair in forward for name in pair):
        kind = ports[name].kind if name in ports else None
        if kind != "local":
            local = ", ".join(port for port, config in ports.items() if config.kind == "local") or "none"
            problem = f"is of kind {kind!r}" if kind else "does not exist"
            message = f"port {name!r} of VM {vm!r} {problem}; the stack runs over local ports, and those are: {local}"
            raise file.error(FabricCause.FORWARD, (*key, "forward"), message)
        if name in entries:
            message = f"port {name!r} is there twice; a port forwards to one other port"
            raise file.error(FabricCause.FORWARD, (*key, "forward"), message)
        entries[name] = None
    texts = [convert(file, (*key, "rule", index), rule, RuleText) for index, rule in enumerate(table.rule)]
    try:
        rules = check_rules(texts, entries)
    except RuleError as error:
        at = (*key, "rule", error.index)
        name = texts[error.index].name if error.index < len(texts) else ""
        raise file.error(FabricCause.RULE, (*at, error.key), f"rule {name!r}: {error.message}") from None
    connections = _connections(file, key, table)
    timeouts = _timeouts(file, key, table)
    match table.default:
        case "allow" | "deny" as default:
            return Stack(
                forward=forward,
                default=default,
                rules=rules,
                connections=connections,
                timeouts=timeouts,
                unparsed=_unparsed(file, key, table),
            )
    raise file.error(FabricCause.VALUE, (*key, "default"), f'{table.default!r} is not an action: use "allow" or "deny"')


def _unparsed(file: FabricFile, key: Key, table: StackTable) -> Literal["allow", "deny"]:
    match table.unparsed:
        case "allow" | "deny" as action:
            return action
    message = f'{table.unparsed!r} is not an action: use "allow" or "deny"'
    raise file.error(FabricCause.VALUE, (*key, "unparsed"), message)


def _connections(file: FabricFile, key: Key, table: StackTable) -> int:
    if table.connections != 0 and not CONNECTIONS_MIN <= table.connections <= CONNECTIONS_MAX:
        message = (
            f"{table.connections} cannot be remembered: use {CONNECTIONS_MIN} to {CONNECTIONS_MAX}, or 0 for a filter"
            " that judges each frame alone"
        )
        raise file.error(FabricCause.VALUE, (*key, "connections"), message)
    return table.connections


def _timeouts(file: FabricFile, key: Key, table: StackTable) -> Timeouts:
    at = (*key, "timeouts")
    timeouts = convert(file, at, table.timeouts, Timeouts)
    if table.timeouts and table.connections == 0:
        message = "are for a filter that remembers connections: say how many with connections = 65536, or take it out"
        raise file.error(FabricCause.VALUE, at, message)
    for name in Timeouts.__struct_fields__:
        if not 1 <= getattr(timeouts, name) <= TIMEOUT_MAX:
            message = f"{getattr(timeouts, name)} is out of range: use 1 to {TIMEOUT_MAX} seconds"
            raise file.error(FabricCause.VALUE, (*at, name), message)
    return timeouts


def _pair(file: FabricFile, key: Key, pair: list[str]) -> tuple[str, str]:
    if len(pair) != 2:
        message = f'{pair!r} is not a pair of ports: write [["inside", "outside"]]'
        raise file.error(FabricCause.FORWARD, key, message)
    return pair[0], pair[1]


def _link(file: FabricFile, name: str, value: object) -> LinkConfig:
    key: Key = ("link", name)
    table = convert(file, key, value, LinkTable)
    if len(table.ends) != 2:
        message = f'a link has 2 ends, and {len(table.ends)} are given: write ends = ["client.net", "firewall.inside"]'
        raise file.error(FabricCause.NOWHERE, (*key, "ends"), message)
    first, second = (_end(file, (*key, "ends"), text) for text in table.ends)
    geometry = Geometry(table.queues, table.slots, table.slot_payload, table.headroom)
    return LinkConfig(name, (first, second), geometry, table.huge_pages)


def _end(file: FabricFile, key: Key, text: str) -> End:
    vm, dot, port = text.partition(".")
    if not dot or not vm or not port:
        message = f'{text!r} does not name an end: write "vm.port", such as "client.net"'
        raise file.error(FabricCause.NOWHERE, key, message)
    return End(vm, port)
