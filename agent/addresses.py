"""The addresses of a tap: those of the fabric file are put there and taken away, those that others put there stay.

Each address that we add carries a protocol tag (IFA_PROTO, Linux 5.18), by which the next agent knows it as ours. An
older kernel forgets the tag: there only the agent that added an address takes it away.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

OURS: Final = 0x72  # IFA_PROTO; the kernel's own values are 1 to 3
_NODAD: Final = 0x02  # IFA_F_NODAD


def settle_addresses(
    netlink: IPRoute, index: int, wanted: Sequence[str], added: Collection[str]
) -> tuple[set[str], list[str]]:
    """Make ours those that are wanted; `added`: what this agent has added before. Returns what is ours, and problems.

    An IPv6 address can be used at once: a link has two ends, and the fabric file is checked for duplicates.
    """
    before = dict(_found(netlink, index))
    ours = {text for text, message in before.items() if message.get_attr("IFA_PROTO") == OURS or text in added}
    stale = ours - set(wanted)
    for text in stale:
        host, _, prefix = text.partition("/")
        netlink.addr("del", index=index, address=host, prefixlen=int(prefix))
    if any("." in text for text in stale):
        _restore(netlink, index, {text: message for text, message in before.items() if text not in stale})
    ours -= stale
    problems = []
    present = dict(_found(netlink, index))
    for text in wanted:
        if text in present:
            continue
        try:
            _add(netlink, index, text)
            ours.add(text)
        except NetlinkError as error:
            if error.code == errno.EPERM:
                raise
            problems.append(_problem(text, error))
    return ours, problems


def _found(netlink: IPRoute, index: int) -> Iterator[tuple[str, Any]]:
    for message in netlink.addr("dump", index=index):
        if message["index"] == index:
            host = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            yield str(ipaddress.ip_interface(f"{host}/{message['prefixlen']}")), message


def _restore(netlink: IPRoute, index: int, before: dict[str, Any]) -> None:
    """The kernel removes an IPv4 subnet's other addresses with its first one, unless promote_secondaries is set."""
    present = dict(_found(netlink, index))
    for text, message in before.items():
        if text not in present:
            host, _, prefix = text.partition("/")
            names = ("broadcast", "label", "proto")
            kept = {name: message.get_attr(f"IFA_{name.upper()}") for name in names}
            kept = {name: value for name, value in kept.items() if value is not None}
            netlink.addr("add", index=index, address=host, prefixlen=int(prefix), scope=message["scope"], **kept)


def _add(netlink: IPRoute, index: int, text: str) -> None:
    host, _, prefix = text.partition("/")
    flags = {"flags": _NODAD} if ":" in host else {}
    try:
        netlink.addr("add", index=index, address=host, prefixlen=int(prefix), proto=OURS, **flags)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise


def _problem(text: str, error: NetlinkError) -> str:
    if ":" in text and error.code in (errno.EACCES, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
        return f"no IPv6 here for {text}: set disable_ipv6 to 0, or take it out of the fabric file"
    return f"the kernel does not take the address {text}: {error}"
