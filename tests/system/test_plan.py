"""`ringway plan` says beforehand what `ringway apply` then does, whatever the change, and what stays loses nothing."""

from __future__ import annotations

import contextlib
import itertools
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from ringway.agent import Port
from ringway.control.client import Client
from ringway.control.errors import ControlError
from ringway.control.messages import Applied, Apply, Cause, LinkShown, Planned, PlanRequest, Shown
from tests.support.broker_process import BrokerProcess, run_ringway, short_directory
from tests.support.fabric import Fabric
from tests.support.numbered_stream import HEADER
from tests.support.restarts import ends_of, link_ids
from tests.support.waiting import until

PORTS = 3  # of each of the VMs a and b; link number n begins at a's port number n
FLIGHT_MAX = 40  # frames, of rings with 64 slots at least
EXAMPLES, EXAMPLES_FULL = 3, 100  # with STEPS in each; --full draws others every time
STEPS = 14
ZMQ_MAY_CLOSE = 4  # descriptors of clients before, at any time


@dataclass(frozen=True)
class Link:
    target: int  # number of b's port
    queues: int = 1
    slots: int = 64


@dataclass(frozen=True)
class Shape:
    """A fabric: links by number, and what VM c's stack does with what no rule is about."""

    links: dict[int, Link] = field(default_factory=dict)
    stack: str | None = None

    def text(self) -> str:
        ports = [f'[vm.{vm}.port.p{n}]\nkind = "local"' for vm in "abc" for n in range(PORTS)]
        links = [
            f'[link.l{n}]\nends = ["a.p{n}", "b.p{link.target}"]\nqueues = {link.queues}\nslots = {link.slots}'
            for n, link in self.links.items()
        ]
        stack = [f'[vm.c.stack]\nforward = [["p0", "p1"]]\ndefault = "{self.stack}"'] if self.stack else []
        return "\n".join([*ports, *stack, *links])


def shape_of(targets: Sequence[int], links: Sequence[tuple[int, int] | None], stack: str | None) -> Shape:
    chosen = {n: Link(targets[n], *geometry) for n, geometry in enumerate(links) if geometry is not None}
    return Shape(chosen, stack)


GEOMETRIES = st.tuples(st.sampled_from((1, 2)), st.sampled_from((64, 128)))
SHAPES = st.builds(
    shape_of,
    st.permutations(range(PORTS)),
    st.lists(st.none() | GEOMETRIES, min_size=PORTS, max_size=PORTS),
    st.sampled_from((None, "allow", "deny")),
)
NUMBERS = st.integers(0, PORTS - 1)


def whole(shown: Shown) -> list[tuple[LinkShown, list[int]]]:
    """The links with what is in them, and not how often somebody slept at them."""
    return [(msgspec.structs.replace(link, rings=[]), [ring.in_flight for ring in link.rings]) for link in shown.links]


@contextlib.contextmanager
def room_for(pid: int, count: int) -> Iterator[None]:
    """That process may open so many more descriptors, and no others."""
    taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    unused = (number for number in itertools.count() if number not in taken)
    lowest_refused = next(itertools.islice(unused, count, None))
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_refused, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


class FabricsThatChange(RuleBasedStateMachine):
    """`shape` is the fabric as it should be, `flight` the frames that are in each link's ring from a to b."""

    def __init__(self) -> None:
        super().__init__()
        self.ending = contextlib.ExitStack()
        runtime = self.ending.enter_context(short_directory()) / "run"
        self.broker = self.ending.enter_context(BrokerProcess(runtime))
        fabric = self.ending.enter_context(contextlib.closing(Fabric(self.broker)))
        self.shape = Shape()
        self.flight: dict[int, list[bytes]] = {}
        self.number = 0
        self.broker.apply(self.shape.text())
        self.agents = {vm: fabric.local(vm) for vm in "abc"}

    def teardown(self) -> None:
        try:
            for number in self.shape.links:
                self.receive(number)
        finally:
            self.ending.close()

    def port(self, vm: str, number: int) -> Port:
        return self.agents[vm].port(f"p{number}")

    @rule(number=NUMBERS, count=st.integers(1, FLIGHT_MAX))
    def send(self, number: int, count: int) -> None:
        if number not in self.shape.links:
            return
        count = min(count, FLIGHT_MAX - len(self.flight[number]))
        frames = [HEADER + (self.number + n).to_bytes(46, "big") for n in range(count)]
        self.number += count
        if frames:
            assert self.port("a", number).send(frames, timeout=20) == count
        self.flight[number] += frames

    @rule(number=NUMBERS)
    def receive(self, number: int) -> None:
        """All that was sent since the link was made, through whatever has happened since."""
        if number not in self.shape.links:
            return
        port = self.port("b", self.shape.links[number].target)
        expected, self.flight[number] = self.flight[number], []
        found: list[bytes] = []
        while len(found) < len(expected) and (more := port.receive(timeout=20)):
            found += more
        assert found == expected
        assert port.receive(timeout=0) == []

    @rule(shape=SHAPES)
    def change(self, shape: Shape) -> None:
        before = self.broker.show()
        planned = self.plan(shape)
        assert whole(self.broker.show()) == whole(before)
        self.check(planned, shape)
        applied = self.broker.apply(shape.text())
        after = self.broker.show()  # answered when the agents have done what they were told
        replaced = [link.link for link in planned.replaced]
        assert (applied.made, applied.removed) == (planned.made, planned.removed)
        assert (applied.replaced, applied.kept) == (replaced, planned.kept)
        assert planned.memory == sum(link.memory for link in after.links) - sum(link.memory for link in before.links)
        assert {name: link_ids(before)[name] for name in planned.kept}.items() <= link_ids(after).items()
        assert all(link_ids(before)[name] != link_ids(after)[name] for name in replaced)
        kept = {int(name[1:]) for name in planned.kept}
        self.flight = {n: self.flight[n] if n in kept else [] for n in shape.links}
        self.shape = shape
        self.await_links()

    def plan(self, shape: Shape) -> Planned:
        with Client(self.broker.runtime) as client:
            return client.call(PlanRequest(name="fabric.toml", text=shape.text()), Planned, timeout=20)

    def check(self, planned: Planned, shape: Shape) -> None:
        """It says what anybody would who compares the two fabrics."""
        old, new = self.shape.links, shape.links
        assert set(planned.made) == {f"l{n}" for n in new.keys() - old.keys()}
        assert set(planned.removed) == {f"l{n}" for n in old.keys() - new.keys()}
        assert set(planned.kept) == {f"l{n}" for n in new.keys() & old.keys() if new[n] == old[n]}
        assert {link.link: link.in_flight for link in planned.replaced} == {
            f"l{n}": len(self.flight[n]) for n in new.keys() & old.keys() if new[n] != old[n]
        }
        assert planned.stacks == (["c"] if shape.stack != self.shape.stack else [])

    def await_links(self) -> None:
        def are_up() -> bool:
            shown = self.broker.show()
            states = {link.state for link in shown.links} | {vm.state for vm in shown.vms}
            return states <= {"up", "present"}

        until(are_up, "all agents have said hello, and all links are up")

    @rule()
    def kill_broker(self) -> None:
        before = ends_of(self.broker.show())
        self.broker.restart()
        self.await_links()
        assert ends_of(self.broker.show()) == before

    @precondition(lambda self: len(self.shape.links) < PORTS)
    @rule(geometry=GEOMETRIES, share=st.floats(0, 1))
    def fail_for_lack_of_descriptors(self, geometry: tuple[int, int], share: float) -> None:
        """In the middle: some links may have been made by then, and at the end it may be the journal that fails."""
        left = [n for n in range(PORTS) if n not in {link.target for link in self.shape.links.values()}]
        missing = [n for n in range(PORTS) if n not in self.shape.links]
        more = {n: Link(target, *geometry) for n, target in zip(missing, left, strict=True)}
        wanted = Shape({**self.shape.links, **more}, self.shape.stack)
        before = self.broker.show()
        with Client(self.broker.runtime) as client:
            client.call(PlanRequest(name="fabric.toml", text=wanted.text()), Planned)  # it is connected by now
            needed = len(more) * (1 + 8 * geometry[0])
            with (
                room_for(self.broker.process.pid, int(share * (needed - ZMQ_MAY_CLOSE))),
                pytest.raises(ControlError) as caught,
            ):
                client.call(Apply(name="fabric.toml", text=wanted.text()), Applied, timeout=20)
        assert caught.value.cause is Cause.SYSTEM
        assert whole(self.broker.show()) == whole(before)

    @rule(shape=SHAPES)
    def fail_beyond_limits(self, shape: Shape) -> None:
        before = self.broker.show()
        text = shape.text() + '\n[vm.c.port.x]\nkind = "local"\n[link.x]\nends = ["c.p2", "c.x"]\nslots = 65\n'
        for ask in (Apply, PlanRequest):
            with Client(self.broker.runtime) as client, pytest.raises(ControlError) as caught:
                client.call(ask(name="fabric.toml", text=text), Applied, timeout=20)
            assert caught.value.cause is Cause.BAD_FABRIC
        assert whole(self.broker.show()) == whole(before)


@pytest.mark.timeout(3600)  # with --full
def test_a_plan_comes_true_whatever_the_change_and_who_is_killed(pytestconfig: pytest.Config) -> None:
    full = pytestconfig.getoption("--full")
    run_state_machine_as_test(
        FabricsThatChange,
        settings=settings(
            deadline=None,
            max_examples=EXAMPLES_FULL if full else EXAMPLES,
            stateful_step_count=STEPS,
            derandomize=not full,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


ONE = Shape({0: Link(0)})
CHANGES = {
    "nothing": (ONE, ["kept: 1 links, which lose nothing", "memory: +0.0 MiB"], "kept: l0"),
    "one more": (
        Shape({0: Link(0), 1: Link(1)}),
        ["made: l1", "kept: 1 links, which lose nothing", "memory: +0.3 MiB"],
        "made: l1\nkept: l0",
    ),
    "one less": (
        Shape(),
        ["removed: l0", "kept: 0 links, which lose nothing", "memory: -0.3 MiB"],
        "removed: l0",
    ),
    "other geometry": (
        Shape({0: Link(0, queues=2, slots=128)}),
        [
            "replaced: l0 (queues 1 → 2, slot_count 64 → 128): the frames in its rings are lost, 5 at the moment",
            "kept: 0 links, which lose nothing",
            "memory: +0.8 MiB",
        ],
        "replaced: l0",
    ),
    "other ends": (
        Shape({0: Link(1)}),
        [
            "replaced: l0 (it joins other ports): the frames in its rings are lost, 5 at the moment",
            "kept: 0 links, which lose nothing",
            "memory: +0.0 MiB",
        ],
        "replaced: l0",
    ),
    "other rules": (
        Shape({0: Link(0)}, "deny"),
        ["stack of c: changed, no frame is lost by it", "kept: 1 links, which lose nothing", "memory: +0.0 MiB"],
        "kept: l0",
    ),
}


def test_the_command_line_prints_a_plan_for_each_kind_of_change_and_apply_does_it(fabric: Fabric) -> None:
    broker = fabric.broker
    broker.apply(ONE.text())
    sender = fabric.local("a")
    fabric.local("b")
    file = fabric.runtime.parent / "fabric.toml"
    for shape, planned, applied in CHANGES.values():
        broker.apply(ONE.text())
        broker.show()
        sender.port("p0").send_or_drop([HEADER + bytes(46)] * (5 - fabric.ring("l0").in_flight))
        file.write_text(shape.text(), encoding="utf-8")
        told = run_ringway("plan", str(file), "--runtime", str(fabric.runtime))
        assert told.stdout.splitlines() == planned
        assert link_ids(broker.show()).keys() == {"l0"}
        done = run_ringway("apply", str(file), "--runtime", str(fabric.runtime)).stdout
        assert done.partition("\nnote: ")[0].rstrip() == applied


def test_a_plan_of_a_fabric_that_is_none_names_its_line_and_a_plan_without_a_broker_says_so(fabric: Fabric) -> None:
    file = fabric.runtime.parent / "fabric.toml"
    file.write_text("[vm.a]\n[vm.a]\n", encoding="utf-8")
    for runtime, words in ((fabric.runtime, "fabric.toml"), (fabric.runtime / "none", "no broker answers")):
        refused = run_ringway("plan", str(file), "--runtime", str(runtime))
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("ringway: ")
        assert words in refused.stderr
