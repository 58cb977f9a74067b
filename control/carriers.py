"""The carriers: how a link's memory and bells reach one of its ends, as an offer says it.

Another carrier is a class here that is part of `Carriers`, broker/carriers/CARRIER.py, which makes bells and offers,
and agent/carriers/CARRIER.py, which attaches. A VM's carrier is the one that its table in the fabric file names.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct


class Carrier(Struct, frozen=True, tag_field="carrier", tag=str.lower, forbid_unknown_fields=True):
    """The tag is the class's name."""


class Fd(Carrier, frozen=True):
    """Descriptors over the broker's handover socket: for whoever runs on its host."""

    handover: str  # the socket's path
    bells: Literal["pipe"] = "pipe"  # what the bells among the descriptors are


Carriers = Fd

CARRIERS: Final[tuple[str, ...]] = tuple(
    str(carrier.__struct_config__.tag) for carrier in (getattr(Carriers, "__args__", None) or (Carriers,))
)


def carrier_of(carrier: Carrier) -> str:
    return str(carrier.__struct_config__.tag)
