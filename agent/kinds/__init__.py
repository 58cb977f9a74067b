"""What an agent runs over its ports: KIND.py for each kind of port, found by that name."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Protocol, cast

from ringway.agent.interface import Owner
from ringway.agent.port import Port
from ringway.agent.runner import PortRunner, Terms
from ringway.control.kinds import KINDS, Kind, kind_of


class KindFile(Protocol):
    """What KIND.py holds."""

    def run(self, port: Port, terms: Terms) -> PortRunner | None:
        """Run an attached port of this kind; None when it is an application's."""

    def tidy(self, owner: Owner, wanted: Collection[Kind]) -> list[str]:
        """Remove what the owner's agents have left on this host, except for ports of these settings. Returns it."""


def run(port: Port, terms: Terms) -> PortRunner | None:
    return _file_of(kind_of(port.offer.settings)).run(port, terms)


def tidy(owner: Owner, wanted: Collection[Kind]) -> list[str]:
    return [removed for kind in KINDS for removed in _file_of(kind).tidy(owner, wanted)]


def _file_of(kind: str) -> KindFile:
    return cast("KindFile", importlib.import_module(f"{__name__}.{kind}"))
