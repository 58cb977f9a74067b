"""How long links take to come up: from an apply until a frame of one end has arrived at the other, beside a veth pair.

The broker is a process of its own, and so is the agent of each VM with an application on its local ports. One link is
added to a fabric and removed again, and 256 are made at once. What they allocate is compared with what is said of it.
Then the broker is killed, and another has to take over the 256.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from bench.fabric import Fabric, start
from bench.form import BenchError, Report, Row, less_is_better
from ringway.control.client import Client
from ringway.control.messages import Applied, Apply, Show, Shown

OTHERS = (1, 64)  # links that are there when one is added
ADDED_LIMIT_MS = 10.0
SIDE = 16  # each of so many VMs has a link with each of so many others
ALL_LIMIT_S = 3.0
ADOPTED_LIMIT_MS = 500.0
APPLY_TIMEOUT_S = 60.0
LINK_MEMORY = re.compile(r"/memfd:ringway( \(deleted\))?")


class _Worker:
    """A process that answers lines with lines; ends with its input."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self._name = name
        self._process = start(f"control-{name}", command, "ready", stdin=subprocess.PIPE)

    def ask(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        return line.strip()

    def _ended(self) -> BenchError:
        return BenchError(f"{self._name} has ended; see build/bench/control-{self._name}.log")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Links:
    """A fabric whose agents run, and whose links come and go. `links`: by name, "vm.port" of sender and receiver."""

    def __init__(self, links: dict[str, tuple[str, str]], options: str, stay: Iterable[str] = ()) -> None:
        self._links = links
        self._options = options
        self._stay = frozenset(stay)
        self._stack = contextlib.ExitStack()
        self._senders: dict[str, _Worker] = {}
        self._receivers: dict[str, _Worker] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._fabric = stack.enter_context(Fabric(self._text(self._stay)))
            for workers, end, option in ((self._senders, 0, []), (self._receivers, 1, ["--receive"])):
                for vm in dict.fromkeys(ends[end].partition(".")[0] for ends in self._links.values()):
                    command = [sys.executable, "-m", "bench.arrival", f"--runtime={self._fabric.runtime}", f"--vm={vm}"]
                    workers[vm] = stack.enter_context(_Worker(vm, [*command, *option]))
            if self._stay:
                self._expect(self._stay)
                self._arrived()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _text(self, there: Iterable[str]) -> str:
        """All ports, and those links."""
        ports = [f'[vm.{end.replace(".", ".port.")}]\nkind = "local"' for ends in self._links.values() for end in ends]
        chosen = frozenset(there)
        links = [
            f'[link.{name}]\nends = ["{ends[0]}", "{ends[1]}"]\n{self._options}'
            for name, ends in self._links.items()
            if name in chosen
        ]
        return "\n".join([*ports, *links])

    def _expect(self, links: Iterable[str]) -> None:
        """Tell the applications on which ports to exchange a first frame; returns when they wait for it."""
        chosen = frozenset(links)
        for end, workers in enumerate((self._senders, self._receivers)):
            ports: dict[str, list[str]] = {vm: [] for vm in workers}
            for name in (name for name in self._links if name in chosen):
                vm, _, port = self._links[name][end].partition(".")
                ports[vm].append(port)
            for vm, worker in workers.items():
                worker.ask(" ".join(ports[vm]))
            for worker in workers.values():
                worker.answer()

    def _arrived(self) -> int:
        """When the last first frame has come, in ns."""
        for worker in self._senders.values():
            worker.answer()
        return max(int(worker.answer()) for worker in self._receivers.values())

    def bring_up(self) -> tuple[float, float]:
        """Apply the rest of the links: seconds until all are up, and until the broker has answered."""
        coming = self._links.keys() - self._stay
        text = self._text(self._links)
        self._expect(coming)
        begun = time.monotonic_ns()
        with Client(self._fabric.runtime) as client:  # as `ringway apply` does
            applied = client.call(Apply(name="bench", text=text), Applied, timeout=APPLY_TIMEOUT_S)
            answered = time.monotonic_ns()
        if set(applied.made) != coming:
            raise BenchError(f"{len(coming)} links were to be made, and {len(applied.made)} were; see build/bench/")
        return (self._arrived() - begun) / 1e9, (answered - begun) / 1e9

    def adopt(self) -> float:
        """Kill the broker and start another: seconds from its exec to its first answer, which has to name all links.

        It answers a Show at once if no agent has said hello yet, and else when it has heard those that have.
        """
        self._fabric.kill_broker()
        begun = time.monotonic_ns()
        self._fabric.start_broker()
        with Client(self._fabric.runtime) as client:
            shown = client.call(Show(), Shown, timeout=APPLY_TIMEOUT_S)
        taken = time.monotonic_ns() - begun
        if [link.state for link in shown.links] != ["up"] * len(self._links):
            raise BenchError(f"{len(self._links)} links were to be adopted, and not all are up; see build/bench/")
        return taken / 1e9

    def take_down(self) -> None:
        """Remove them again; returns when no agent has any of them."""
        with Client(self._fabric.runtime) as client:
            client.call(Apply(name="bench", text=self._text(self._stay)), Applied, timeout=APPLY_TIMEOUT_S)
            while not self._has_let_go(client.call(Show(), Shown, timeout=APPLY_TIMEOUT_S)):
                pass  # an agent that was busy for a second did not say

    def _has_let_go(self, shown: Shown) -> bool:
        there = sum(len(vm.ports) for vm in shown.vms)
        return all(vm.state == "present" for vm in shown.vms) and there == 2 * len(self._stay)

    def memory(self) -> tuple[int, int]:
        """Bytes of all links: allocated by the kernel, and as `ringway show` says."""
        with Client(self._fabric.runtime) as client:
            shown = client.call(Show(), Shown, timeout=APPLY_TIMEOUT_S)
        return sum(_allocated(self._fabric.broker_pid).values()), sum(link.memory for link in shown.links)


def _allocated(pid: int) -> dict[int, int]:
    """By inode, bytes of the links' memory that a process has open."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if LINK_MEMORY.fullmatch(str(entry.readlink())):
                status = entry.stat()
                found[status.st_ino] = status.st_blocks * 512
    return found


@contextlib.contextmanager
def _veth() -> Iterator[_Worker]:
    own = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    try:
        worker = _Worker("veth", [*own, sys.executable, "-m", "bench.veth"])
    except (BenchError, FileNotFoundError) as error:
        message = f"a network namespace for the veth pair cannot be made ({error}): start it as root"
        raise BenchError(message) from None
    with worker:
        yield worker


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


def _ends(name: str) -> tuple[str, str]:
    return f"left.{name}", f"right.{name}"


def _one_more(others: int, veth: _Worker, windows: int, turns: int) -> list[Row]:
    """A link of the default geometry added to `others` links between the same two VMs."""
    stay = [f"other-{number}" for number in range(others)]
    ours: list[list[float]] = []
    kernel: list[list[float]] = []
    answered: list[float] = []
    with _Links({name: _ends(name) for name in (*stay, "added")}, "", stay) as links:
        for _ in range(windows):
            ours.append([])
            for _ in range(turns):
                up, answer = links.bring_up()
                ours[-1].append(up * 1e3)
                answered.append(answer * 1e3)
                links.take_down()
            veth.ask(str(turns))
            kernel.append([int(taken) / 1e6 for taken in veth.answer().split()])
        links.bring_up()
        memory = links.memory()
    case = f"one link more, beside {others}"
    note = f"windows of {turns}; the apply was answered after {_percentile(answered, 0.5):.1f} ms"
    rows = [_memory_row(f"memory of {others + 1} links, default size", *memory)]
    for label, share in (("p99", 0.99), ("p50", 0.5)):
        mine, theirs = ([_percentile(one, share) for one in each] for each in (ours, kernel))
        rows.insert(0, less_is_better(f"{case}, {label}", "ms", mine, theirs, "veth", note))
    halves = [_percentile(one, 0.5) for one in ours]
    rows.insert(0, less_is_better(f"{case}, p50", "ms", halves, [ADDED_LIMIT_MS] * windows, "limit", note))
    return rows


def _memory_row(case: str, allocated: int, said: int) -> Row:
    note = "st_blocks of the broker's descriptors; the peer is what `ringway show` says, and the ratio is to be 1"
    return less_is_better(case, "MiB", [allocated / (1 << 20)], [said / (1 << 20)], "show", note)


def _all_at_once(windows: int) -> list[Row]:
    pairs = [(a, b) for a in range(SIDE) for b in range(SIDE)]
    links = {f"link-{a}-{b}": (f"a{a}.to-b{b}", f"b{b}.to-a{a}") for a, b in pairs}
    up: list[float] = []
    answered: list[float] = []
    with _Links(links, "slots = 64") as fabric:
        while True:
            taken, answer = fabric.bring_up()
            up.append(taken)
            answered.append(answer)
            if len(up) == windows:
                break
            fabric.take_down()
        memory = fabric.memory()
    case = f"{len(links)} links of 64 slots at once"
    note = (
        f"each of {SIDE} VMs with each of {SIDE} others, {2 * SIDE} agents; "
        f"the apply was answered after {_percentile(answered, 0.5):.2f} s"
    )
    limits = [ALL_LIMIT_S] * windows
    return [
        less_is_better(case, "s", up, limits, "limit", note),
        _memory_row(f"memory of {len(links)} links of 64 slots", *memory),
    ]


def _adopted(windows: int) -> Row:
    """From the exec of another broker to its first answer, in which all links are up."""
    pairs = [(a, b) for a in range(SIDE) for b in range(SIDE)]
    links = {f"link-{a}-{b}": (f"a{a}.to-b{b}", f"b{b}.to-a{a}") for a, b in pairs}
    with _Links(links, "slots = 64") as fabric:
        fabric.bring_up()
        taken = [fabric.adopt() * 1e3 for _ in range(windows)]
    note = f"all {2 * len(links)} ends held by {2 * SIDE} agents; from its exec to its first answer to a Show"
    case = f"a new broker has adopted {len(links)} links"
    return less_is_better(case, "ms", taken, [ADOPTED_LIMIT_MS] * windows, "limit", note)


def run(quick: bool) -> Report:
    windows, turns = (2, 10) if quick else (5, 100)
    with _veth() as veth:
        rows = [row for others in OTHERS for row in _one_more(others, veth, windows, turns)]
    return Report("control", [*rows, *_all_at_once(1 if quick else 5), _adopted(2 if quick else 20)])
