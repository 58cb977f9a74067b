"""Fabric files that many tests use; what one test alone needs stands beside it."""

from __future__ import annotations

CLIENT, SERVER = "10.77.0.1", "10.77.0.2"  # addresses of the kernels before and behind a firewall
ALLOW = 'default = "allow"\n'

# Two applications that a test plays itself.
FABRIC = """
[vm.client.port.net]
kind = "local"
[vm.server.port.net]
kind = "local"
[link.one]
ends = ["client.net", "server.net"]
slots = 64
"""

# Two applications, each of an agent; more keys of the link may follow.
PAIR = """
[vm.left.port.p]
kind = "local"
[vm.right.port.p]
kind = "local"
[link.wire]
ends = ["left.p", "right.p"]
"""


def parallel_links(count: int, prefix: str) -> str:
    """So many links between the VMs `left` and `right`."""
    ports = "".join(f'[vm.{vm}.port.{prefix}{n}]\nkind = "local"\n' for vm in ("left", "right") for n in range(count))
    return ports + "".join(
        f'[link.{prefix}{n}]\nends = ["left.{prefix}{n}", "right.{prefix}{n}"]\nslots = 64\n' for n in range(count)
    )


def applications_and_firewall(stack: str | None = ALLOW, one: str = "", two: str = "") -> str:
    """left.p, `firewall` from `inside` to `outside`, right.p: keys of its stack and of the links `one` and `two`.

    `stack` is None: it is an application as well.
    """
    ports = '[vm.left.port.p]\nkind = "local"\n[vm.right.port.p]\nkind = "local"\n'
    return ports + _firewall("left.p", "right.p", stack, one, two)


def kernels_and_firewall(stack: str = ALLOW, one: str = "", two: str = "") -> str:
    """As above between two taps, client.net and server.net, each the interface `fast0` of its namespace."""
    ports = "".join(
        f'[vm.{vm}.port.net]\nkind = "tap"\ninterface = "fast0"\naddress = ["{address}/24"]\n'
        for vm, address in (("client", CLIENT), ("server", SERVER))
    )
    return ports + _firewall("client.net", "server.net", stack, one, two)


def _firewall(before: str, behind: str, stack: str | None, one: str, two: str) -> str:
    text = '[vm.firewall.port.inside]\nkind = "local"\n[vm.firewall.port.outside]\nkind = "local"\n'
    if stack is not None:
        text += f'[vm.firewall.stack]\nforward = [["inside", "outside"]]\n{stack}\n'
    first = f'[link.one]\nends = ["{before}", "firewall.inside"]\n{one}\n'
    return text + first + f'[link.two]\nends = ["firewall.outside", "{behind}"]\n{two}\n'
