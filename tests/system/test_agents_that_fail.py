"""What an agent cannot run: the rest runs, `show` and `apply` say what does not, and it is tried again."""

from __future__ import annotations

import resource
import signal
import threading
from pathlib import Path

import pytest

from ringway.agent import Agent, AgentCause, AgentError, Port
from ringway.control.messages import PortStatus
from ringway.shm import RegionHeldError
from tests.support.broker_process import run_ringway
from tests.support.fabric import AgentProcess, Fabric
from tests.support.fabrics import applications_and_firewall
from tests.support.network import namespaces, run
from tests.support.waiting import until

# `west` has a tap and a port for an application; the other ends are applications.
TAP_AND_LOCAL = """
[vm.west.port.tap]
kind = "tap"
interface = "fast0"
[vm.west.port.app]
kind = "local"
[vm.east.port.p]
kind = "local"
[vm.east.port.q]
kind = "local"
[link.a]
ends = ["west.tap", "east.p"]
[link.b]
ends = ["west.app", "east.q"]
"""
STACK = 'default = "allow"\nconnections = 1024\n'
CHAIN = applications_and_firewall(STACK)
TOO_MANY = CHAIN.replace("connections = 1024", "connections = 16777216")
FRAME = bytes(12) + b"\x88\xb5" + bytes(46)


def told(fabric: Fabric, vm: str) -> dict[str, PortStatus]:
    return {port.port: port for port in fabric.broker.vm(vm).ports}


def descriptors_here() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def passes(source: Port, target: Port) -> bool:
    source.send([FRAME])
    return target.receive(timeout=10) == [FRAME]


def apply(fabric: Fabric, folder: Path, text: str) -> tuple[int, str]:
    """Exit code, and what is said on standard error."""
    file = folder / "fabric.toml"
    file.write_text(text)
    done = run_ringway("apply", str(file), "--runtime", str(fabric.runtime))
    return done.returncode, done.stderr


def limit_memory(agent: AgentProcess, more: int) -> None:
    """To what it has now, and so many bytes."""
    pages = int(Path(f"/proc/{agent.process.pid}/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + more
    resource.prlimit(agent.process.pid, resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))


@pytest.mark.needs_root
def test_a_tap_that_cannot_be_made_at_start_keeps_no_other_port_from_running(fabric: Fabric) -> None:
    with namespaces("west"):
        run("ip", "link", "add", "fast0", "type", "bridge", namespace="west")
        fabric.apply(TAP_AND_LOCAL)
        west = fabric.agent("west", "west")
        fabric.agent("east")
        ports = told(fabric, "west")
        assert (ports["tap"].state, ports["app"].state) == ("failed", "attached")
        assert "choose another `interface`" in ports["tap"].cause
        until(lambda: fabric.broker.link("b").state == "up", "the good port's link is up")
        run("ip", "link", "del", "fast0", namespace="west")
        west.await_line("interface fast0 is up")
        until(lambda: told(fabric, "west")["tap"].state == "attached", "the port is well again")
        west.stop()
        assert west.log.count("choose another `interface`") == 1, "it is said once"


@pytest.mark.needs_root
@pytest.mark.parametrize(
    ("without", "cause"),
    [
        (["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"], "CAP_NET_ADMIN"),
        (
            [
                "unshare",
                "-m",
                "--propagation",
                "unchanged",
                "sh",
                "-c",
                'mount -t tmpfs none /dev/net && exec "$@"',
                "sh",
            ],
            "/dev/net/tun cannot be",
        ),
    ],
    ids=["no-right", "no-tun"],
)
def test_what_no_trying_mends_is_said_once_and_shown(fabric: Fabric, without: list[str], cause: str) -> None:
    with namespaces("west"):
        fabric.apply(TAP_AND_LOCAL)
        west = fabric.start("west", "west", by=without)
        west.await_line("ready")
        fabric.agent("east")
        until(lambda: fabric.broker.link("b").state == "up", "the good port's link is up")
        assert told(fabric, "west")["tap"].state == "failed"
        assert cause in told(fabric, "west")["tap"].cause
        until(lambda: "port 'tap'" in fabric.broker.log(), "it was tried again, and the broker was told")
        assert west.stop() == 0
        assert west.log.count(cause) == 1
        assert "Traceback" not in west.log


def test_a_stack_that_cannot_be_made_at_start_keeps_no_port_from_being_attached(fabric: Fabric, tmp_path: Path) -> None:
    fabric.apply(TOO_MANY)
    fw = fabric.start("firewall", by=["prlimit", f"--as={1 << 30}"])
    fw.await_line("ready")
    left, right = fabric.port("left"), fabric.port("right")
    assert "no memory to remember 16777216 connections" in fabric.broker.vm("firewall").problem
    assert apply(fabric, tmp_path, CHAIN) == (0, "")
    assert fabric.broker.vm("firewall").problem == ""
    assert passes(left, right)


def test_an_agent_keeps_its_stack_when_the_new_one_cannot_be_made_and_apply_says_so(
    fabric: Fabric, tmp_path: Path
) -> None:
    fabric.apply(CHAIN)
    fw = fabric.agent("firewall")
    left, right = fabric.port("left"), fabric.port("right")
    assert passes(left, right)
    limit_memory(fw, 256 << 20)
    code, said = apply(fabric, tmp_path, TOO_MANY)
    assert code == 3
    assert "VM firewall: its agent does not run it: there is no memory to remember 16777216 connections" in said
    assert passes(left, right)
    assert "the one before goes on" in fabric.broker.vm("firewall").problem
    assert apply(fabric, tmp_path, CHAIN) == (0, "")
    assert fabric.broker.vm("firewall").problem == ""
    assert passes(right, left)


def test_apply_names_the_agents_that_do_not_answer_and_the_broker_answers_others_meanwhile(
    fabric: Fabric, tmp_path: Path
) -> None:
    fabric.apply(CHAIN)
    fw = fabric.agent("firewall")
    fabric.agent("left")
    fw.process.send_signal(signal.SIGSTOP)
    done: list[tuple[int, str]] = []
    changed = CHAIN.replace('"allow"', '"deny"')
    applying = threading.Thread(target=lambda: done.append(apply(fabric, tmp_path, changed)))
    applying.start()
    until(lambda: fabric.broker.log().count("applied") == 2, "it is applied")
    assert fabric.broker.link("one").state in ("up", "half"), "the broker answers while an apply waits"
    applying.join()
    assert apply(fabric, tmp_path, CHAIN)[0] == 3, "the next apply knows it, and need not wait"
    fw.process.send_signal(signal.SIGCONT)
    assert done == [(3, "VM firewall: its agent has not answered yet; look at `ringway show`\n")]
    until(lambda: "default" in fabric.rules("firewall"), "the agent goes on")
    assert apply(fabric, tmp_path, changed) == (0, "")


def test_an_agent_stops_all_but_the_port_that_is_held_and_the_next_stop_tries_again(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringway.agent.ports._STOP_S", 0.2)
    fabric.apply(TAP_AND_LOCAL)
    agent = Agent("east", fabric.runtime)
    agent.start()
    before = descriptors_here()
    p, q = agent.port("p"), agent.port("q")
    with p.region.hold("an application"):
        for _ in range(2):
            with pytest.raises(RegionHeldError, match=r"an application \(port p\)"):
                agent.stop()
            assert (p.attached, q.attached) == (True, False)
            ends = {link.name: link.ends[1].held for link in fabric.broker.show().links}
            assert ends == {"a": True, "b": False}
        assert fabric.broker.vm("east").state != "present"
    agent.stop()
    assert not p.attached
    assert not fabric.broker.link("a").ends[1].held
    assert descriptors_here() < before
    with Agent("east", fabric.runtime) as another:
        assert another.port("p").attached


def test_a_port_that_an_application_detached_is_had_again(fabric: Fabric) -> None:
    fabric.apply(TAP_AND_LOCAL)
    east = fabric.local("east")
    port = east.port("q")
    port.detach()
    port.detach()
    until(lambda: not fabric.broker.link("b").ends[1].held, "the end is given back")
    with pytest.raises(AgentError, match="detached") as caught:
        port.send([FRAME])
    assert caught.value.cause is AgentCause.WITHDRAWN
    assert [told_port.port for told_port in fabric.broker.vm("east").ports] == ["p"]
    again = east.port("q")
    assert again is not port
    assert again.attached
    assert fabric.broker.link("b").ends[1].held
    assert again.send([FRAME]) == 1


def test_a_port_that_an_application_detached_is_run_by_a_stack_that_wants_it(fabric: Fabric) -> None:
    plain = applications_and_firewall(None)
    fabric.apply(plain)
    left, right, fw = fabric.port("left"), fabric.port("right"), fabric.local("firewall")
    fw.port("inside").detach()
    fabric.apply(CHAIN)
    assert passes(left, right)
    with pytest.raises(AgentError) as caught:
        fw.port("inside")
    assert caught.value.cause is AgentCause.NOT_LOCAL


def test_a_withdrawn_port_that_is_held_is_reported_and_goes_when_it_can(fabric: Fabric, tmp_path: Path) -> None:
    fabric.apply(CHAIN)
    left = fabric.local("left")
    port = left.port("p")
    with port.region.hold("an application"):
        code, said = apply(fabric, tmp_path, CHAIN.replace('"firewall.inside"]', '"firewall.inside"]\nslots = 512'))
        assert code == 3
        assert "VM left: its agent does not run it" in said
        assert "an application" in said
        assert left.port("p").attached
        assert left.port("p") is not port
    until(lambda: not port.attached, "it goes")
