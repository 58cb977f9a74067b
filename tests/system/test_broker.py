"""A real broker over real sockets: fabrics, agents, what is shown, and its own life and death."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from ringway.broker.loop import Broker
from ringway.control import wire
from ringway.control.client import AgentSession, Client
from ringway.control.errors import ControlError
from ringway.control.handover import Handover
from ringway.control.messages import (
    Cause,
    ErrorReply,
    Hello,
    LoopStatus,
    Notice,
    Offered,
    PortStatus,
    RuleCount,
    SetStack,
    Show,
    Shown,
    Status,
    StatusRequest,
    Withdrawn,
)
from ringway.control.release import RELEASE
from ringway.control.wire import Received
from ringway.shm import Geometry, QueueBells, Region
from tests.conftest import require
from tests.support.broker_process import BrokerProcess, only_offer, run_ringway, session_of, short_directory
from tests.support.fabrics import FABRIC

STACK = """
[vm.client.port.other]
kind = "local"
[vm.client.stack]
forward = [["net", "other"]]
default = "deny"
"""


@pytest.fixture
def runtime() -> Iterator[Path]:
    with short_directory() as path:
        yield path / "run"


@pytest.fixture
def broker(runtime: Path) -> Iterator[BrokerProcess]:
    with BrokerProcess(runtime) as process:
        yield process


def refused(session: AgentSession) -> ControlError:
    with pytest.raises(ControlError) as caught:
        session.hello()
    return caught.value


def pushed(session: AgentSession) -> Received:
    """The broker's next request, awaited."""
    received = session.receive()
    if received is None:
        assert session.socket.poll(5000), "the broker pushed nothing"
        received = session.receive()
    assert received is not None
    return received


def attach(handover: Handover, side: int) -> Region:
    geometry = handover.geometry
    bells = [QueueBells(*queue) for queue in handover.bells]
    shape = Geometry(geometry.queues, geometry.slot_count, geometry.slot_payload, geometry.headroom)
    return Region.attach(handover.region_fd, shape, handover.link_id, side, handover.incarnation, bells)


def test_a_fabric_is_made_kept_replaced_and_removed(broker: BrokerProcess) -> None:
    assert broker.apply().made == ["one"]
    assert broker.apply().kept == ["one"]
    assert broker.apply(FABRIC + "queues = 2\n").replaced == ["one"]
    assert broker.apply("").removed == ["one"]
    assert broker.show() == Shown(links=[], vms=[])


def test_removed_links_leave_no_descriptor_behind(broker: BrokerProcess) -> None:
    before = broker.descriptors()
    for _ in range(5):
        broker.apply(FABRIC + "queues = 16\n")
        assert broker.descriptors() > before
        broker.apply("")
    assert broker.descriptors() == before


def test_a_bad_fabric_changes_nothing_and_names_its_line(broker: BrokerProcess) -> None:
    broker.apply()
    with pytest.raises(ControlError) as caught:
        broker.apply(FABRIC + "quues = 2\n")
    assert caught.value.cause is Cause.BAD_FABRIC
    assert "fabric.toml:9: link.one.quues" in caught.value.message
    assert broker.link().geometry.queues == 1


def test_frames_cross_a_link_between_two_handed_over_ends(broker: BrokerProcess, runtime: Path) -> None:
    broker.apply()
    with session_of(runtime, "client") as client, session_of(runtime, "server") as server:
        ends = [broker.take(only_offer(session.hello()), session.vm) for session in (client, server)]
        assert broker.link().state == "down"
        regions = [attach(handover, side) for side, handover in enumerate(ends)]
        assert broker.link().state == "up"
        for region in regions:
            region.detach()
        assert broker.link().state == "down"
        for handover in ends:
            handover.connection.close()
            os.close(handover.region_fd)


def test_an_end_that_dies_can_be_taken_again_with_the_next_incarnation(broker: BrokerProcess, runtime: Path) -> None:
    broker.apply()
    with session_of(runtime, "client") as session:
        for incarnation in (1, 2, 3):
            offer = only_offer(session.hello())
            assert offer.incarnation == incarnation
            handover = broker.take(offer, "client")
            assert handover.incarnation == incarnation
            assert [end.held for end in broker.link().ends] == [True, False]
            handover.discard()
            assert [end.held for end in broker.link().ends] == [False, False]


def test_an_agent_that_is_there_hears_of_offers_withdrawals_and_stacks(broker: BrokerProcess, runtime: Path) -> None:
    broker.apply('[vm.client.port.net]\nkind = "local"\n')
    with session_of(runtime, "client") as session:
        assert session.hello().offers == []
        broker.apply(STACK + FABRIC)
        stack = pushed(session).message
        assert isinstance(stack, SetStack), "rules come before the links they are for"
        assert stack.stack is not None
        assert stack.stack.forward == [("net", "other")]
        offered = pushed(session).message
        assert isinstance(offered, Offered)
        broker.take(offered.offer, "client").discard()
        broker.apply("")
        assert pushed(session).message == Withdrawn(link="one", link_id=offered.offer.link_id, port="net")
        assert pushed(session).message == SetStack(stack=None)


def test_an_agent_that_comes_later_gets_everything_at_once(broker: BrokerProcess, runtime: Path) -> None:
    broker.apply(STACK + FABRIC)
    with session_of(runtime, "client") as session:
        welcome = session.hello()
        assert [offer.port for offer in welcome.offers] == ["net"]
        assert welcome.stack is not None
        assert welcome.stack.default == "deny"


def test_an_agent_of_an_unknown_vm_is_told_the_known_ones(broker: BrokerProcess, runtime: Path) -> None:
    with session_of(runtime, "clint") as session:
        assert "the fabric is empty" in refused(session).message
        broker.apply()
        error = refused(session)
    assert error.cause is Cause.UNKNOWN_VM
    assert "client, server" in error.message


def test_a_second_agent_is_refused_while_the_first_holds_an_end(broker: BrokerProcess, runtime: Path) -> None:
    broker.apply()
    with session_of(runtime, "client") as first, session_of(runtime, "client") as second:
        handover = broker.take(only_offer(first.hello()), "client")
        assert refused(second).cause is Cause.AGENT_EXISTS
        handover.discard()


def test_a_second_agent_is_refused_while_the_first_answers(broker: BrokerProcess, runtime: Path) -> None:
    broker.apply()
    with session_of(runtime, "client") as first, session_of(runtime, "client") as second:
        first.hello()
        second._send("f" * 32, _hello("client"), 5)
        asked = pushed(first)
        assert asked.message == StatusRequest()
        first.answer(asked.request_id, Status(ports=[], loops=[], rules=[]))
        received = second._receive(5)
        assert received is not None
        assert isinstance(received.message, ErrorReply)
        assert received.message.cause is Cause.AGENT_EXISTS


def test_a_second_agent_follows_one_that_is_silent_and_holds_nothing(broker: BrokerProcess, runtime: Path) -> None:
    broker.apply()
    with session_of(runtime, "client") as first, session_of(runtime, "client") as second:
        first.hello()
        assert only_offer(second.hello()).link == "one"
        broker.apply("")
        while not isinstance(pushed(second).message, Withdrawn):
            pass


def test_a_second_agent_follows_one_that_is_gone(broker: BrokerProcess, runtime: Path) -> None:
    broker.apply()
    with session_of(runtime, "client") as first:
        handover = broker.take(only_offer(first.hello()), "client")
    handover.discard()
    with session_of(runtime, "client") as second:
        assert only_offer(second.hello()).incarnation == 2


def _hello(vm: str) -> Hello:
    return Hello(vm=vm, pid=os.getpid(), version=RELEASE)


def test_show_asks_the_agents_and_says_who_is_silent_or_away(broker: BrokerProcess, runtime: Path) -> None:
    broker.apply()
    told = Status(
        ports=[PortStatus(port="net", link="one", state="broken", cause="head")],
        loops=[LoopStatus(name="net", counters={"loops": 2**64 - 1})],
        rules=[RuleCount(name="default", frames=1, bytes=60)],
    )
    with session_of(runtime, "client") as session, Client(runtime) as asking:
        session.hello()
        asking._send("e" * 32, Show(), 5)
        session.answer(pushed(session).request_id, told)
        received = asking._receive(5)
        assert received is not None
        shown = received.message
        assert isinstance(shown, Shown)
        client, server = shown.vms
        assert (client.state, client.pid, client.rules) == ("present", os.getpid(), told.rules)
        assert (client.ports, client.loops) == (told.ports, told.loops)
        assert (server.state, server.pid) == ("away", None)
        started = time.monotonic()
        assert broker.vm("client").state == "silent"
        assert time.monotonic() - started < 5


@contextmanager
def loop_here(runtime: Path) -> Iterator[list[str]]:
    """A broker in a thread of this process, with its log."""
    log: list[str] = []
    loop = Broker(runtime, log.append)
    stop_fd, stopping = os.pipe()
    thread = Thread(target=loop.run, args=(stop_fd,))
    try:
        loop.apply(FABRIC, "fabric.toml")
        thread.start()
        yield log
    finally:
        os.write(stopping, b"x")
        thread.join()
        loop.close()
        os.close(stop_fd)
        os.close(stopping)


@pytest.mark.parametrize("silent", [False, True])
def test_an_answer_that_cannot_be_given_is_refused_by_name_and_ends_no_broker(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    monkeypatch.setattr(wire, "REPLY_SIZE", 4096)  # a limit that two agents' words are enough to reach
    rules = [RuleCount(name=f"{number:060}", frames=0, bytes=0) for number in range(50)]
    with (
        loop_here(runtime) as log,
        session_of(runtime, "client") as client,
        session_of(runtime, "server") as server,
        Client(runtime) as asking,
    ):
        client.hello()
        server.hello()
        asking._send("e" * 32, Show(), 5)
        client.answer(pushed(client).request_id, Status(ports=[], loops=[], rules=rules))
        asked = pushed(server).request_id
        if not silent:
            server.answer(asked, Status(ports=[], loops=[], rules=rules))
        received = asking._receive(5)
        assert received is not None
        assert isinstance(received.message, ErrorReply)
        assert received.message.cause is Cause.FAILED
        assert any("more than the 4096" in line for line in log)
        assert only_offer(client.hello()).link == "one"


def test_what_an_agent_fails_to_do_is_shown_and_logged(broker: BrokerProcess, runtime: Path) -> None:
    broker.apply('[vm.client.port.net]\nkind = "local"\n')
    with session_of(runtime, "client") as session:
        session.hello()
        broker.apply()
        session.answer(pushed(session).request_id, ErrorReply(cause=Cause.FAILED, message="no such device"))
        session.notify(Notice(port="net", link="one", event="refused", cause="geometry"))
        assert broker.vm("client").problem == "no such device"
    _, log = broker.stop()
    assert "agent of VM 'client' failed: no such device" in log
    assert "VM 'client', port 'net', link 'one': refused (geometry)" in log


def test_an_agent_that_reads_nothing_holds_nobody_up(broker: BrokerProcess, runtime: Path) -> None:
    broker.apply()
    with session_of(runtime, "client") as session:
        session.hello()
        for round_ in range(60):
            broker.apply(FABRIC + f"queues = {1 + round_ % 2}\n")
        assert len(broker.show().links) == 1


def test_a_second_broker_is_refused_and_the_first_goes_on(broker: BrokerProcess, runtime: Path) -> None:
    broker.apply()
    second = run_ringway("broker", "--runtime", str(runtime))
    assert second.returncode == 1
    assert second.stderr.startswith("ringway: a broker is already running")
    assert second.stderr.count("\n") == 1
    assert broker.link().name == "one"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_broker_stops_cleanly_when_told_to(broker: BrokerProcess, runtime: Path, number: int) -> None:
    code, _ = broker.stop(number)
    assert code == 0
    assert sorted(path.name for path in runtime.iterdir()) == ["journal", "keeper.lock", "lock"]


def test_a_request_over_which_the_broker_dies_is_asked_again(runtime: Path) -> None:
    with BrokerProcess(runtime) as first, ThreadPoolExecutor(1) as thread, Client(runtime) as client:
        first.apply()
        client.call(Show(), Shown)
        first.process.send_signal(signal.SIGSTOP)
        asked = thread.submit(client.call, Show(), Shown, 20)
        first.stop(signal.SIGKILL)
        with BrokerProcess(runtime):
            assert [link.name for link in asked.result().links] == ["one"]


def test_huge_pages_that_are_not_there_become_ordinary_ones_and_it_says_so(broker: BrokerProcess) -> None:
    applied = broker.apply(FABRIC + "huge_pages = true\n")
    link = broker.link()
    if link.pages == "huge":
        require(False, "this host has huge pages to give")
    assert "has ordinary pages" in applied.notes[0]
    assert "has ordinary pages" in link.note


def test_more_links_than_there_are_descriptors_for_are_refused(runtime: Path) -> None:
    vms = "".join(f'[vm.v{n}.port.net]\nkind = "local"\n' for n in range(20))
    pairs = ((f"v{n}.net", f"v{n + 1}.net") for n in range(0, 20, 2))
    links = "".join(f'[link.l{n}]\nends = ["{a}", "{b}"]\nqueues = 16\nslots = 64\n' for n, (a, b) in enumerate(pairs))
    with BrokerProcess(runtime) as broker:
        resource.prlimit(broker.process.pid, resource.RLIMIT_NOFILE, (100, 100))
        before = broker.show()
        with pytest.raises(ControlError):
            broker.apply(vms + links)
        assert broker.show() == before


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o710])
def test_a_runtime_directory_open_to_others_is_refused(runtime: Path, mode: int) -> None:
    runtime.mkdir()
    runtime.chmod(mode)
    refused = run_ringway("broker", "--runtime", str(runtime))
    assert refused.returncode == 1
    assert "chmod 700" in refused.stderr


def test_a_runtime_directory_that_is_a_link_or_a_file_is_refused(runtime: Path) -> None:
    target = runtime.parent / "target"
    target.mkdir(mode=0o700)
    runtime.symlink_to(target)
    assert "is not a directory" in run_ringway("broker", "--runtime", str(runtime)).stderr
    runtime.unlink()
    runtime.write_text("", encoding="ascii")
    assert run_ringway("broker", "--runtime", str(runtime)).returncode == 1


def test_a_runtime_path_too_long_for_a_socket_is_refused(runtime: Path) -> None:
    refused = run_ringway("broker", "--runtime", str(runtime / ("d" * 100)))
    assert refused.returncode == 1
    assert "choose a shorter directory" in refused.stderr


def test_the_command_line_goes_from_check_to_apply_to_show(broker: BrokerProcess, runtime: Path) -> None:
    path = runtime.parent / "fabric.toml"
    path.write_text(FABRIC, encoding="utf-8")
    environment = {"RINGWAY_RUNTIME": str(runtime)}
    assert "frames up to" in run_ringway("check", str(path)).stdout
    applied = run_ringway("apply", str(path), environment=environment).stdout
    assert applied.startswith("made: one\n")
    assert "frames up to 65536 bytes" in applied
    shown = run_ringway("show", environment=environment)
    assert "client.net detached" in shown.stdout
    assert "one: client → server" in shown.stdout
    document = json.loads(run_ringway("show", "--json", environment=environment).stdout)
    assert document["links"][0]["rings"][0]["balanced"] is True


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nonsense"], 2),
        (["apply"], 2),
        (["agent"], 2),
        (["check", "/nonexistent/fabric.toml"], 1),
        (["apply", "/dev"], 1),
        (["show", "--runtime", "/nonexistent"], 1),
        (["broker", "--runtime", "/nonexistent/deeper"], 1),
        (["broker", "--fabric", "/nonexistent/fabric.toml"], 1),
    ],
)
def test_the_command_line_refuses_in_words_and_by_exit_code(arguments: list[str], code: int) -> None:
    done = run_ringway(*arguments)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.startswith("ringway: ")
        assert done.stderr.count("\n") == 1


def test_a_broker_can_begin_with_a_fabric(runtime: Path) -> None:
    path = runtime.parent / "fabric.toml"
    path.write_text(FABRIC, encoding="utf-8")
    with BrokerProcess(runtime, "--fabric", str(path)) as broker:
        assert broker.link().state == "down"
