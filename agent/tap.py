"""A kernel interface for a tap port: made or taken over, set up through Netlink, and left for the next agent."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from pathlib import Path

from pyroute2 import IPRoute

from ringway.agent.addresses import settle_addresses
from ringway.agent.errors import AgentCause, AgentError
from ringway.agent.fork import let_go_when_forked
from ringway.agent.interface import Owner, alias_of, owner_in, refusals
from ringway.control.kinds import ETHERNET_OVERHEAD, Tap

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_TUNSETPERSIST = 0x400454CB
_TUNSETCARRIER = 0x400454E2  # Linux 5.0
_IFF_NO_CARRIER = 0x0040  # Linux 6.0; ignored before
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_TSO_ECN = 1, 2, 4, 8
_TUN_F_USO4, _TUN_F_USO6 = 0x20, 0x40  # Linux 6.2

SECOND_TAG = 4  # bytes
GSO_MAX = 65536  # the largest packet the kernel hands over unless told otherwise


class TapInterface:
    """A tap with one descriptor per queue. `frame_max` is the longest frame it can hand over, in bytes.

    One that we make is marked and outlives us; one that was there without a mark is the user's.
    """

    def __init__(
        self, settings: Tap, owner: Owner, link_id: int, queues: int, link_frame_max: int, carrier: bool
    ) -> None:
        assert settings.interface is not None
        self.name = settings.interface
        self.frame_max = longest_frame(settings, link_frame_max)
        self.fds: list[int] = []
        self.missed: list[int] = []  # frames discarded, by queue
        self._carrier = carrier
        self._added: set[str] = set()  # addresses
        let_go_when_forked(self)
        try:
            with refusals(f"making {self.name}"), IPRoute() as netlink:
                self.ours = self._open(netlink, queues, owner)
                # While the queues were opened one by one the kernel moved flows from one to the next, and they would be
                # read side by side: what came until all were open goes.
                self.missed = [_discard(fd, self._room(netlink)) for fd in self.fds[:-1]]
                for fd in self.fds:
                    _set_offload(fd, settings.offload)
                if self.ours:
                    self._keep(netlink, owner.mark(link_id))
        except BaseException:
            self.close()
            raise

    def _open(self, netlink: IPRoute, queues: int, owner: Owner) -> bool:
        """Make or take over the interface; false when it is the user's."""
        alias = alias_of(netlink, self.name)
        ours = alias is None or owner_in(alias) == owner
        flags = _IFF_MULTI_QUEUE if queues > 1 else 0
        flags |= 0 if self._carrier else _IFF_NO_CARRIER
        for _ in range(queues):
            try:
                self.fds.append(_open_queue(self.name, flags))
            except OSError as error:
                if error.errno != errno.EINVAL or alias is None or not ours:
                    raise _refusal(self.name, error) from None
                # Ours has one queue and is to have several, or the other way round: it cannot stay.
                alias = None
                netlink.link("del", index=socket.if_nametoindex(self.name))
                self.fds.append(_open_queue(self.name, flags))
        return ours

    def _room(self, netlink: IPRoute) -> int:
        """How many frames a queue can hold."""
        (link,) = netlink.get_links(socket.if_nametoindex(self.name))
        return int(link.get_attr("IFLA_TXQLEN"))

    def _keep(self, netlink: IPRoute, mark: str) -> None:
        """First the mark: nobody would know an interface that lasts without one."""
        netlink.link("set", index=socket.if_nametoindex(self.name), ifalias=mark)
        fcntl.ioctl(self.fds[0], _TUNSETPERSIST, 1)

    def set_up(self, settings: Tap, mac: str) -> list[str]:
        """Give the interface its settings, at first and when they change. Returns what the kernel does not take.

        Nothing that is as it should be is touched: setting a MAC, for one, has the neighbours asked again.
        """
        with refusals(f"setting up {self.name}"), IPRoute() as netlink:
            index = socket.if_nametoindex(self.name)
            (link,) = netlink.get_links(index)
            if link.get_attr("IFLA_ADDRESS") != mac.lower():
                netlink.link("set", index=index, address=mac)
            netlink.link("set", index=index, mtu=settings.mtu, gso_max_size=self.frame_max - ETHERNET_OVERHEAD)
            if self.ours:
                _use_ipv6_at_once(self.name)
            netlink.link("set", index=index, state="up")
            self._added, problems = settle_addresses(netlink, index, settings.address, self._added)
        return problems

    def set_carrier(self, on: bool) -> None:
        """OSError (EINVAL) before Linux 5.0."""
        if on != self._carrier:
            fcntl.ioctl(self.fds[0], _TUNSETCARRIER, struct.pack("i", on))
            self._carrier = on

    def leave_to_parent(self) -> None:
        """In a forked child: the interface would be taken for as long as it lives."""
        self.close()

    def close(self) -> None:
        """The kernel turns the carrier off; the interface stays, unless it could not be marked."""
        fds, self.fds = self.fds, []
        for fd in fds:
            os.close(fd)


def longest_frame(settings: Tap, link_frame_max: int) -> int:
    """What the interface may hand over, in bytes. AgentError when the link does not carry it."""
    if settings.mtu + ETHERNET_OVERHEAD > link_frame_max:
        what = f"mtu {settings.mtu} of {settings.interface}"
        message = f"{what} does not fit the link's largest frame of {link_frame_max} bytes: lower it"
        raise AgentError(AgentCause.INTERFACE, f"{message}, or give the link more slots")
    if settings.offload:
        return min(link_frame_max, GSO_MAX + ETHERNET_OVERHEAD)
    return min(link_frame_max, settings.mtu + ETHERNET_OVERHEAD + SECOND_TAG)


def _use_ipv6_at_once(name: str) -> None:
    """No duplicate detection for the link-local address either; where /proc/sys is read-only that takes its time."""
    with contextlib.suppress(OSError):
        Path(f"/proc/sys/net/ipv6/conf/{name}/accept_dad").write_text("0", encoding="ascii")


def _open_queue(name: str, more_flags: int) -> int:
    """OSError when the kernel does not give it."""
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        advice = "load the tun module (modprobe tun)"
        if error.errno in (errno.EACCES, errno.EPERM):
            advice = "run as root, or give it back its usual mode (chmod 666 /dev/net/tun)"
        message = f"/dev/net/tun cannot be opened ({error.strerror}): {advice}"
        raise AgentError(AgentCause.NO_TUN, message) from None
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | more_flags
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode("ascii"), flags))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _discard(fd: int, most: int) -> int:
    """Read the frames that a queue holds, and more come meanwhile; returns how many there were."""
    for done in range(most):
        try:
            os.read(fd, 64)
        except BlockingIOError:
            return done
        except OSError as error:
            if error.errno != errno.EINVAL:  # a frame that struct virtio_net_hdr cannot say: gone like the others
                return done
    return most


def _refusal(name: str, error: OSError) -> AgentError:
    remedies = {
        errno.EPERM: "it takes CAP_NET_ADMIN in this network namespace",
        errno.EBUSY: "another program holds an interface of this name; choose another `interface`",
        errno.EINVAL: "an interface of this name exists and is of another kind; choose another `interface`",
    }
    message = f"making the tap {name} failed ({error.strerror})"
    remedy = remedies.get(error.errno or 0)
    return AgentError(AgentCause.INTERFACE, f"{message}: {remedy}" if remedy else message)


def _set_offload(fd: int, offload: bool) -> None:
    if not offload:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, 0)
        return
    flags = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN
    try:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, flags | _TUN_F_USO4 | _TUN_F_USO6)
    except OSError:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, flags)  # before Linux 6.2: UDP is segmented by the sender's kernel
