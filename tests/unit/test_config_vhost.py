"""Ports of kind "vhost" in a fabric file: each has a socket of its own."""

from __future__ import annotations

import pytest

from ringway.broker.config.checks import parse_config
from ringway.broker.config.text import FabricCause, FabricError

TWO = """
[vm.web.port.net]
kind = "vhost"
socket = "/run/guests/{first}"
{more}
[vm.mail.port.net]
kind = "vhost"
socket = "/run/guests/{second}"
"""


@pytest.mark.parametrize("more", ["", "connect = true"])
def test_two_ports_at_one_socket_are_refused_with_the_name_of_the_other(more: str) -> None:
    with pytest.raises(FabricError) as caught:
        parse_config(TWO.format(first="net", second="net", more=more), "fabric.toml")
    assert caught.value.cause is FabricCause.PORT_USED
    assert "'/run/guests/net' is that of port 'web.net' already: give each port its own" in str(caught.value)
    assert "vm.mail.port.net.socket" in str(caught.value)


def test_two_sockets_are_two_ports_and_the_usual_ones_differ_by_name() -> None:
    parse_config(TWO.format(first="a", second="b", more=""), "fabric.toml")
    parse_config('[vm.a.port.p]\nkind = "vhost"\n[vm.b.port.p]\nkind = "vhost"\n', "fabric.toml")
