"""The fabric that a file asks for, as typed values, and how a file's tables become them."""

from __future__ import annotations

import difflib
import math
import re
from functools import lru_cache
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec import Struct

from ringway.broker.config.text import LINKS_MAX, FabricCause, FabricError, FabricFile, Key
from ringway.broker.limits import CONNECTIONS_MAX, CONNECTIONS_MIN, FUNCTIONS_MAX
from ringway.control.carriers import CARRIERS
from ringway.control.kinds import KINDS, Kind, SettingError, Settings, kind_of
from ringway.control.messages import WhenFull
from ringway.control.names import NAME_RULE, PLAIN_NAME_RULE, is_name, is_plain_name
from ringway.control.rules import (
    ADDRESSES_MAX,
    BRIDGE_PORTS_MAX,
    FLOOD_RATE_MAX,
    TIMEOUT_MAX,
    Bridge,
    FunctionUse,
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
MILLISECONDS: Final = "_ms"  # what a setting's name ends in that a fabric file has in seconds, without that
BUILT_IN: Final = ("filter", "conntrack", "bridge")
OPTION_TEXT_MAX: Final = 1024  # bytes, for a packet function
LATER_KINDS: Final = ("ivshmem", "nic")


class LimitsConfig(Struct, frozen=True):
    link_bytes: int = GIB
    vm_bytes: int = 4 * GIB


class PortConfig(Struct, frozen=True):
    name: str
    settings: Settings

    @property
    def kind(self) -> str:
        return kind_of(self.settings)


class EndName(Struct, frozen=True):
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
    ends: tuple[EndName, EndName]  # side a, side b
    geometry: Geometry
    huge_pages: bool = False
    carriers: tuple[str, str] = ("fd", "fd")  # of the ends' VMs
    full: WhenFull | None = None  # None: producers that can wait do

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
    carrier: str = "fd"


class FabricConfig(Struct, frozen=True):
    name: str
    limits: LimitsConfig
    vms: dict[str, VmConfig]
    links: dict[str, LinkConfig]

    def port(self, end: EndName) -> PortConfig:
        return self.vms[end.vm].ports[end.port]


# What the tables may hold, key by key. Unknown keys are found before conversion, to name them with their neighbours.


class LimitsTable(Struct, forbid_unknown_fields=True):
    link_bytes: str | int = GIB
    vm_bytes: str | int = 4 * GIB


class StackTable(Struct, forbid_unknown_fields=True):
    default: str
    mode: str = "wire"
    forward: list[list[str]] = []
    bridge: dict[str, Any] = {}
    rule: list[dict[str, Any]] = []
    function: list[dict[str, Any]] = []
    connections: int = 0
    timeouts: dict[str, Any] = {}
    unparsed: str = "deny"


DEFAULT: Final = Geometry()


class LinkTable(Struct, forbid_unknown_fields=True):
    ends: list[str]
    queues: int = DEFAULT.queues
    slots: int = DEFAULT.slot_count
    slot_payload: int = DEFAULT.slot_payload
    huge_pages: bool = False
    full: str | None = None


EXAMPLES: Final = {
    "forward": '[["inside", "outside"]]',
    "ends": '["client.net", "firewall.inside"]',
    "address": '["10.77.0.1/24"]',
    "rule": "[[vm.NAME.stack.rule]], with two brackets",
    "function": "[[vm.NAME.stack.function]], with two brackets",
    "options": "options = { most = 1500 }, of whole numbers, strings, true and false",
    "timeouts": "[vm.NAME.stack.timeouts], with seconds in it",
}

Table = TypeVar("Table", bound=Struct)


def config_from(file: FabricFile) -> FabricConfig:
    """Everything that can be judged table by table; checks.py judges what spans them."""
    tables = file.tables
    _refuse_unknown(file, (), tables, ("limits", "vm", "link"))
    _refuse_many_links(file, tables.get("link"))
    limits = convert(file, ("limits",), tables.get("limits", {}), LimitsTable)
    vms = {name: _vm(file, name, table) for name, table in _named(file, ("vm",), plain=True)}
    return FabricConfig(
        name=file.name,
        limits=LimitsConfig(
            _size(file, ("limits", "link_bytes"), limits.link_bytes),
            _size(file, ("limits", "vm_bytes"), limits.vm_bytes),
        ),
        vms=vms,
        links={name: _link(file, name, table, vms) for name, table in _named(file, ("link",), plain=False)},
    )


def _refuse_many_links(file: FabricFile, links: object) -> None:
    if isinstance(links, dict) and len(links) > LINKS_MAX:
        message = f"{len(links)} links, and a fabric has {LINKS_MAX} at most: divide it among several brokers"
        raise file.error(FabricCause.LIMIT, ("link",), message)


def convert(file: FabricFile, key: Key, table: object, kind: type[Table]) -> Table:
    if not isinstance(table, dict):
        raise file.error(
            FabricCause.TYPE,
            key,
            f"is to be a table, and is {_kind_name(table)}: write [{'.'.join(str(part) for part in key)}]",
        )
    _refuse_unknown(file, key, table, kind.__struct_encode_fields__)
    return _converted(file, key, table, kind)


def _converted(file: FabricFile, key: Key, table: dict[str, Any], kind: type[Table]) -> Table:
    try:
        return msgspec.convert(table, kind, strict=True)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, SettingError):
            raise setting_error(file, key, error.__cause__) from None
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
    _refuse_unknown(file, key, table, ("port", "stack", "carrier"))
    ports = {port: _port(file, name, port, value) for port, value in _named(file, (*key, "port"), plain=True)}
    stack = _stack(file, name, table["stack"], ports) if "stack" in table else None
    carrier = table.get("carrier", "fd")
    if carrier not in CARRIERS:
        message = f"{carrier!r} is not a carrier: use {' or '.join(map(repr, CARRIERS))}"
        raise file.error(FabricCause.VALUE, (*key, "carrier"), message)
    return VmConfig(name, ports, stack, carrier)


def _port(file: FabricFile, vm: str, name: str, value: object) -> PortConfig:
    key: Key = ("vm", vm, "port", name)
    if not isinstance(value, dict):
        raise _no_table(file, key, value)
    kind = _kind(file, key, value)
    known = _settings_of(kind)
    for option in value:
        owners = [f'"{other}"' for other, settings in KINDS.items() if option in _settings_of(settings)]
        if option not in known and owners:
            message = f'is for ports of kind {" or ".join(owners)}, and this one is "{value["kind"]}": take it out'
            raise file.error(FabricCause.KIND, (*key, option), message)
    _refuse_unknown(file, key, value, known)
    table = {
        known[option]: _milliseconds(file, (*key, option), setting) if option != known[option] else setting
        for option, setting in value.items()
    }
    settings: Any = _converted(file, key, table, kind)
    try:
        return PortConfig(name, settings.named(name))
    except SettingError as error:
        raise setting_error(file, key, error) from None


def _kind(file: FabricFile, key: Key, table: dict[str, Any]) -> type[Kind]:
    found = table.get("kind")
    if found is None:
        _refuse_unknown(file, key, table, [option for kind in KINDS.values() for option in _settings_of(kind)])
        raise file.error(FabricCause.MISSING_KEY, key, "kind is missing: add it")
    if not isinstance(found, str):
        raise file.error(FabricCause.TYPE, (*key, "kind"), f"is to be a string, and is {_kind_name(found)}")
    if found in KINDS:
        return KINDS[found]
    kinds = [f'"{kind}"' for kind in KINDS]
    message = f"{found!r} is not a kind of port: use {' or '.join(kinds)}"
    if found in LATER_KINDS:
        message = f"{found!r} comes with a later release; this one has {' and '.join(kinds)}"
    raise file.error(FabricCause.KIND, (*key, "kind"), message)


def _settings_of(kind: type[Kind]) -> dict[str, str]:
    """What a port of the kind may have in a fabric file, with the setting's own name."""
    return {"kind": "kind"} | {name.removesuffix(MILLISECONDS): name for name in kind.__struct_encode_fields__}


def _milliseconds(file: FabricFile, key: Key, seconds: object) -> int:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        message = f"is to be a whole number or a number with a point, and is {_kind_name(seconds)}"
        raise file.error(FabricCause.TYPE, key, f"{message}: correct the value")
    if not math.isfinite(seconds):
        raise file.error(FabricCause.VALUE, key, f"{seconds:g} is no time: use seconds")
    return round(seconds * 1000)


def setting_error(file: FabricFile, key: Key, error: SettingError) -> FabricError:
    """As an error in the file, at the setting of the port whose table is `key`."""
    return file.error(FabricCause(error.cause), (*key, error.key.removesuffix(MILLISECONDS)), error.message)


def _stack(file: FabricFile, vm: str, value: object, ports: dict[str, PortConfig]) -> Stack:
    key: Key = ("vm", vm, "stack")
    table = convert(file, key, value, StackTable)
    forward, bridge = _mode(file, key, table)
    at = (*key, "forward") if bridge is None else (*key, "bridge", "ports")
    entries: dict[str, None] = {}
    for name in bridge.ports if bridge is not None else [name for pair in forward for name in pair]:
        if name not in ports or not ports[name].settings.in_stack:
            local = ", ".join(port for port, config in ports.items() if config.settings.in_stack) or "none"
            problem = f"is of kind {ports[name].kind!r}" if name in ports else "does not exist"
            message = f"port {name!r} of VM {vm!r} {problem}; the stack runs over local ports, and those are: {local}"
            raise file.error(FabricCause.FORWARD, at, message)
        if name in entries:
            once = "name each port once" if bridge is not None else "a port forwards to one other port"
            raise file.error(FabricCause.FORWARD, at, f"port {name!r} is there twice; {once}")
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
                bridge=bridge,
                default=default,
                rules=rules,
                connections=connections,
                timeouts=timeouts,
                unparsed=_unparsed(file, key, table),
                functions=_functions(file, key, table),
            )
    raise file.error(FabricCause.VALUE, (*key, "default"), f'{table.default!r} is not an action: use "allow" or "deny"')


def _functions(file: FabricFile, key: Key, table: StackTable) -> list[FunctionUse]:
    """By name alone: which there are, and what options they take, the agent knows."""
    if len(table.function) > FUNCTIONS_MAX:
        message = f"{len(table.function)} functions cannot run in one stack: use {FUNCTIONS_MAX} at most"
        raise file.error(FabricCause.LIMIT, (*key, "function", FUNCTIONS_MAX), message)
    uses: dict[str, FunctionUse] = {}
    for index, value in enumerate(table.function):
        at = (*key, "function", index)
        use = convert(file, at, value, FunctionUse)
        if not is_plain_name(use.name):
            message = f"{use.name!r} is not a function's name, and never a path: use {PLAIN_NAME_RULE}"
            raise file.error(FabricCause.NAME, (*at, "name"), message)
        if use.name in BUILT_IN:
            message = f"{use.name!r} is a function that ringway has: give yours another name"
            raise file.error(FabricCause.NAME, (*at, "name"), message)
        if use.name in uses:
            raise file.error(
                FabricCause.DUPLICATE, (*at, "name"), f"function {use.name!r} is there twice; name it once"
            )
        for option, given in use.options.items():
            if isinstance(given, str) and (len(given.encode()) > OPTION_TEXT_MAX or "\0" in given):
                message = f"a text of {len(given.encode())} bytes: use {OPTION_TEXT_MAX} at most, and no NUL"
                raise file.error(FabricCause.VALUE, (*at, "options", option), message)
        uses[use.name] = use
    return list(uses.values())


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


def _mode(file: FabricFile, key: Key, table: StackTable) -> tuple[list[tuple[str, str]], Bridge | None]:
    """What joins the ports."""
    if table.mode == "wire" and table.bridge:
        message = 'is for a stack of mode = "bridge", and this one is of mode = "wire": take one of them out'
        raise file.error(FabricCause.FORWARD, (*key, "bridge"), message)
    if table.mode == "wire":
        if not table.forward:
            message = 'joins no ports: write forward = [["inside", "outside"]], or mode = "bridge" with its ports'
            raise file.error(FabricCause.FORWARD, (*key, "forward"), message)
        return [_pair(file, (*key, "forward"), pair) for pair in table.forward], None
    if table.mode != "bridge":
        raise file.error(FabricCause.VALUE, (*key, "mode"), f'{table.mode!r} is no mode: use "wire" or "bridge"')
    if table.forward:
        message = 'names pairs, and a bridge has none: name its ports in bridge = { ports = ["one", "two", "three"] }'
        raise file.error(FabricCause.FORWARD, (*key, "forward"), message)
    return [], _bridge(file, (*key, "bridge"), table.bridge)


def _bridge(file: FabricFile, key: Key, table: dict[str, Any]) -> Bridge:
    if "ports" not in table:
        raise file.error(FabricCause.FORWARD, key, 'names no ports: write bridge = { ports = ["one", "two", "three"] }')
    bridge = convert(file, key, table, Bridge)
    if not 2 <= len(bridge.ports) <= BRIDGE_PORTS_MAX:
        message = f"{len(bridge.ports)} ports cannot be bridged: name 2 to {BRIDGE_PORTS_MAX}"
        raise file.error(FabricCause.FORWARD, (*key, "ports"), message)
    for name, most in (("addresses", ADDRESSES_MAX), ("ageing", TIMEOUT_MAX), ("flood_rate", FLOOD_RATE_MAX)):
        if not 1 <= getattr(bridge, name) <= most:
            message = f"{getattr(bridge, name)} is out of range: use 1 to {most}"
            raise file.error(FabricCause.VALUE, (*key, name), message)
    return bridge


def _pair(file: FabricFile, key: Key, pair: list[str]) -> tuple[str, str]:
    if len(pair) != 2:
        message = f'{pair!r} is not a pair of ports: write [["inside", "outside"]]'
        raise file.error(FabricCause.FORWARD, key, message)
    return pair[0], pair[1]


def _link(file: FabricFile, name: str, value: object, vms: dict[str, VmConfig]) -> LinkConfig:
    key: Key = ("link", name)
    table = convert(file, key, value, LinkTable)
    if len(table.ends) != 2:
        message = f'a link has 2 ends, and {len(table.ends)} are given: write ends = ["client.net", "firewall.inside"]'
        raise file.error(FabricCause.NOWHERE, (*key, "ends"), message)
    first, second = (_end(file, (*key, "ends"), text) for text in table.ends)
    geometry = Geometry(table.queues, table.slots, table.slot_payload)
    first_carrier, second_carrier = (vms[end.vm].carrier if end.vm in vms else "fd" for end in (first, second))
    carriers = first_carrier, second_carrier
    full = _full(file, (*key, "full"), table.full)
    return LinkConfig(name, (first, second), geometry, table.huge_pages, carriers=carriers, full=full)


def _full(file: FabricFile, key: Key, value: str | None) -> WhenFull | None:
    match value:
        case None | "wait" | "drop" as full:
            return full
    raise file.error(FabricCause.VALUE, key, f'{value!r} is nothing to do with a full ring: use "wait" or "drop"')


def _end(file: FabricFile, key: Key, text: str) -> EndName:
    vm, dot, port = text.partition(".")
    if not dot or not vm or not port:
        message = f'{text!r} does not name an end: write "vm.port", such as "client.net"'
        raise file.error(FabricCause.NOWHERE, key, message)
    return EndName(vm, port)
