"""A soak: steps of a seed until there were kills enough, and the books at its quiet points."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from ringway.control.errors import ControlError
from ringway.control.registry import read_registry
from ringway.shm import RegionError, RegionSnapshot
from tools.soak.application import received_path, sent_path
from tools.soak.books import (
    HEARD,
    RECEIVERS,
    SENDERS,
    WAYS,
    Statement,
    discrepancies,
    held_between,
    nothing,
    state,
)
from tools.soak.census import Possessions, descriptors, entries_of, is_stopped
from tools.soak.draw import Step, draw_setup, draw_steps
from tools.soak.ledger import Received, Sent
from tools.soak.stage import SoakError, Stage, end_by_pid
from tools.soak.wire import INTERFACE

_LOG_LINES = {"broker": 200}
_LOG_LINES_OF_OTHERS = 12
_CATCHES = 300  # how often a forwarder is stopped, at most, to find it between its two rings
_KEEPER_AGAIN = "has everything again"


class Soak:
    """`say` takes a line of progress. Use `run` once."""

    def __init__(self, seed: int, tap: bool, kills: int, say: Callable[[str], None]) -> None:
        self._seed = seed
        self._most = kills
        self._say = say
        self._setup = draw_setup(seed, tap)
        self._rows = 2 * kills + 16  # incarnations of one application: it may be killed twice in a step
        self._killed = Counter[str]()  # since the last quiet point
        self.kills = 0
        self.frames = 0
        self.restarts = 0
        self._usual_start = 0.2  # seconds
        self._step = "at the start"
        self._statement = nothing(self._setup)  # the books at the last quiet point

    def run(self, seconds: float | None = None) -> None:
        """SoakError with seed, step and state; everything is ended then, too."""
        with _folder() as folder:
            self._stage = Stage(self._setup, folder, self._rows)
            self._sent = {at: Sent(sent_path(folder, at), self._rows) for at in self._setup.directions}
            self._received = {
                (at, vm): Received(received_path(folder, at, vm), self._rows)
                for at, vm in HEARD
                if at in self._setup.directions
            }
            try:
                self._start()
                self._steps(seconds)
                self._step = "at the end"
                self._stage.stop()
                self._check_nothing_left()
            except (SoakError, ControlError, RegionError, OSError) as error:
                raise SoakError(f"{error}\n{self._state()}") from error
            finally:
                self._stage.close()

    def _check_nothing_left(self) -> None:
        """What a fabric has outside its processes: a name in shared memory, sockets, and the tap."""
        left = [*entries_of(self._stage.runtime), *(path.name for path in self._stage.runtime.glob("*.sock"))]
        if Path(f"/sys/class/net/{INTERFACE}").exists() and self._setup.tap:
            left.append(INTERFACE)
        if left:
            raise SoakError(f"left behind: {', '.join(left)}")

    def _start(self) -> None:
        stage = self._stage
        self._say(f"seed {self._seed}: {self._setup}")
        stage.runtime.mkdir(mode=0o700)
        stage.start("broker")
        stage.show()
        stage.apply()
        stage.open_regions()
        fabrics = [fabric.fabric_id for fabric in read_registry().fabrics if fabric.runtime == str(stage.runtime)]
        if len(fabrics) != 1:
            raise SoakError(f"the host's registry has these fabrics of the soak's, and one was expected: {fabrics}")
        self._link_ids = {link.name: link.link_id for link in stage.show().links}
        stage.pace = "fast"
        started = time.monotonic()
        for name in stage.names:
            if name != "broker":
                stage.start(name)
        stage.set_pace("fast")
        self._await_flow()
        self._usual_start = time.monotonic() - started
        self._statement = self._quiet_statement()
        self._base = self._settled_possessions()
        stage.set_pace("fast")

    def _settled_possessions(self) -> dict[str, Possessions]:
        """Once nobody closes anything any more that was only there for the start."""
        found = [self._stage.possessions()]

        def settled() -> bool:
            self._stage.rest(0.1)
            found.append(self._stage.possessions())
            return not any(found[-1][name].more_than(before) for name, before in found[-2].items())

        self._stage.until(settled, "descriptors and threads stay the same")
        return found[-1]

    def _steps(self, seconds: float | None) -> None:
        end = None if seconds is None else time.monotonic() + seconds
        for step in draw_steps(self._seed, self._setup.tap):
            self._step = str(step)
            self._do(step)
            last = self.kills >= self._most or (end is not None and time.monotonic() > end)
            if step.quiet or last:
                self._quiet_point()
            if last:
                return

    # -- one step

    def _do(self, step: Step) -> None:
        stage = self._stage
        stage.set_pace(step.pace)
        if step.moment == "death":
            assert step.death is not None
            stage.tell_death(step.victims[0], step.death)
            stage.await_death(step.victims[0])
            self._count(step.victims[0])
        else:
            self._await_moment(step)
            if step.fault == "pause":
                self._pause(step)
                return
            for name in step.victims:
                self._kill(name)
        self._away(step)
        started = time.monotonic()
        for part in step.attempts:
            self._start_all(step)
            stage.rest(part * self._usual_start)
            for name in step.victims:
                self._kill(name)
            self._away(step)
        self._start_all(step)
        self._return()
        if not step.attempts and "broker" not in step.victims:
            self._usual_start = min(1.0, time.monotonic() - started)

    def _await_moment(self, step: Step) -> None:
        if step.moment == "time":
            self._stage.rest(step.after)
        elif step.moment == "between":
            self._stop_between(step.victims[0])
        elif step.moment == "frames":
            wanted = self._published(step.direction) + int(step.after)
            if step.pace == "slow":
                wanted = self._published(step.direction) + int(step.after) % 20 + 1
            self._stage.until(lambda: self._published(step.direction) >= wanted, "frames go on")

    def _stop_between(self, forwarder: str) -> None:
        """Stop it where it has released frames and not yet published them, if it can be caught there."""
        stage = self._stage
        for _ in range(_CATCHES):
            stage.signal(forwarder, signal.SIGSTOP)
            stage.until(lambda: is_stopped(stage.pid(forwarder)), f"{forwarder} stands still")
            if any(held_between(forwarder, stage.regions())):
                return
            stage.signal(forwarder, signal.SIGCONT)
            stage.rest(0.001)

    def _published(self, direction: int) -> int:
        link, side = WAYS[direction][-1]
        rings = self._stage.regions()[link].rings
        return sum(ring.produced.frames for ring in rings if ring.producing_side == side)

    def _count(self, name: str) -> None:
        self._killed[name] += 1
        self.kills += 1

    def _kill(self, name: str) -> None:
        if name == "keeper":
            self._kill_keeper()
        else:
            self._stage.kill(name)
        self._count(name)

    def _kill_keeper(self) -> None:
        """The broker is left alone until another keeper has everything: with both, the memory's descriptors go."""
        before = self._stage.log("broker").read_text().count(_KEEPER_AGAIN)
        pid = self._stage.keeper_pid()
        if pid is None:
            raise SoakError("there is no keeper")
        end_by_pid(pid)
        log = self._stage.log("broker")
        self._stage.until(lambda: log.read_text().count(_KEEPER_AGAIN) > before, "another keeper has everything")

    def _pause(self, step: Step) -> None:
        for name in step.victims:
            self._stage.signal(name, signal.SIGSTOP)
        self._away(step)
        for name in step.victims:
            self._stage.signal(name, signal.SIGCONT)
        self._return()

    def _return(self) -> None:
        """Everybody is there again: frames flow, without any further help."""
        if self._stage.pace == "stopped":
            self._stage.set_pace("slow")
        self._await_flow()

    def _away(self, step: Step) -> None:
        """Meanwhile the others go on, as far as they need none of those."""
        self._stage.rest(step.away)
        if step.pace != "stopped":
            self._await_flow(without=step.victims)

    def _start_all(self, step: Step) -> None:
        for name in step.victims:
            if name != "keeper":
                self._stage.start(name)

    def _await_flow(self, without: tuple[str, ...] = ()) -> None:
        """Frames made from now on arrive, in each direction that needs none of `without`."""
        for direction in self._setup.directions:
            if not needed_by(direction) & set(without):
                self._await_direction(direction)

    def _await_direction(self, direction: int) -> None:
        incarnation = self._stage.incarnations[SENDERS[direction]]
        made = self._sent[direction].intended(incarnation)
        received = self._received[direction, RECEIVERS[direction]]
        self._stage.until(lambda: received.last(incarnation) > made, f"frames of direction {direction} arrive again")

    # -- quiet points

    def _quiet_point(self) -> None:
        now = self._quiet_statement()
        if left := self._not_at_base():
            raise SoakError("something is left over:\n" + "\n".join(left))
        self.frames = sum(account.received for account in now.accounts.values())
        self.restarts = sum(totals.drops.get("restart", 0) for totals in now.rings.values())
        self._statement = now
        self._killed.clear()
        self._stage.set_pace("fast")

    def _quiet_statement(self) -> Statement:
        """Senders stop, receivers take what is there and log it, and then the books balance.

        A receiver may have taken frames, and wait for a processor to log them. So nothing may change any more for two
        rounds of each: the first may have begun before, the second finds nothing to take.
        """
        stage = self._stage
        stage.set_pace("stopped")
        found: list[Statement] = []
        wrong: list[str] = []
        since: dict[tuple[int, str], int] = {}

        def balanced() -> bool:
            found.append(state(stage.regions(), self._sent, self._received))
            wrong[:] = discrepancies(self._setup, self._statement, found[-1], self._killed)
            if len(found) == 1 or found[-1] != found[-2]:
                since.update({whose: ledger.rounds for whose, ledger in self._received.items()})
            return not wrong and all(self._received[whose].rounds - then >= 2 for whose, then in since.items())

        try:
            stage.until(balanced, "the books balance")
        except SoakError as error:
            raise SoakError("\n".join([str(error), *wrong])) from None
        shown = stage.show()
        if (ids := {link.name: link.link_id for link in shown.links}) != self._link_ids:
            raise SoakError(f"links were replaced: {self._link_ids} became {ids}")
        if down := [f"{link.name} {link.state}" for link in shown.links if link.state != "up"]:
            raise SoakError(f"frames flow, and the broker says: {', '.join(down)}")
        return found[-1]

    def _not_at_base(self) -> list[str]:
        """What processes have more or less than at the start, once they had time to close what they need no more."""
        found: dict[str, str] = {}

        def at_base() -> bool:
            found.clear()
            now = self._stage.possessions()
            for name, base in self._base.items():
                difference = now.get(name, Possessions(0, 0, 0)).more_than(base)
                if difference:
                    found[name] = difference
            return not found

        try:
            self._stage.until(at_base, "everybody has what they had")
        except SoakError:
            return [f"{name}: {text}: {self._descriptors(name)}" for name, text in found.items()]
        return []

    def _descriptors(self, name: str) -> list[str]:
        pid = self._stage.keeper_pid() if name == "keeper" else self._stage.pid(name)
        return descriptors(pid) if pid is not None else []

    # -- when it fails

    def _state(self) -> str:
        lines = [f"seed {self._seed}, after {self.kills} kills, {self._step}", str(self._setup)]
        lines.append(f"killed since the last quiet point: {dict(self._killed)}")
        with contextlib.suppress(Exception):
            lines += [line for name, region in self._stage.regions().items() for line in _rings(name, region)]
        for direction in self._setup.directions:
            incarnation = self._stage.incarnations.get(SENDERS[direction], 0)
            received = self._received[direction, RECEIVERS[direction]]
            made, last = self._sent[direction].intended(incarnation), received.last(incarnation)
            lines.append(f"direction {direction}: incarnation {incarnation} has made {made}, {last} has arrived last")
        for name in self._stage.names:
            with contextlib.suppress(OSError):
                most = _LOG_LINES.get(name, _LOG_LINES_OF_OTHERS)
                said = self._stage.log(name).read_text().splitlines()[-most:]
                lines += [f"-- {name}", *said]
        return "\n".join(lines)


def _rings(link: str, region: RegionSnapshot) -> Iterator[str]:
    sides = ", ".join(f"{side.state.name.lower()} {side.cause.name.lower()}" for side in region.sides)
    yield f"{link}: {sides}"
    for ring in region.rings:
        halves = f"{ring.produced.frames} {ring.produced.drops} -> {ring.consumed.frames} {ring.consumed.drops}"
        slots = f"head {ring.head}, tail {ring.tail}, {ring.in_flight} in flight"
        yield f"  from {'ab'[ring.producing_side]}, queue {ring.queue}: {halves}; {slots}"


def needed_by(direction: int) -> set[str]:
    """Who has to be alive for a direction's frames to arrive."""
    links = {link for link, _ in WAYS[direction]}
    on_the_way = {"inside": "firewall", "wire": "edge", "hub-client": "bridge", "hub-server": "bridge"}
    between = {on_the_way[link] for link in links if link in on_the_way}
    return {SENDERS[direction], RECEIVERS[direction], *between}


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """With a name that is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="rw-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)
