"""Kernel interfaces that outlive their agents: the mark by which the next agent knows them, and what removes them.

    interface     made by                 the mark      removed by
    ours          an agent                in ifalias    whoever hears that the link is gone, or the VM's next agent
    the user's    somebody, beforehand    none          nobody of us; it is not made persistent either

The mark names the runtime directory (by a hash), the VM, and the link. An agent touches only marks of its own VM in its
own runtime directory.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import resource
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ringway.agent.errors import AgentCause, AgentError

# linux/netlink.h, linux/rtnetlink.h
_NETLINK_FDS: Final = 12  # that a connection of Netlink's library takes, with some room
_NLMSG_ERROR, _NLMSG_DONE, _RTM_GETLINK, _DUMP = 2, 3, 18, 0x301
_MARK: Final = re.compile(r"ringway ([0-9a-f]{16}) ([a-z0-9_-]+) link ([0-9]+)")


@dataclass(frozen=True)
class Owner:
    """Whose interfaces an agent's are."""

    fabric: str
    vm: str

    @classmethod
    def of(cls, runtime: Path, vm: str) -> Owner:
        return cls(hashlib.sha256(os.fsencode(os.path.realpath(runtime))).hexdigest()[:16], vm)

    def mark(self, link_id: int) -> str:
        return f"ringway {self.fabric} {self.vm} link {link_id}"


def owner_in(alias: str | None) -> Owner | None:
    found = _MARK.fullmatch(alias or "")
    return Owner(found[1], found[2]) if found else None


def remove_orphans(owner: Owner, keep: Collection[str]) -> list[str]:
    """Delete the owner's interfaces except for those of these names. Returns the names of the deleted ones."""
    if not _is_marked(owner):
        return []
    from pyroute2 import IPRoute

    removed = []
    with refusals("removing an interface"), IPRoute() as netlink:
        for message in netlink.get_links():
            name = message.get_attr("IFLA_IFNAME")
            if name not in keep and owner_in(message.get_attr("IFLA_IFALIAS")) == owner:
                netlink.link("del", index=message["index"])
                removed.append(name)
    return removed


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """What the kernel refuses, as AgentError with the remedy."""
    from pyroute2.netlink.exceptions import NetlinkError

    _need_descriptors(what)
    try:
        yield
    except (NetlinkError, OSError) as error:
        message = f"{what} failed: {error}"
        if (error.code if isinstance(error, NetlinkError) else error.errno) == errno.EPERM:
            message += "; it takes CAP_NET_ADMIN in this network namespace"
        raise AgentError(AgentCause.INTERFACE, message) from None


def _need_descriptors(what: str) -> None:
    """Netlink's library, and the event loop in it, end in tracebacks where they run out of descriptors."""
    try:
        with contextlib.ExitStack() as spare:
            for _ in range(_NETLINK_FDS):
                spare.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        message = f"{what} failed: {error.strerror}: this process may have {most}: raise its ulimit -n (LimitNOFILE)"
        raise AgentError(AgentCause.INTERFACE, message) from None


def alias_of(netlink: Any, name: str) -> str | None:
    """What the interface has in ifalias: "" for nothing, None when there is no such interface."""
    for index in netlink.link_lookup(ifname=name):
        for link in netlink.get_links(index):
            return link.get_attr("IFLA_IFALIAS") or ""
    return None


def _is_marked(owner: Owner) -> bool:
    """Has any interface such a mark? Asked without Netlink's library, which takes 130 ms to load."""
    wanted = owner.mark(0)[:-1].encode()
    request = struct.pack("=IHHIIBxHiII", 32, _RTM_GETLINK, _DUMP, 1, 0, socket.AF_UNSPEC, 0, 0, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        netlink.send(request)
        while True:
            answer = netlink.recv(1 << 16)
            if wanted in answer:
                return True
            if struct.unpack_from("=IH", answer)[1] in (_NLMSG_ERROR, _NLMSG_DONE):
                return False
