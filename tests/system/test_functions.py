"""Packet functions of a user's own: built, loaded by name, reloaded under traffic, shown; and those that crash."""

from __future__ import annotations

import hashlib
import os
import signal
import struct
import subprocess
from pathlib import Path

import pytest

from tests.support.broker_process import RINGWAY, run_ringway
from tests.support.fabric import Fabric
from tests.support.fabrics import applications_and_firewall
from tests.support.numbered_stream import streaming
from tests.support.waiting import until

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "functions"
CHAIN = applications_and_firewall()


def using(*functions: str) -> str:
    return CHAIN + "".join(f"[[vm.firewall.stack.function]]\n{function}\n" for function in functions)


def build(source: str, target: Path, *flags: str) -> None:
    """As a user does: with the headers that the installed package has."""
    headers = subprocess.run([*RINGWAY, "headers"], capture_output=True, text=True, check=True).stdout.strip()
    fresh = target.with_suffix(".fresh")
    subprocess.run(
        [
            "cc",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
            "-O2",
            f"-I{headers}",
            *flags,
            "-x",
            "c",
            "-",
            "-o",
            fresh,
        ],
        input=source,
        text=True,
        check=True,
    )
    fresh.rename(target)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "functions"
    made.mkdir(mode=0o755)
    return made


def udp(port: int, number: int) -> bytes:
    """An IPv4 frame to a UDP port."""
    payload = struct.pack("!Q", number)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0, bytes(4), bytes(4))
    total = sum(struct.unpack("!10H", ip))
    total = (total & 0xFFFF) + (total >> 16)
    ip = ip[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + ip[12:]
    return bytes(12) + b"\x08\x00" + ip + struct.pack("!HHHH", 4000, port, 8 + len(payload), 0) + payload


def counters(fabric: Fabric, name: str = "mark") -> dict[str, int]:
    return next((told.counters for told in fabric.broker.vm("firewall").functions if told.name == name), {})


def apply(fabric: Fabric, tmp_path: Path, text: str) -> tuple[int, str]:
    file = tmp_path / "fabric.toml"
    file.write_text(text)
    done = run_ringway("apply", str(file), "--runtime", str(fabric.runtime))
    return done.returncode, done.stderr


def test_a_function_in_c_changes_what_passes_and_shows_what_it_counted(fabric: Fabric, folder: Path) -> None:
    build((EXAMPLES / "mark.c").read_text(), folder / "mark.so")
    fabric.apply(using('name = "mark"\noptions = { port = 5201, dscp = 46 }'))
    fabric.agent("firewall", None, "--functions", str(folder))
    left, right = fabric.port("left"), fabric.port("right")
    left.send([udp(5201, 1), udp(5202, 2)])
    marked, other = right.receive(count=1, timeout=10) + right.receive(count=1, timeout=10)
    assert marked[15] == 46 << 2
    assert sum(struct.unpack("!10H", marked[14:34])) % 0xFFFF == 0, "the header's checksum is right"
    assert marked[16:24] + marked[26:] == udp(5201, 1)[16:24] + udp(5201, 1)[26:]
    assert other == udp(5202, 2)
    assert counters(fabric) == {"marked": 1, "already": 0, "not_mine": 1}


# What a test needs of a function in C; @burst stands for what it does with a packet, @start for how it starts.
TEMPLATE = """
#include "stack/function.h"
static const char *const COUNTERS[] = {"seen", "@other"};
static uint64_t *counters;
static void *start(const struct rway_function_start *start) { (void)start; @start }
static void burst(void *state, struct rway_packet *const *packets, uint32_t count)
{
    (void)state;
    rway_counter_add(&counters[0], count);
    for (uint32_t i = 0; i < count; i++) { struct rway_packet *packet = packets[i]; (void)packet; @burst }
}
const struct rway_function rway_function_entry = {
    .version = RWAY_FUNCTION_VERSION, .counters = COUNTERS, .counter_count = 2, .start = start, .burst = burst};
"""


def template(burst: str = "", other: str = "other", start: str = "counters = start->counters; return counters;") -> str:
    return TEMPLATE.replace("@burst", burst).replace("@other", other).replace("@start", start)


WIRE = 'forward = [["inside", "outside"]]'
BRIDGE = 'mode = "bridge"\nbridge = { ports = ["inside", "outside"], flood_rate = 100000000 }'


@pytest.mark.parametrize(
    ("mode", "queues", "options"),
    [(WIRE, 1, []), (WIRE, 4, ["--loops", "2"]), (BRIDGE, 2, [])],
    ids=["wire", "queues", "bridge"],
)
def test_functions_are_changed_under_traffic_without_a_frame_lost_or_overtaken(
    fabric: Fabric, folder: Path, tmp_path: Path, mode: str, queues: int, options: list[str]
) -> None:
    def of_kind(text: str) -> str:
        return text.replace(WIRE, mode).replace("ends =", f"queues = {queues}\nends =")

    build((EXAMPLES / "mark.c").read_text(), folder / "mark.so")
    build(template(), folder / "mine.so")
    marks = [using(f'name = "mark"\noptions = {{ dscp = {dscp} }}') for dscp in range(4)]
    fabric.apply(of_kind(CHAIN))
    fabric.agent("firewall", None, "--functions", str(folder), *options)
    left, right = fabric.port("left"), fabric.port("right")
    with streaming(left, right) as stream:
        for text in [*marks, CHAIN, using('name = "mine"', 'name = "mark"'), using('name = "mark"', 'name = "mine"')]:
            assert apply(fabric, tmp_path, of_kind(text)) == (0, "")
            stream.pass_on(300)
    text = of_kind(using('name = "mine"'))
    before = counters(fabric, "mine")["seen"]
    with streaming(left, right) as stream:
        for number in range(5):
            build(template(other=f"other{number}"), folder / "mine.so")
            assert apply(fabric, tmp_path, text) == (0, ""), "the same text loads what has changed"
            stream.pass_on(300)
            assert list(counters(fabric, "mine")) == ["seen", f"other{number}"]
    for link in ("one", "two"):
        assert not any(ring.drops_produced or ring.drops_consumed for ring in fabric.quiet(link).rings)
    assert counters(fabric, "mine")["seen"] == before + stream.sent, "it counts on from the one before, to the frame"
    (told,) = [told for told in fabric.broker.vm("firewall").functions if told.name == "mine"]
    assert told.sha256 == hashlib.sha256((folder / "mine.so").read_bytes()).hexdigest()


def test_connections_outlive_an_exchange_of_functions(fabric: Fabric, folder: Path) -> None:
    rule = '[[vm.firewall.stack.rule]]\nname = "out"\naction = "allow"\nfrom = "inside"\n'
    stateful = applications_and_firewall('default = "deny"\nconnections = 1024') + rule
    build(template(), folder / "mine.so")
    fabric.apply(stateful)
    fabric.agent("firewall", None, "--functions", str(folder))
    left, right = fabric.port("left"), fabric.port("right")
    left.send([udp(1, 1)])
    assert right.receive(timeout=10) == [udp(1, 1)]
    fabric.apply(stateful + '[[vm.firewall.stack.function]]\nname = "mine"\n')
    answer = udp(4000, 2)
    answer = answer[:34] + struct.pack("!HH", 1, 4000) + answer[38:]
    right.send([answer])
    assert left.receive(timeout=10) == [answer]
    assert counters(fabric, "mine")["seen"] == 1


def test_objects_that_stay_loaded_do_not_stand_for_those_that_replace_them(
    fabric: Fabric, folder: Path, tmp_path: Path
) -> None:
    """With -z nodelete an object is never unloaded, as C++ with unique symbols is not."""
    fabric.apply(CHAIN)
    fabric.agent("firewall", None, "--functions", str(folder))
    for number in range(6):
        build(template(other=f"other{number}"), folder / "mine.so", "-Wl,-z,nodelete")
        assert apply(fabric, tmp_path, using('name = "mine"')) == (0, "")
        assert list(counters(fabric, "mine")) == ["seen", f"other{number}"]


def test_a_function_may_send_back_and_a_kill_of_its_agent_is_booked_to_the_frame(fabric: Fabric, folder: Path) -> None:
    build(template("rway_packet_send(packet, packet->in_port);"), folder / "back.so")
    fabric.apply(using('name = "back"'))
    agent = fabric.agent("firewall", None, "--functions", str(folder))
    left, right = fabric.port("left"), fabric.port("right")
    with streaming(left, left) as stream:
        stream.pass_on(1000)
    assert right.receive(timeout=0) == []
    agent.stop(signal.SIGKILL)
    again = fabric.agent("firewall", None, "--functions", str(folder))
    with streaming(left, left) as stream:
        stream.pass_on(1000)
    for link in ("one", "two"):
        assert not any(ring.drops_produced or ring.drops_consumed for ring in fabric.quiet(link).rings)
    again.stop()
    assert "lost" not in again.log


def test_a_file_that_is_replaced_or_overwritten_changes_nothing_that_runs(fabric: Fabric, folder: Path) -> None:
    build(template(), folder / "mine.so")
    fabric.apply(using('name = "mine"'))
    fabric.agent("firewall", None, "--functions", str(folder))
    left, right = fabric.port("left"), fabric.port("right")
    (folder / "mine.so").write_bytes(bytes((folder / "mine.so").stat().st_size))
    left.send([udp(1, 1)])
    assert right.receive(timeout=10) == [udp(1, 1)]
    (folder / "mine.so").unlink()
    left.send([udp(1, 2)])
    assert right.receive(timeout=10) == [udp(1, 2)]
    assert counters(fabric, "mine")["seen"] == 2


UNKNOWN = "int no_such_symbol(void); int call(void); int call(void) { return no_such_symbol(); }"
BAD = [
    ("missing", "", "has no new.so or new.py; the functions there are: old"),
    ("text", "no shared object", "cannot be loaded"),
    ("symbol", template() + UNKNOWN, "undefined symbol: no_such_symbol"),
    ("no-entry", "int nothing;", "exports no rway_function_entry"),
    ("version", template().replace("= RWAY_FUNCTION_VERSION", "= 77"), "built for version 77 of the interface"),
    ("no-burst", template().replace(", .burst = burst", ""), "it has no burst"),
    ("start", template(start="counters = start->counters; return NULL;"), "its start returned NULL"),
    ("counters", template(other="seen"), "counter 'seen' is there twice"),
    ("option", template(), "has no option 'most'; its options are: none"),
]


@pytest.mark.parametrize(("source", "message"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_what_cannot_run_is_named_and_the_function_before_goes_on(
    fabric: Fabric, folder: Path, tmp_path: Path, source: str, message: str
) -> None:
    build(template(), folder / "old.so")
    fabric.apply(using('name = "old"'))
    agent = fabric.agent("firewall", None, "--functions", str(folder))
    left, right = fabric.port("left"), fabric.port("right")
    if source == "no shared object":
        (folder / "new.so").write_text(source)
    elif source:
        build(source, folder / "new.so", "-Wno-unused-function")
    options = "\noptions = { most = 1 }" if "option" in message else ""
    code, said = apply(fabric, tmp_path, using(f'name = "new"{options}'))
    assert (code, message in said) == (3, True), said
    problem = fabric.broker.vm("firewall").problem
    assert "the one before goes on: packet function 'new': " in problem
    assert message in problem
    left.send([udp(1, 1)])
    assert right.receive(timeout=10) == [udp(1, 1)]
    assert counters(fabric, "old")["seen"] == 1
    build(template(), folder / "new.so")
    assert apply(fabric, tmp_path, using('name = "new"')) == (0, "")
    left.send([udp(1, 2)])
    assert right.receive(timeout=10) == [udp(1, 2)]
    assert counters(fabric, "new")["seen"] == 1
    assert fabric.broker.vm("firewall").problem == ""
    agent.stop()
    assert agent.log.count(message) == 1, "it is logged once"


def test_an_option_of_another_type_is_refused_though_it_equals_the_one_that_runs(
    fabric: Fabric, folder: Path, tmp_path: Path
) -> None:
    (folder / "one.py").write_text(
        "from ringway.stack.prototype import Number\nOPTIONS = {'n': Number(0, 9, usual=0)}\n"
        "class Function:\n    def __init__(self, start): pass\n    def burst(self, packets): pass\n"
    )
    fabric.apply(using('name = "one"\noptions = { n = 1 }'))
    fabric.agent("firewall", None, "--functions", str(folder))
    code, said = apply(fabric, tmp_path, using('name = "one"\noptions = { n = true }'))
    assert (code, "has to be a whole number" in said) == (3, True)


def test_without_its_function_a_stack_forwards_nothing_and_it_runs_once_that_is_there(
    fabric: Fabric, folder: Path
) -> None:
    fabric.apply(using('name = "late"'))
    agent = fabric.agent("firewall", None, "--functions", str(folder))
    left, right = fabric.port("left"), fabric.port("right")
    assert "the stack does not run: packet function 'late'" in fabric.broker.vm("firewall").problem
    left.send([udp(1, 1)])
    assert right.receive(timeout=0.3) == []
    build(template(), folder / "late.so")
    agent.await_line("the stack runs again")
    assert right.receive(timeout=10) == [udp(1, 1)]


def test_an_agent_without_a_directory_says_so(fabric: Fabric) -> None:
    fabric.apply(using('name = "mark"'))
    fabric.agent("firewall")
    assert "start it with --functions DIR" in fabric.broker.vm("firewall").problem


@pytest.mark.parametrize("what", ["directory", "file", "owner", "link"])
def test_a_file_that_others_can_change_is_not_run(fabric: Fabric, folder: Path, what: str) -> None:
    if what == "owner" and os.geteuid() != 0:
        pytest.skip("needs root to give a file away")
    build(template(), folder / "mine.so")
    path = folder if what == "directory" else folder / "mine.so"
    if what == "owner":
        os.chown(path, 1, 1)
    elif what == "link":
        path.rename(folder / "other.so")
        path.symlink_to("other.so")
    else:
        path.chmod(0o775)
    fabric.apply(using('name = "mine"'))
    fabric.agent("firewall", None, "--functions", str(folder))
    problem = fabric.broker.vm("firewall").problem
    assert str(path) in problem
    assert ("cannot be read" if what == "link" else "has to belong to root") in problem


def test_a_function_sends_by_another_port_by_its_name(fabric: Fabric, folder: Path) -> None:
    """A mirror port beside a pair: to it goes what would have gone to the other end."""
    start = """
        counters = start->counters;
        for (uint32_t port = 0; port < start->port_count; port++)
            if (strcmp(start->ports[port], "aside") == 0)
                counters[1] = port;
        return counters;"""
    build(template("rway_packet_send(packet, (uint32_t)counters[1]);", start=start), folder / "divert.so")
    third = """
[vm.third.port.p]
kind = "local"
[vm.firewall.port.aside]
kind = "local"
[link.three]
ends = ["firewall.aside", "third.p"]
"""
    bridge = 'mode = "bridge"\nbridge = { ports = ["inside", "outside", "aside"] }'
    fabric.apply(using('name = "divert"').replace('forward = [["inside", "outside"]]', bridge) + third)
    fabric.agent("firewall", None, "--functions", str(folder))
    left, right, aside = fabric.port("left"), fabric.port("right"), fabric.port("third")
    frame = b"\xff" * 6 + b"\x02" + bytes(5) + b"\x88\xb5" + bytes(46)
    left.send([frame])
    assert aside.receive(timeout=10) == [frame]
    assert right.receive(timeout=0) == []


def test_a_function_that_crashes_takes_its_agent_and_links_come_back_with_the_next(
    fabric: Fabric, folder: Path
) -> None:
    crash = "if (packet->bytes[12] == 0x99) *(volatile int *)0 = 1;"
    build(template(crash), folder / "crash.so")
    fabric.apply(using('name = "crash"'))
    agent = fabric.agent("firewall", None, "--functions", str(folder))
    left, right = fabric.port("left"), fabric.port("right")
    left.send([udp(1, 1)])
    assert right.receive(timeout=10) == [udp(1, 1)]
    left.send([udp(1, 2), bytes(12) + b"\x99\x99" + bytes(46), udp(1, 3)])
    assert agent.process.wait(20) == -signal.SIGSEGV
    until(lambda: fabric.broker.vm("firewall").state == "away", "the broker knows that it is gone")
    assert {vm.state for vm in fabric.broker.show().vms if vm.name != "firewall"} == {"present"}
    fabric.agent("firewall", None, "--functions", str(folder))
    left.send([udp(1, 4)])
    assert right.receive(timeout=10)[-1] == udp(1, 4), "the frame that it died of is not given to the next one"
    rings = [ring for link in ("one", "two") for ring in fabric.quiet(link).rings]
    lost = sum(ring.drops_produced.get("restart", 0) + ring.drops_consumed.get("restart", 0) for ring in rings)
    assert lost == 5 - fabric.ring("two").delivered
    assert 1 <= lost <= 3


def test_a_prototype_in_python_counts_and_drops_as_its_option_says(
    fabric: Fabric, folder: Path, tmp_path: Path
) -> None:
    (folder / "sizes.py").write_text((EXAMPLES / "sizes.py").read_text())
    fabric.apply(using('name = "sizes"\noptions = { most = 500 }'))
    fabric.agent("firewall", None, "--functions", str(folder))
    left, right = fabric.port("left"), fabric.port("right")
    long = bytes(12) + b"\x88\xb5" + bytes(586)
    left.send([udp(1, 1), long, udp(1, 2)])
    assert right.receive(count=1, timeout=10) + right.receive(count=1, timeout=10) == [udp(1, 1), udp(1, 2)]
    counted = counters(fabric, "sizes")
    assert counted == {"up_to_127": 2, "up_to_511": 0, "up_to_1518": 1, "longer": 0, "too_long": 1, "raised": 0}
    assert any(ring.drops_consumed.get("policy") == 1 for ring in fabric.broker.link("one").rings)
    with streaming(left, right) as stream:
        for most in range(400, 410):
            assert apply(fabric, tmp_path, using(f'name = "sizes"\noptions = {{ most = {most} }}')) == (0, "")
            stream.pass_on(200)


RAISES = "class Function:\n    def __init__(self, start):\n        pass\n    def burst(self, packets):\n        1 / 0\n"


def test_a_prototype_that_raises_lets_nothing_pass_that_it_has_not_decided_over(fabric: Fabric, folder: Path) -> None:
    (folder / "raises.py").write_text(RAISES)
    fabric.apply(using('name = "raises"'))
    agent = fabric.agent("firewall", None, "--functions", str(folder))
    left, right = fabric.port("left"), fabric.port("right")
    left.send([udp(1, 1)])
    agent.await_line("ZeroDivisionError")
    assert right.receive(timeout=0.2) == []
    assert counters(fabric, "raises") == {"raised": 1}


def test_a_prototype_that_does_not_start_is_said_once_and_tried_again(fabric: Fabric, folder: Path) -> None:
    (folder / "raises.py").write_text("class Function:\n    def __init__(self, start):\n        1 / 0\n")
    fabric.apply(using('name = "raises"'))
    agent = fabric.agent("firewall", None, "--functions", str(folder))
    assert "its start returned NULL" in fabric.broker.vm("firewall").problem
    build(template(), folder / "mine.so")
    fabric.apply(using('name = "mine"'))
    agent.await_line("the stack runs again")
    agent.stop()
    assert agent.log.count("ZeroDivisionError") == 1


@pytest.mark.parametrize("text", ["1 / 0", "def half(", "COUNTERS = ()"])
def test_a_prototype_that_cannot_be_used_is_named(fabric: Fabric, folder: Path, text: str) -> None:
    (folder / "bad.py").write_text(text)
    fabric.apply(using('name = "bad"'))
    fabric.agent("firewall", None, "--functions", str(folder))
    assert "packet function 'bad': bad.py cannot be used (" in fabric.broker.vm("firewall").problem
