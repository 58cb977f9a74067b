"""One firewall before three hosts, as a bridge: they reach each other, past its filter, and it shows what it does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.broker_process import run_ringway
from tests.system.fabric_fixtures import Fabric, await_carriers, namespaces, ping, transfer, until

pytestmark = pytest.mark.needs_root
HOSTS = ("one", "two", "three")
ADDRESSES = {host: f"10.78.0.{number}" for number, host in enumerate(HOSTS, start=1)}
RULE = """
[[vm.firewall.stack.rule]]
name = "no-{0}"
action = "deny"
from = "{0}"
"""
FABRIC = (
    "".join(
        f"""
[vm.{host}.port.net]
kind = "tap"
interface = "fast0"
address = ["{address}/24"]
[vm.firewall.port.{host}]
kind = "local"
[link.{host}]
ends = ["{host}.net", "firewall.{host}"]
"""
        for host, address in ADDRESSES.items()
    )
    + """
[vm.firewall.stack]
mode = "bridge"
bridge = { ports = ["one", "two", "three"], ageing = 30 }
default = "allow"
"""
)


@pytest.fixture
def bridge(fabric: Fabric) -> Iterator[Fabric]:
    with namespaces(*HOSTS):
        fabric.apply(FABRIC)
        fabric.agent("firewall")
        for host in HOSTS:
            fabric.agent(host, namespace=host)
        await_carriers(*HOSTS)
        yield fabric


def counters(fabric: Fabric) -> dict[str, int]:
    functions = fabric.broker.vm("firewall").functions
    return {name: value for function in functions for name, value in function.counters.items()}


def test_hosts_on_one_bridge_reach_each_other_and_nobody_else_sees_it(bridge: Fabric) -> None:
    for source in HOSTS:
        for target in HOSTS:
            if source != target:
                assert ping(source, ADDRESSES[target]) == 3
    flooded = counters(bridge)["flooded"]
    before = bridge.quiet("three").rings[1].published
    transfer("one", "two", ADDRESSES["two"], 32 << 20)
    assert bridge.quiet("three").rings[1].published - before <= counters(bridge)["flooded"] - flooded
    now = counters(bridge)
    assert now["learnt"] >= len(HOSTS)
    assert now["flood_limited"] == now["bad_source"] == 0


def test_the_filter_applies_by_port_and_changes_under_traffic(bridge: Fabric) -> None:
    assert ping("three", ADDRESSES["one"]) == 3
    bridge.apply(FABRIC + RULE.format("three"))
    assert ping("three", ADDRESSES["one"], count=1) == 0
    assert ping("one", ADDRESSES["two"]) == 3
    bridge.apply(FABRIC)
    assert ping("three", ADDRESSES["one"]) == 3


def test_a_host_that_leaves_and_comes_back_is_bridged_again(bridge: Fabric) -> None:
    assert ping("one", ADDRESSES["three"]) == 3
    bridge.apply(FABRIC.replace('[link.three]\nends = ["three.net", "firewall.three"]\n', ""))
    assert ping("one", ADDRESSES["three"], count=1) == 0
    assert ping("one", ADDRESSES["two"]) == 3
    bridge.apply(FABRIC)
    await_carriers(*HOSTS)
    until(lambda: ping("one", ADDRESSES["three"], count=1) == 1, "the third host is back")


def test_its_connections_pass_whatever_the_rules_say_of_answers(bridge: Fabric) -> None:
    stateful = FABRIC.replace('default = "allow"', 'default = "deny"\nconnections = 4096')
    arp = '[[vm.firewall.stack.rule]]\nname = "arp"\naction = "allow"\nether = "arp"\n'
    opens = '[[vm.firewall.stack.rule]]\nname = "opens"\naction = "allow"\nfrom = "one"\n'
    bridge.apply(stateful + arp + opens)
    assert ping("one", ADDRESSES["two"]) == 3
    transfer("one", "three", ADDRESSES["three"], 8 << 20)
    assert ping("two", ADDRESSES["one"], count=1) == 0


def test_show_has_a_table_of_its_counters(bridge: Fabric) -> None:
    assert ping("one", ADDRESSES["two"]) == 3
    shown = run_ringway("show", "--runtime", str(bridge.runtime))
    assert shown.returncode == 0, shown.stderr
    assert "packet functions" in shown.stdout
    assert "flood_limited" in shown.stdout
