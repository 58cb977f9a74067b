"""What a fabric file may say of a stack of mode "bridge"."""

from __future__ import annotations

import pytest

from ringway.broker.config.checks import parse_config
from ringway.broker.config.text import FabricCause, FabricError
from ringway.control.rules import Bridge

PORTS = ("one", "two", "three")
BRIDGE = 'bridge = { ports = ["one", "two", "three"] }'
LOCAL = '[vm.{}.port.{}]\nkind = "local"\n'
GOOD = (
    "".join(LOCAL.format("firewall", port) for port in PORTS)
    + f"""
[vm.firewall.stack]
mode = "bridge"
{BRIDGE}
default = "allow"
"""
)


def refused(old: str, new: str) -> FabricError:
    assert old in GOOD
    with pytest.raises(FabricError) as caught:
        parse_config(GOOD.replace(old, new, 1), "fabric.toml")
    return caught.value


def test_a_bridge_joins_its_ports_with_defaults() -> None:
    stack = parse_config(GOOD, "fabric.toml").vms["firewall"].stack
    assert stack is not None
    assert stack.bridge == Bridge(ports=list(PORTS), addresses=1024, ageing=300, flood_rate=20000)
    assert stack.port_names() == list(PORTS)
    assert stack.joined() == [("one", "two"), ("one", "three")]


@pytest.mark.parametrize(
    ("old", "new", "cause", "said"),
    [
        ('"three"] }', '"four"] }', FabricCause.FORWARD, "does not exist"),
        ('"three"] }', '"one"] }', FabricCause.FORWARD, "name each port once"),
        ('["one", "two", "three"]', '["one"]', FabricCause.FORWARD, "name 2 to 64"),
        (BRIDGE, "", FabricCause.FORWARD, "names no ports"),
        (BRIDGE, f'{BRIDGE}\nforward = [["one", "two"]]', FabricCause.FORWARD, "a bridge has none"),
        ('mode = "bridge"', "", FabricCause.FORWARD, "take one of them out"),
        (f'mode = "bridge"\n{BRIDGE}', "", FabricCause.FORWARD, "joins no ports"),
        ('mode = "bridge"', 'mode = "route"', FabricCause.VALUE, "is no mode"),
        ('"three"] }', '"three"], ageing = 0 }', FabricCause.VALUE, "out of range"),
        ('"three"] }', '"three"], addresses = 65537 }', FabricCause.VALUE, "out of range"),
        ('"three"] }', '"three"], flood_rate = 0 }', FabricCause.VALUE, "out of range"),
    ],
)
def test_what_cannot_be_bridged_is_refused_by_name(old: str, new: str, cause: FabricCause, said: str) -> None:
    error = refused(old, new)
    assert error.cause is cause
    assert said in error.message


def test_ports_of_a_bridge_carry_the_same_largest_frame() -> None:
    hosts = "".join(LOCAL.format(port, "p") for port in PORTS)
    links = "".join(f'[link.{port}]\nends = ["{port}.p", "firewall.{port}"]\n' for port in PORTS)
    parse_config(GOOD + hosts + links, "fabric.toml")
    with pytest.raises(FabricError) as caught:
        parse_config(GOOD + hosts + links + "slot_payload = 128\nslots = 64\n", "fabric.toml")
    assert caught.value.cause is FabricCause.SIZE
