"""The kinds of port, and what a port of each kind is set to: the same in fabric files, in offers and in `show`.

Another kind is a class here that is part of `Settings`, agent/kinds/KIND.py, which runs its ports, and its row in
docs/running.md. A setting whose name ends in _ms stands in a fabric file without that, in seconds.
"""

from __future__ import annotations

import ipaddress
import re
from typing import ClassVar, Final, Self, get_args

from msgspec import Struct
from msgspec.structs import force_setattr, replace

ETHERNET_OVERHEAD: Final = 18  # bytes: addresses, type and one VLAN tag
MTU_MIN: Final = 68  # RFC 791
MTU_MAX: Final = 65521  # what the kernel lets a tap have: 65535 less an Ethernet header
CARRIER_DELAY_MAX_MS: Final = 3_600_000
INTERFACE_PATTERN: Final = r"[A-Za-z0-9_.-]{1,15}"  # of what dev_valid_name() takes, what is safe to print
SOCKET_PATH_MAX: Final = 107  # struct sockaddr_un less its terminating 0
TAKEN_INTERFACES: Final = (".", "..", "lo", "all", "default")  # by the kernel, as names or in /proc/sys/net


class SettingError(ValueError):
    """A setting that cannot be: which, and what can. `cause` is one of those of fabric files."""

    def __init__(self, key: str, message: str, cause: str = "value") -> None:
        super().__init__(message)
        self.key = key
        self.message = message
        self.cause = cause


class Kind(Struct, frozen=True, tag_field="kind", tag=str.lower, forbid_unknown_fields=True):
    """What every kind has, and says otherwise where it is different. The tag is the class's name.

    Settings are checked wherever they come from, a file or the wire: SettingError, in msgspec's ValidationError.
    """

    in_stack: ClassVar[bool] = False  # its frames may go through the VM's stack

    def named(self, port: str) -> Self:
        """With the defaults that follow from the port's name. SettingError."""
        _ = port
        return self

    def check_link(self, link: str, frame_max: int) -> None:
        """SettingError where a link with frames up to `frame_max` bytes is too small."""

    def alone_at(self) -> tuple[str, str] | None:
        """A setting, by name and value, that no other port of the fabric may have."""
        return None


class Local(Kind, frozen=True):
    """For an application, or for the VM's stack."""

    in_stack: ClassVar[bool] = True


class Tap(Kind, frozen=True):
    """A kernel interface, run by the agent."""

    interface: str | None = None  # None: rw-PORT, in a fabric file
    mtu: int = 1500
    offload: bool = True
    mac: str | None = None
    address: tuple[str, ...] = ()
    carrier_delay_ms: int = 1000  # that the peer may be gone before the carrier goes off

    def __post_init__(self) -> None:
        name = self.interface
        if name is not None and (re.fullmatch(INTERFACE_PATTERN, name) is None or name in TAKEN_INTERFACES):
            message = f"{name!r} is no name for a new interface: use 1 to 15 of A-Z, a-z, 0-9, '_', '.' and '-'"
            raise SettingError("interface", message)
        if not MTU_MIN <= self.mtu <= MTU_MAX:
            raise SettingError("mtu", f"{self.mtu} is out of range: use {MTU_MIN} to {MTU_MAX}", "mtu")
        if self.mac is not None:
            _check_mac(self.mac)
        force_setattr(self, "address", tuple(_address(text) for text in self.address))
        if not 0 <= self.carrier_delay_ms <= CARRIER_DELAY_MAX_MS:
            delay, most = self.carrier_delay_ms / 1000, CARRIER_DELAY_MAX_MS // 1000
            raise SettingError("carrier_delay_ms", f"{delay:g} is out of range: use 0 to {most} seconds")

    def named(self, port: str) -> Self:
        return self if self.interface is not None else replace(self, interface=f"rw-{port}")

    def check_link(self, link: str, frame_max: int) -> None:
        if self.mtu + ETHERNET_OVERHEAD > frame_max:
            message = (
                f"{self.mtu} and {ETHERNET_OVERHEAD} bytes of headers are more than link {link!r} carries, frames of "
                f"{frame_max} bytes: use at most {frame_max - ETHERNET_OVERHEAD}, or more or larger slots"
            )
            raise SettingError("mtu", message, "mtu")


class Vhost(Kind, frozen=True):
    """A stock guest's virtio-net device; the agent is the guest's pump, on the host."""

    socket: str | None = None  # None: vhost/VM.PORT in the broker's runtime directory
    connect: bool = False  # the front end listens at the socket
    mode: str = "0600"  # of the socket, in octal
    sealed: bool = False  # take no memory that could be shortened under us

    def __post_init__(self) -> None:
        if self.socket is not None and not (self.socket.startswith("/") and _is_plain(self.socket)):
            message = f"{self.socket!r} is no path for a socket: write one that begins with '/', in printable ASCII"
            raise SettingError("socket", message)
        if self.socket is not None and len(self.socket) > SOCKET_PATH_MAX:
            message = f"{len(self.socket)} characters are more than a socket's path can have, {SOCKET_PATH_MAX}"
            raise SettingError("socket", f"{message}: use a shorter one")
        if re.fullmatch(r"0[0-7]{3}", self.mode) is None:
            raise SettingError("mode", f'{self.mode!r} is no mode: write it in octal, as "0660"')

    def alone_at(self) -> tuple[str, str] | None:
        return None if self.socket is None else ("socket", self.socket)


Settings = Tap | Local | Vhost

KINDS: Final[dict[str, type[Kind]]] = {str(kind.__struct_config__.tag): kind for kind in get_args(Settings)}


def kind_of(settings: Kind) -> str:
    return str(settings.__struct_config__.tag)


def _is_plain(text: str) -> bool:
    return re.fullmatch(r"[!-~]+", text) is not None


def _address(text: str) -> str:
    """Normalised, with its prefix length: what Netlink takes."""
    try:
        if re.fullmatch(r"[^/%]+/[0-9]{1,3}", text) is None:
            raise ValueError("no prefix length")
        found = ipaddress.ip_interface(text)
        if found.ip.is_multicast or found.ip.is_unspecified:
            raise ValueError("not the address of one interface")
    except ValueError:
        message = f"{text!r} is not an interface's address with its prefix: write 10.77.0.1/24 or 2001:db8::1/64"
        raise SettingError("address", message) from None
    return str(found)


def _check_mac(mac: str) -> None:
    well_formed = re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", mac) is not None
    octets = bytes.fromhex(mac.replace(":", "")) if well_formed else b""
    if not any(octets) or octets[0] & 1:
        message = f"{mac!r} is not the address of one interface: write 02:00:00:00:00:01, the first octet even"
        raise SettingError("mac", message)
