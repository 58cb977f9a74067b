"""Filter rules: what their text means, and what cannot be meant."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.control.rules import Rule, RuleCause, RuleError, RuleText, check, check_rules

PORTS = ("inside", "outside")


TUNNELS = {"ipip": 4, "6in4": 41, "gre": 47, "esp": 50, "ah": 51, "l2tp": 115, "mpls-in-ip": 137}
UNOPENED = {"mpls": 0x8847, "mpls-multicast": 0x8848, "pppoe-discovery": 0x8863, "pppoe": 0x8864, "802.3": 0}


def rule_of(**parts: Any) -> Rule:
    table = {"name": "r", "action": "deny"} | {key.rstrip("_"): value for key, value in parts.items()}
    return check(msgspec.convert(table, RuleText), PORTS)


def refused(**parts: Any) -> RuleError:
    with pytest.raises(RuleError) as caught:
        rule_of(**parts)
    return caught.value


def test_a_rule_without_parts_matches_anything() -> None:
    assert rule_of() == Rule(name="r", action="deny")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"from_": "inside"}, {"from_port": "inside"}),
        ({"ether": "arp"}, {"ether": 0x0806}),
        ({"ether": "0x88cc"}, {"ether": 0x88CC}),
        ({"ether": 0x88CC}, {"ether": 0x88CC}),
        ({"protocol": "tcp"}, {"protocol": 6}),
        ({"protocol": 132}, {"protocol": 132}),
        ({"protocol": "47"}, {"protocol": 47}),
        ({"protocol": "icmp"}, {"protocol": 1, "ether": 0x0800}),
        ({"protocol": "icmpv6"}, {"protocol": 58, "ether": 0x86DD}),
        ({"source": "10.0.0.0/255.0.0.0"}, {"source": "10.0.0.0/8", "ether": 0x0800}),
        ({"source": "10.1.2.3"}, {"source": "10.1.2.3/32", "ether": 0x0800}),
        ({"destination": "2001:DB8::/32"}, {"destination": "2001:db8::/32", "ether": 0x86DD}),
        ({"protocol": "udp", "source_port": 53}, {"protocol": 17, "source_port": (53, 53)}),
        ({"protocol": "tcp", "destination_port": "1024-65535"}, {"protocol": 6, "destination_port": (1024, 65535)}),
        ({"protocol": "tcp", "destination_port": "0"}, {"protocol": 6, "destination_port": (0, 0)}),
        ({"protocol": "tcp", "tcp_flags": "SYN,!ACK"}, {"protocol": 6, "tcp_mask": 18, "tcp_value": 2}),
        (
            {"protocol": "icmp", "icmp_type": 8, "icmp_code": 0},
            {"protocol": 1, "ether": 0x0800, "icmp_type": 8, "icmp_code": 0},
        ),
        ({"protocol": "icmpv6", "icmp_type": 135}, {"protocol": 58, "ether": 0x86DD, "icmp_type": 135}),
        ({"vlan": 0}, {"vlan": 0}),
        ({"vlan": 4094, "ether": "arp"}, {"vlan": 4094, "ether": 0x0806}),
        *(({"protocol": name}, {"protocol": number}) for name, number in TUNNELS.items()),
        *(({"ether": name}, {"ether": number}) for name, number in UNOPENED.items()),
        ({"protocol": "tcp", "tcp_flags": " cwr , !ece"}, {"protocol": 6, "tcp_mask": 192, "tcp_value": 128}),
    ],
)
def test_a_rule_comes_to_plain_values(parts: dict[str, Any], expected: dict[str, Any]) -> None:
    assert rule_of(**parts) == Rule(name="r", action="deny", **expected)


@pytest.mark.parametrize(
    ("parts", "cause", "key"),
    [
        ({"name": "No"}, RuleCause.NAME, "name"),
        ({"name": "default"}, RuleCause.NAME, "name"),
        ({"name": "established"}, RuleCause.NAME, "name"),
        ({"name": "established.fragments"}, RuleCause.NAME, "name"),
        ({"name": "a" * 64}, RuleCause.NAME, "name"),
        ({"action": "drop"}, RuleCause.ACTION, "action"),
        ({"from_": "elsewhere"}, RuleCause.PORT_NAME, "from"),
        ({"ether": "ipx"}, RuleCause.ETHER, "ether"),
        ({"ether": 0x05FF}, RuleCause.ETHER, "ether"),
        ({"ether": 0x10000}, RuleCause.ETHER, "ether"),
        ({"ether": "0x8100"}, RuleCause.ETHER, "ether"),
        ({"protocol": "tpc"}, RuleCause.PROTOCOL, "protocol"),
        ({"protocol": 256}, RuleCause.PROTOCOL, "protocol"),
        ({"protocol": -1}, RuleCause.PROTOCOL, "protocol"),
        ({"source": "10.0.0.1/8"}, RuleCause.PREFIX, "source"),
        ({"source": "10.0.0.0/33"}, RuleCause.PREFIX, "source"),
        ({"source": "fe80::%eth0/64"}, RuleCause.PREFIX, "source"),
        ({"source": ""}, RuleCause.PREFIX, "source"),
        ({"source": "10.0.0.0/8", "destination": "::/0"}, RuleCause.FAMILY, "source"),
        ({"ether": "ipv6", "source": "10.0.0.0/8"}, RuleCause.FAMILY, "ether"),
        ({"ether": "arp", "source": "10.0.0.0/8"}, RuleCause.FAMILY, "ether"),
        ({"ether": "arp", "protocol": "tcp"}, RuleCause.FAMILY, "protocol"),
        ({"ether": "ipv6", "protocol": "icmp"}, RuleCause.FAMILY, "ether"),
        ({"protocol": "icmpv6", "source": "10.0.0.0/8"}, RuleCause.FAMILY, "protocol"),
        ({"source_port": 1}, RuleCause.PORT_RANGE, "source_port"),
        ({"protocol": "icmp", "source_port": 1}, RuleCause.PORT_RANGE, "source_port"),
        *(
            ({"protocol": "tcp", "source_port": text}, RuleCause.PORT_RANGE, "source_port")
            for text in (-1, 65536, "9-8", "1-", "-1", "http", "1-2-3", " 1", "")
        ),
        ({"tcp_flags": "SYN"}, RuleCause.TCP_FLAGS, "tcp_flags"),
        ({"icmp_type": 8}, RuleCause.ICMP, "icmp_type"),
        ({"protocol": "tcp", "icmp_code": 8}, RuleCause.ICMP, "icmp_code"),
        ({"protocol": "icmp", "icmp_type": 256}, RuleCause.ICMP, "icmp_type"),
        ({"protocol": "icmpv6", "icmp_code": -1}, RuleCause.ICMP, "icmp_code"),
        ({"vlan": 4095}, RuleCause.VLAN, "vlan"),
        ({"vlan": -1}, RuleCause.VLAN, "vlan"),
        ({"protocol": "udp", "tcp_flags": "SYN"}, RuleCause.TCP_FLAGS, "tcp_flags"),
        *(
            ({"protocol": "tcp", "tcp_flags": text}, RuleCause.TCP_FLAGS, "tcp_flags")
            for text in ("", "SYN,", "SYN,SYN", "SYN,!SYN", "!!SYN", "SIN")
        ),
    ],
)
def test_a_rule_that_cannot_be_meant_so_is_refused(parts: dict[str, Any], cause: RuleCause, key: str) -> None:
    error = refused(**parts)
    assert (error.cause, error.key) == (cause, key)


def test_a_prefix_with_bits_beyond_it_is_offered_corrected() -> None:
    assert "did you mean '10.0.0.0/8'" in refused(source="10.0.0.1/8").message


def test_a_bad_rule_of_several_is_counted() -> None:
    texts = [RuleText(name="a", action="deny"), RuleText(name="a", action="allow")]
    with pytest.raises(RuleError) as caught:
        check_rules(texts, PORTS)
    assert caught.value.index == 1


WORDS = st.sampled_from(["tcp", "udp", "icmp", "arp", "ipv4", "10.0.0.0/8", "::/0", "1-2", "SYN", "!ACK", "", "inside"])


@given(
    st.dictionaries(
        st.sampled_from(["from", "ether", "protocol", "source", "destination", "source_port", "tcp_flags"]),
        WORDS | st.text(max_size=6),
    )
)
def test_any_rule_is_plain_values_or_a_rule_error(parts: dict[str, str]) -> None:
    try:
        rule = check(msgspec.convert({"name": "r", "action": "deny"} | parts, RuleText), PORTS)
    except RuleError:
        return
    assert msgspec.convert(msgspec.to_builtins(rule), Rule) == rule
