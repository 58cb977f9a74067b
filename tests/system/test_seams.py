"""What it takes to add a port kind, a carrier, a packet function or a control message: the places listed, and no other.

Each test adds a dummy to a copy of the package, in those places only, and runs a broker and an agent from the copy.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.agent.agent import HANDLERS
from ringway.broker.loop import Broker
from ringway.control.carriers import CARRIERS
from ringway.control.kinds import KINDS
from ringway.control.messages import PUSHED, TO_BROKER
from tests.support.broker_process import short_directory

ROOT = Path(__file__).resolve().parents[2]
FABRIC = """\
[vm.a]
@vm
[vm.a.port.p]
@kind
[vm.b.port.p]
kind = "local"
[link.wire]
ends = ["a.p", "b.p"]
"""

KIND = """\
from ringway.agent.runner import give_back


def run(port, terms):
    return DummyRunner(port, terms)


def tidy(_owner, _wanted):
    return []


class DummyRunner:
    def __init__(self, port, terms):
        self.ports, self.loops, self.problem = (port,), [], ""
        self._log = terms.log
        port.run_by_agent(True)
        self._log(f"dummy is {port.offer.settings.colour}")

    def takes(self, offer):
        self._log(f"dummy becomes {offer.settings.colour}")
        return True

    def try_again(self):
        pass

    def follow_peer(self, _now):
        return None

    def told(self, _port):
        return "a dummy"

    def when_full(self, _port):
        return "drop"

    def failed(self):
        return False

    def close(self):
        give_back(self.ports)
"""

BROKER_CARRIER = """\
from ringway.broker.carriers.fd import adopt, descriptor_count, descriptors, make_bells
from ringway.control.carriers import Dummy
from ringway.control.runtime import handover_path


def offer(runtime):
    return Dummy(door=str(handover_path(runtime)))
"""

AGENT_CARRIER = """\
from msgspec.structs import replace

from ringway.agent.carriers import fd
from ringway.control.carriers import Fd


def attach(vm, offer):
    return fd.attach(vm, replace(offer, carrier=Fd(offer.carrier.door)))
"""

FUNCTION = """\
#include "stack/function.h"

static const struct rway_option OPTIONS[] = {
    {.name = "by", .type = RWAY_OPTION_NUMBER, .least = 1, .most = 9, .usual = 1}};
static const char *const COUNTERS[] = {"counted"};

static void *start(const struct rway_function_start *start)
{
    rway_counter_add(start->counters, (uint64_t)start->options[0].number);
    return start->counters;
}

static void burst(void *state, struct rway_packet *const *packets, uint32_t count)
{
    (void)state, (void)packets, (void)count;
}

const struct rway_function rway_function_entry = {.version = RWAY_FUNCTION_VERSION,
                                                  .options = OPTIONS,
                                                  .option_count = 1,
                                                  .counters = COUNTERS,
                                                  .counter_count = 1,
                                                  .start = start,
                                                  .burst = burst};
"""
STACK = """\
[vm.fw.port.p]
kind = "local"
[vm.fw.port.q]
kind = "local"
[vm.fw.stack]
forward = [["p", "q"]]
default = "allow"
[[vm.fw.stack.function]]
name = "dummy"
options = { by = 7 }
[vm.a.port.p]
kind = "local"
[vm.b.port.p]
kind = "local"
[link.one]
ends = ["a.p", "fw.p"]
[link.two]
ends = ["fw.q", "b.p"]
"""

PING = """\
import sys
from pathlib import Path

from ringway.control.client import Client
from ringway.control.messages import Ping, Pong

with Client(Path(sys.argv[1])) as client:
    print(client.call(Ping("there?"), Pong).text)
"""


class Copy:
    """A copy of the package in which to make changes, and what runs from it."""

    def __init__(self, place: Path) -> None:
        self.root = place / "ringway"
        self.runtime = place / "run"
        self._environment = {**os.environ, "PYTHONPATH": str(place), "RINGWAY_RUNTIME": str(self.runtime)}
        self._processes: list[subprocess.Popen[str]] = []
        for folder in ("shm", "engine", "stack", "vhost", "control", "broker", "agent", "cli"):
            if (ROOT / folder).is_dir():
                shutil.copytree(ROOT / folder, self.root / folder, ignore=shutil.ignore_patterns("__pycache__"))

    def edit(self, path: str, old: str, new: str) -> None:
        text = (self.root / path).read_text()
        assert text.count(old) == 1, f"{path}: {old!r}"
        (self.root / path).write_text(text.replace(old, new))

    def add(self, path: str, text: str) -> None:
        assert not (self.root / path).exists()
        (self.root / path).write_text(text)

    def changed(self) -> set[str]:
        """The files that are not as they are in the package."""
        files = (path.relative_to(self.root) for path in self.root.rglob("*") if path.suffix in (".py", ".c", ".h"))
        return {
            str(path)
            for path in files
            if not (ROOT / path).exists() or (ROOT / path).read_bytes() != (self.root / path).read_bytes()
        }

    def python(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            env=self._environment,
            cwd=self.runtime.parent,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ringway(self, *arguments: str) -> str:
        return self.python("from ringway.cli.main import main; main()", *arguments)

    def apply(self, text: str) -> str:
        (self.runtime.parent / "fabric.toml").write_text(text)
        return self.ringway("apply", "fabric.toml")

    def show(self) -> dict[str, list[dict[str, object]]]:
        shown: dict[str, list[dict[str, object]]] = json.loads(self.ringway("show", "--json"))
        return shown

    def start(self, *arguments: str) -> Iterator[str]:
        """A process that goes on; what it says, line by line, for as long as it lives."""
        process = subprocess.Popen(
            [sys.executable, "-c", "from ringway.cli.main import main; main()", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment,
            cwd=self.runtime.parent,
        )
        self._processes.append(process)
        assert process.stdout is not None
        return iter(process.stdout.readline, "")

    def close(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            threading.Thread(target=process.communicate, daemon=True).start()
            process.wait(30)


@pytest.fixture
def copy() -> Iterator[Copy]:
    with short_directory() as place:
        made = Copy(place)
        try:
            yield made
        finally:
            made.close()


def awaited(lines: Iterator[str], wanted: str) -> None:
    seen = []
    for line in lines:
        seen.append(line)
        if wanted in line:
            return
    raise AssertionError(f"{wanted!r} was not said: {seen}")


def test_a_port_kind_is_its_type_and_a_file_of_the_agent(copy: Copy) -> None:
    kinds = "Settings = Tap | Local | Vhost"
    dummy = 'class Dummy(Kind, frozen=True):\n    colour: str = "red"\n    delay_ms: int = 0\n\n\n'
    copy.edit("control/kinds.py", kinds, f"{dummy}{kinds} | Dummy")
    copy.add("agent/kinds/dummy.py", KIND)
    assert copy.changed() == {"control/kinds.py", "agent/kinds/dummy.py"}

    fabric = FABRIC.replace("@vm", "").replace("@kind", 'kind = "dummy"\ncolour = "blue"\ndelay = 0.5')
    awaited(copy.start("broker"), "broker ready")
    copy.apply(fabric)
    agent = copy.start("agent", "--vm", "a")
    awaited(agent, "dummy is blue")
    awaited(agent, "ready")
    shown = copy.show()
    told = {"port": "p", "link": "wire", "state": "attached", "cause": "a dummy", "full": "drop"}
    assert shown["vms"][0]["ports"] == [told]
    (link,) = shown["links"]
    ends = link["ends"]
    assert isinstance(ends, list)
    assert ends[0]["settings"] == {"kind": "dummy", "colour": "blue", "delay_ms": 500}
    assert "kept: wire" in copy.apply(fabric.replace("blue", "green"))
    awaited(agent, "dummy becomes green")
    assert copy.show()["links"][0]["link_id"] == link["link_id"]


def test_a_carrier_is_its_type_and_a_file_on_each_side(copy: Copy) -> None:
    carriers = "Carriers = Fd\n"
    copy.edit(
        "control/carriers.py",
        carriers,
        f"class Dummy(Carrier, frozen=True):\n    door: str\n\n\n{carriers[:-1]} | Dummy\n",
    )
    copy.add("broker/carriers/dummy.py", BROKER_CARRIER)
    copy.add("agent/carriers/dummy.py", AGENT_CARRIER)
    assert copy.changed() == {"control/carriers.py", "broker/carriers/dummy.py", "agent/carriers/dummy.py"}

    fabric = FABRIC.replace("@vm", 'carrier = "dummy"').replace("@kind", 'kind = "local"')
    awaited(copy.start("broker"), "broker ready")
    copy.apply(fabric)
    agents = [copy.start("agent", "--vm", vm) for vm in "ab"]
    for agent in agents:
        awaited(agent, "ready")
    (link,) = copy.show()["links"]
    assert link["state"] == "up", "an end by either carrier"
    assert "replaced: wire" in copy.apply(fabric.replace('carrier = "dummy"', ""))


def test_a_packet_function_is_a_c_file_of_its_own(copy: Copy) -> None:
    folder = copy.root.parent / "functions"
    folder.mkdir(mode=0o755)
    (folder / "dummy.c").write_text(FUNCTION)
    includes = f"-I{copy.ringway('headers').strip()}"
    command = ["cc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", includes, "-o", "dummy.so", "dummy.c"]
    subprocess.run(command, cwd=folder, check=True)
    assert copy.changed() == set()

    awaited(copy.start("broker"), "broker ready")
    copy.apply(STACK)
    awaited(copy.start("agent", "--vm", "fw", "--functions", str(folder)), "ready")
    shown = next(vm for vm in copy.show()["vms"] if vm["name"] == "fw")
    assert "'name': 'dummy', 'counters': {'counted': 7}" in str(shown["functions"])


def test_a_control_message_is_its_type_and_its_handler(copy: Copy) -> None:
    messages = "class Show(Message):\n"
    types = "class Ping(Message):\n    text: Word\n\n\nclass Pong(Message):\n    text: Word\n\n\n"
    copy.edit("control/messages.py", messages, types + messages)
    copy.edit("control/messages.py", "(Hello, Notice,", "(Ping, Hello, Notice,")
    copy.edit("control/messages.py", "(Welcome, Applied,", "(Pong, Welcome, Applied,")
    handler = "            Show: self._on_show,\n"
    answer = "lambda _, request_id, ping: self._answer(request_id, Pong(f'yes, {ping.text}'))"
    copy.edit("broker/loop.py", handler, f"{handler}            Ping: {answer},\n")
    copy.edit("broker/loop.py", "    Notice,\n", "    Notice,\n    Ping,\n    Pong,\n")
    assert copy.changed() == {"control/messages.py", "broker/loop.py"}

    awaited(copy.start("broker"), "broker ready")
    assert copy.python(PING, str(copy.runtime)) == "yes, there?\n"


def test_what_is_listed_has_its_files_and_its_handlers() -> None:
    for kind in KINDS:
        assert (ROOT / "agent" / "kinds" / f"{kind}.py").is_file()
    for carrier in CARRIERS:
        assert (ROOT / "agent" / "carriers" / f"{carrier}.py").is_file()
        assert (ROOT / "broker" / "carriers" / f"{carrier}.py").is_file()
    with short_directory() as place, Broker(place / "run", lambda _: None) as loop:
        assert {*loop.requests, *loop.words} == set(TO_BROKER)
    assert set(HANDLERS) == set(PUSHED)
