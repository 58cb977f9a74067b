"""Ports of kind "local": an application's, or the stack's. Nothing else runs over them, and nothing of them is left."""

from __future__ import annotations

from collections.abc import Collection

from ringway.agent.interface import Owner
from ringway.agent.port import Port
from ringway.agent.runner import PortRunner, Terms
from ringway.control.kinds import Kind


def run(_port: Port, _terms: Terms) -> PortRunner | None:
    return None


def tidy(_owner: Owner, _wanted: Collection[Kind]) -> list[str]:
    return []
