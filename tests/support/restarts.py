"""A fabric that lives through the deaths of its broker and keeper, and what is looked at before and after them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ringway.agent import Port
from ringway.control.messages import Shown
from ringway.control.registry import ListedFabric, read_registry
from tests.support.broker_process import BrokerProcess, descriptors_of, own_descriptors
from tests.support.fabric import AgentProcess, Fabric
from tests.support.keeper_process import await_end, settled_descriptors, watching
from tests.support.numbered_stream import Stream, streaming
from tests.support.waiting import until
from tools.soak.census import keeper_pid

CHAIN = """
[vm.client.port.direct]
kind = "local"
[vm.client.port.net]
kind = "local"
[vm.server.port.direct]
kind = "local"
[vm.server.port.net]
kind = "local"
[vm.fw.port.inside]
kind = "local"
[vm.fw.port.outside]
kind = "local"
[vm.fw.stack]
forward = [["inside", "outside"]]
default = "allow"
[link.direct]
ends = ["client.direct", "server.direct"]
slots = 64
[link.in]
ends = ["client.net", "fw.inside"]
slots = 64
[link.out]
ends = ["fw.outside", "server.net"]
slots = 64
"""


class HeldEnd(NamedTuple):
    link_id: int
    pid: int
    incarnation: int


class Descriptors(NamedTuple):
    """Open ones, by process."""

    broker: int
    keeper: int
    firewall: int
    test: int


class Chain:
    """Client and server in the test's process, joined directly and by way of a firewall in a process of its own."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.broker = fabric.broker
        fabric.broker.apply(CHAIN)
        self.firewall: AgentProcess = fabric.agent("fw")
        self.client, self.server = fabric.local("client"), fabric.local("server")
        self.await_agents()

    def await_agents(self) -> None:
        """All three have said hello."""
        until(lambda: all(vm.state == "present" for vm in self.broker.show().vms), "all agents say hello")

    def descriptors(self) -> Descriptors:
        broker = self.broker.descriptors()
        firewall = descriptors_of(self.firewall.process.pid)
        return Descriptors(broker, settled_descriptors(self.fabric.runtime), firewall, own_descriptors())

    @contextlib.contextmanager
    def traffic(self, *names: str) -> Iterator[list[Stream]]:
        """By the link `direct` and by `net`, through the firewall; all of it must arrive."""
        with contextlib.ExitStack() as streams:
            ports = [(self.client.port(name), self.server.port(name)) for name in names or ("direct", "net")]
            yield [streams.enter_context(streaming(source, target)) for source, target in ports]


def ends_of(shown: Shown) -> dict[str, HeldEnd]:
    return {
        f"{end.vm}.{end.port}": HeldEnd(link.link_id, end.pid, end.incarnation)
        for link in shown.links
        for end in link.ends
    }


def link_ids(shown: Shown) -> dict[str, int]:
    return {link.name: link.link_id for link in shown.links}


def listed(runtime: Path) -> ListedFabric:
    """What `ringway list` has of this fabric."""
    (found,) = [fabric for fabric in read_registry().fabrics if fabric.runtime == str(runtime)]
    return found


def kill_keeper(runtime: Path) -> int:
    """Returns its pid, when it has ended."""
    pid = keeper_pid(runtime)
    assert pid is not None, "no keeper runs"
    with watching(pid) as pid_fd:
        signal.pidfd_send_signal(pid_fd, signal.SIGKILL)
        await_end(pid_fd)
    return pid


def come_to(broker: BrokerProcess, keeper: int, of_broker: int) -> None:
    """Wait until keeper and broker have so many descriptors."""
    until(
        lambda: (settled_descriptors(broker.runtime), broker.descriptors()) == (keeper, of_broker),
        f"keeper and broker have {keeper} and {of_broker} descriptors",
    )


def await_peer(port: Port, there: bool) -> None:
    until(lambda: port.peer_attached is there, f"the other end of {port.offer.link} is {'there' if there else 'gone'}")


def send_through(ports: Sequence[Port], frame: bytes) -> None:
    """One frame from the first to the second, waited for."""
    source, target = ports
    assert source.send([frame], timeout=20) == 1
    assert target.receive(timeout=20) == [frame]
