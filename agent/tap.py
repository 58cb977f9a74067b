"""A kernel interface for a tap port: made, set up through Netlink, and gone when its descriptors are closed."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Sequence

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ringway.agent.errors import AgentCause, AgentError

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_TSO_ECN = 1, 2, 4, 8
_TUN_F_USO4, _TUN_F_USO6 = 0x20, 0x40  # Linux 6.2

ETHERNET_OVERHEAD = 18  # bytes: addresses, type and one VLAN tag
SECOND_TAG = 4
GSO_MAX = 65536  # the largest packet the kernel hands over unless told otherwise


class TapInterface:
    """A tap with one descriptor per queue. `frame_max` is the longest frame it can hand over, in bytes."""

    def __init__(self, name: str, queues: int, offload: bool, mtu: int, link_frame_max: int) -> None:
        self.name = name
        if mtu + ETHERNET_OVERHEAD > link_frame_max:
            message = f"mtu {mtu} of {name} does not fit the link's largest frame of {link_frame_max} bytes"
            raise AgentError(AgentCause.INTERFACE, f"{message}: lower it, or give the link more slots")
        self.frame_max = min(link_frame_max, mtu + ETHERNET_OVERHEAD + SECOND_TAG)
        if offload:
            self.frame_max = min(link_frame_max, GSO_MAX + ETHERNET_OVERHEAD)
        self._gso_max = self.frame_max - ETHERNET_OVERHEAD
        self.fds: list[int] = []
        try:
            for _ in range(queues):
                self.fds.append(_open_queue(name, several=queues > 1))
            for fd in self.fds:
                _set_offload(fd, offload)
        except BaseException:
            self.close()
            raise
        self._mtu = mtu

    def set_up(self, mac: str | None, addresses: Sequence[str]) -> None:
        """Give the interface its MTU, addresses and segment limit, and bring it up."""
        try:
            with IPRoute() as netlink:
                index = socket.if_nametoindex(self.name)
                if mac is not None:
                    netlink.link("set", index=index, address=mac)
                netlink.link("set", index=index, mtu=self._mtu, gso_max_size=self._gso_max)
                netlink.link("set", index=index, state="up")
                for address in addresses:
                    _add_address(netlink, index, address)
        except (NetlinkError, OSError) as error:
            message = f"setting up {self.name} failed: {error}"
            if (error.code if isinstance(error, NetlinkError) else error.errno) == errno.EPERM:
                message += "; it takes CAP_NET_ADMIN in this network namespace"
            raise AgentError(AgentCause.INTERFACE, message) from None

    def close(self) -> None:
        """The interface goes with its last descriptor."""
        fds, self.fds = self.fds, []
        for fd in fds:
            os.close(fd)


def _add_address(netlink: IPRoute, index: int, address: str) -> None:
    host, _, prefix = address.partition("/")
    try:
        netlink.addr("add", index=index, address=host, prefixlen=int(prefix))
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise


def _open_queue(name: str, several: bool) -> int:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        advice = "load the tun module (modprobe tun)"
        if error.errno in (errno.EACCES, errno.EPERM):
            advice = "run as root, or give it back its usual mode (chmod 666 /dev/net/tun)"
        message = f"/dev/net/tun cannot be opened ({error.strerror}): {advice}"
        raise AgentError(AgentCause.NO_TUN, message) from None
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if several else 0)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode("ascii"), flags))
    except OSError as error:
        os.close(fd)
        remedies = {
            errno.EPERM: "it takes CAP_NET_ADMIN in this network namespace",
            errno.EBUSY: "another program holds an interface of this name; choose another `interface`",
            errno.EINVAL: "an interface of this name exists and is of another kind; choose another `interface`",
        }
        message = f"making the tap {name} failed ({error.strerror})"
        remedy = remedies.get(error.errno or 0)
        raise AgentError(AgentCause.INTERFACE, f"{message}: {remedy}" if remedy else message) from None
    return fd


def _set_offload(fd: int, offload: bool) -> None:
    if not offload:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, 0)
        return
    flags = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN
    try:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, flags | _TUN_F_USO4 | _TUN_F_USO6)
    except OSError:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, flags)  # before Linux 6.2: UDP is segmented by the sender's kernel
