"""Filter rules: the text a fabric file holds, its checks, and the plain values that broker and agents exchange."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import Final, Literal

from msgspec import Struct

from ringway.control.names import NAME_RULE, is_name

RULES_MAX: Final = 1024
DEFAULT_NAME: Final = "default"  # what the default action's counters are listed under
ESTABLISHED_NAME: Final = "established"  # and those of frames that passed because their connection is known

TIMEOUT_MAX: Final = 7 * 24 * 3600  # seconds
BRIDGE_PORTS_MAX: Final = 64
ADDRESSES_MAX: Final = 65536  # of a bridge's port
FLOOD_RATE_MAX: Final = 100_000_000

# Also what the filter does not look into, so that it can be denied or allowed as a whole. 802.3: a length, no type.
ETHERS: Final = {
    "arp": 0x0806,
    "ipv4": 0x0800,
    "ipv6": 0x86DD,
    "802.3": 0,
    "mpls": 0x8847,
    "mpls-multicast": 0x8848,
    "pppoe-discovery": 0x8863,
    "pppoe": 0x8864,
    "lldp": 0x88CC,
}
PROTOCOLS: Final = {
    "icmp": 1,
    "igmp": 2,
    "ipip": 4,
    "tcp": 6,
    "udp": 17,
    "6in4": 41,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "icmpv6": 58,
    "ospf": 89,
    "vrrp": 112,
    "l2tp": 115,
    "sctp": 132,
    "udplite": 136,
    "mpls-in-ip": 137,
}
WITH_PORTS: Final = (6, 17, 132)  # TCP, UDP, SCTP
TCP_FLAGS: Final = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32, "ECE": 64, "CWR": 128}
VLAN_ETHERS: Final = (0x8100, 0x88A8)
VLAN_MAX: Final = 4094

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class RuleCause(StrEnum):
    NAME = "name"
    ACTION = "action"
    PORT_NAME = "port_name"
    ETHER = "ether"
    PROTOCOL = "protocol"
    PREFIX = "prefix"
    FAMILY = "family"
    PORT_RANGE = "port_range"
    TCP_FLAGS = "tcp_flags"
    ICMP = "icmp"
    VLAN = "vlan"
    TOO_MANY = "too_many"


class RuleError(Exception):
    """A rule that cannot be meant so; `index` says which rule and `key` which of its keys."""

    def __init__(self, cause: RuleCause, key: str, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.cause = cause
        self.key = key
        self.message = message
        self.index = index


class RuleText(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"from_port": "from"}):
    """A rule as the fabric file writes it."""

    name: str
    action: str
    from_port: str | None = None
    ether: str | int | None = None
    protocol: str | int | None = None
    source: str | None = None
    destination: str | None = None
    source_port: int | str | None = None
    destination_port: int | str | None = None
    tcp_flags: str | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    vlan: int | None = None


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A checked rule. None means any; all that is given must match, and the first rule that matches decides."""

    name: str
    action: Literal["allow", "deny"]
    from_port: str | None = None
    ether: int | None = None  # the type after VLAN tags; given whenever the rest of the rule implies it
    protocol: int | None = None
    source: str | None = None  # CIDR as ipaddress writes it
    destination: str | None = None
    source_port: tuple[int, int] | None = None  # first and last
    destination_port: tuple[int, int] | None = None
    tcp_mask: int = 0  # of the TCP flag bits, those that must be as in tcp_value
    tcp_value: int = 0
    icmp_type: int | None = None
    icmp_code: int | None = None
    vlan: int | None = None  # id of the outermost tag that has one; 0: no VLAN


class Timeouts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds for which a connection is remembered after its last frame."""

    tcp_opening: int = 60
    tcp_established: int = 7440  # RFC 5382 REQ-5: 2 h 4 min at least
    tcp_closing: int = 240  # RFC 5382 REQ-5: 4 min at least
    udp: int = 120  # RFC 4787 REQ-5: 2 min at least
    udp_answered: int = 300  # RFC 4787 REQ-5: recommended
    icmp: int = 60  # RFC 5508 REQ-2


class Bridge(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What joins a stack's ports in mode "bridge"."""

    ports: list[str]
    addresses: int = 1024  # that each port may have
    ageing: int = 300  # seconds for which an address is known after it was last seen; IEEE 802.1Q 8.8.3
    flood_rate: int = 20000  # frames a second that come in by one port and go out by several


class FunctionUse(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A packet function of the user's own, from the directory that the agent was given."""

    name: str
    options: dict[str, int | bool | str] = {}  # which it takes, the function itself says


class Stack(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an agent runs over its local ports: joined by wires, in pairs, or by a bridge."""

    forward: list[tuple[str, str]] = []  # pairs of ports, both directions
    bridge: Bridge | None = None
    default: Literal["allow", "deny"]
    rules: list[Rule]
    connections: int = 0  # that the filter remembers; 0: it judges each frame alone
    timeouts: Timeouts = Timeouts()
    unparsed: Literal["allow", "deny"] = "deny"  # frames whose headers cannot be judged; no rule sees them
    functions: list[FunctionUse] = []  # in this order, behind the filter

    def port_names(self) -> list[str]:
        """In the order of the numbers by which packet functions know them."""
        return self.bridge.ports if self.bridge is not None else [name for pair in self.forward for name in pair]

    def joined(self) -> list[tuple[str, str]]:
        """Pairs of ports between which frames may pass; enough of them that all that is joined is."""
        if self.bridge is None:
            return self.forward
        first, *others = self.bridge.ports
        return [(first, other) for other in others]


def check_rules(texts: Sequence[RuleText], ports: Collection[str]) -> list[Rule]:
    """Check all rules of one stack; `ports` are those that frames can enter by."""
    if len(texts) > RULES_MAX:
        message = f"there are {len(texts)} rules; at most {RULES_MAX} are possible"
        raise RuleError(RuleCause.TOO_MANY, "name", message, RULES_MAX)
    rules: list[Rule] = []
    seen: set[str] = set()
    for index, text in enumerate(texts):
        try:
            rule = check(text, ports)
            if rule.name in seen:
                raise RuleError(RuleCause.NAME, "name", f"rule {rule.name!r} exists twice; give each its own name")
        except RuleError as error:
            error.index = index
            raise
        seen.add(rule.name)
        rules.append(rule)
    return rules


def check(text: RuleText, ports: Collection[str]) -> Rule:
    """Check one rule and bring it to plain values."""
    if not is_name(text.name):
        raise RuleError(RuleCause.NAME, "name", f"{text.name!r} is not a rule name: use {NAME_RULE}")
    if text.name in (DEFAULT_NAME, ESTABLISHED_NAME) or text.name.startswith(f"{ESTABLISHED_NAME}."):
        whose = "the default action's counters" if text.name == DEFAULT_NAME else "frames of known connections"
        raise RuleError(RuleCause.NAME, "name", f"{text.name!r} stands for {whose}; use another name")
    if text.from_port is not None and text.from_port not in ports:
        known = ", ".join(sorted(ports)) or "none"
        message = f"{text.from_port!r} is not a port that frames can enter by; those are: {known}"
        raise RuleError(RuleCause.PORT_NAME, "from", message)
    protocol = _protocol(text.protocol)
    source = _network("source", text.source)
    destination = _network("destination", text.destination)
    mask, value = _tcp_flags(text.tcp_flags, protocol)
    return Rule(
        name=text.name,
        action=_action(text.action),
        from_port=text.from_port,
        ether=_ether_implied(_ether(text.ether), protocol, source, destination),
        protocol=protocol,
        source=None if source is None else str(source),
        destination=None if destination is None else str(destination),
        source_port=_port_range("source_port", text.source_port, protocol),
        destination_port=_port_range("destination_port", text.destination_port, protocol),
        tcp_mask=mask,
        tcp_value=value,
        icmp_type=_icmp("icmp_type", text.icmp_type, protocol),
        icmp_code=_icmp("icmp_code", text.icmp_code, protocol),
        vlan=_vlan(text.vlan),
    )


def _icmp(key: str, number: int | None, protocol: int | None) -> int | None:
    if number is None:
        return None
    if protocol not in (PROTOCOLS["icmp"], PROTOCOLS["icmpv6"]):
        raise RuleError(RuleCause.ICMP, key, f'{key} needs ICMP: add protocol = "icmp" or "icmpv6"')
    if not 0 <= number <= 255:
        raise RuleError(RuleCause.ICMP, key, f"{number} is not an ICMP type or code: use a number from 0 to 255")
    return number


def _vlan(number: int | None) -> int | None:
    if number is not None and not 0 <= number <= VLAN_MAX:
        message = f"{number} is not a VLAN id: use 1 to {VLAN_MAX}, or 0 for frames that are in no VLAN"
        raise RuleError(RuleCause.VLAN, "vlan", message)
    return number


def _action(text: str) -> Literal["allow", "deny"]:
    match text:
        case "allow" | "deny":
            return text
    raise RuleError(RuleCause.ACTION, "action", f'{text!r} is not an action: use "allow" or "deny"')


def _number(text: str | int, names: dict[str, int]) -> int | None:
    if isinstance(text, int):
        return text
    if text in names:
        return names[text]
    if re.fullmatch(r"0x[0-9a-fA-F]{1,4}", text):
        return int(text, 16)
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text) else None


def _ether(text: str | int | None) -> int | None:
    if text is None:
        return None
    number = _number(text, ETHERS)
    if number is None or not (0x0600 <= number <= 0xFFFF or text == "802.3"):
        message = f"{text!r} is not an Ethernet type: use {', '.join(ETHERS)} or a number from 0x0600 to 0xffff"
        raise RuleError(RuleCause.ETHER, "ether", message)
    if number in VLAN_ETHERS:
        message = f"{text!r} is a VLAN tag, and rules see the type after the tags: give that type"
        raise RuleError(RuleCause.ETHER, "ether", message)
    return number


def _protocol(text: str | int | None) -> int | None:
    if text is None:
        return None
    number = _number(text, PROTOCOLS)
    if number is None or not 0 <= number <= 255:
        message = f"{text!r} is not an IP protocol: use {', '.join(PROTOCOLS)} or a number from 0 to 255"
        raise RuleError(RuleCause.PROTOCOL, "protocol", message)
    return number


def _network(key: str, text: str | None) -> Network | None:
    if text is None:
        return None
    if "%" in text:
        raise RuleError(RuleCause.PREFIX, key, f"{text!r} names a scope; a prefix has none: leave out what follows '%'")
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        loose = ipaddress.ip_network(text, strict=False)
    except ValueError:
        message = f"{text!r} is not an address or prefix: write 10.0.0.0/8 or 2001:db8::/32"
        raise RuleError(RuleCause.PREFIX, key, message) from None
    raise RuleError(RuleCause.PREFIX, key, f"{text!r} has bits set beyond its prefix; did you mean {str(loose)!r}?")


def _ether_implied(
    ether: int | None, protocol: int | None, source: Network | None, destination: Network | None
) -> int | None:
    """The Ethernet type that all parts of a rule agree on, if they imply one."""
    wanted: dict[str, int] = {} if ether is None else {"ether": ether}
    if protocol in (PROTOCOLS["icmp"], PROTOCOLS["icmpv6"]):
        wanted["protocol"] = ETHERS["ipv4"] if protocol == PROTOCOLS["icmp"] else ETHERS["ipv6"]
    for key, network in (("source", source), ("destination", destination)):
        if network is not None:
            wanted[key] = ETHERS["ipv4"] if network.version == 4 else ETHERS["ipv6"]
    if len(set(wanted.values())) > 1:
        parts = " and ".join(f"{key} means {_ether_name(number)}" for key, number in wanted.items())
        message = f"{parts}: no frame is both; take one out or make two rules"
        raise RuleError(RuleCause.FAMILY, next(iter(wanted)), message)
    agreed = next(iter(wanted.values()), None)
    if protocol is not None and agreed not in (None, ETHERS["ipv4"], ETHERS["ipv6"]):
        message = f"protocol is a field of IP, and ether means {_ether_name(agreed)}: take one of them out"
        raise RuleError(RuleCause.FAMILY, "protocol", message)
    return agreed


def _ether_name(number: int | None) -> str:
    return next((name for name, value in ETHERS.items() if value == number), f"{number or 0:#06x}")


def _port_range(key: str, text: int | str | None, protocol: int | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if protocol not in WITH_PORTS:
        message = f'{key} needs a protocol that has ports: add protocol = "tcp", "udp" or 132 (SCTP)'
        raise RuleError(RuleCause.PORT_RANGE, key, message)
    found = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", str(text))
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (-1, -1)
    if not 0 <= first <= last <= 65535:
        message = f'{text!r} is not a port or range: write 80 or "1024-65535", the lower first, none over 65535'
        raise RuleError(RuleCause.PORT_RANGE, key, message)
    return first, last


def _tcp_flags(text: str | None, protocol: int | None) -> tuple[int, int]:
    """Mask and value of "SYN,!ACK": SYN set, ACK clear, others as they like."""
    if text is None:
        return 0, 0
    if protocol != PROTOCOLS["tcp"]:
        raise RuleError(RuleCause.TCP_FLAGS, "tcp_flags", 'tcp_flags needs TCP: add protocol = "tcp"')
    mask = value = 0
    for word in text.split(","):
        flag = word.strip()
        bit = TCP_FLAGS.get(flag.removeprefix("!").upper(), 0)
        if not bit or mask & bit:
            problem = "is there twice" if bit else "is not a TCP flag"
            message = f'{flag!r} {problem}: write flags like "SYN,!ACK", each once, of {", ".join(TCP_FLAGS)}'
            raise RuleError(RuleCause.TCP_FLAGS, "tcp_flags", message)
        mask |= bit
        value |= 0 if flag.startswith("!") else bit
    return mask, value
