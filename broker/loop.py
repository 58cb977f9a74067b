"""The broker's one thread: waits on its sockets, reads what comes, lets the fabric decide, and answers.

Nothing here waits for anybody: what has to be asked of an agent first is answered later, when it has spoken or its
second is over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

from msgspec.structs import replace

from ringway.broker import report
from ringway.broker.agents import ANSWER_TIME, Agents, KnownAgent
from ringway.broker.chatter import Chatter
from ringway.broker.config.checks import parse_config
from ringway.broker.config.text import FabricError
from ringway.broker.ends import Ends, Recreate
from ringway.broker.fabric import ChangedPort, Fabric, Plan
from ringway.broker.journal import Journal, new_journal, read_journal, write_journal
from ringway.broker.keeper_entries import KeeperEntries
from ringway.broker.limits import connections_size
from ringway.broker.links import Resources, raise_descriptor_limit
from ringway.broker.recovery import adopt_ends, adopt_fabric, adopt_handover, adopt_links
from ringway.broker.registry import Registration, remove_leftovers
from ringway.broker.router import Router, check_zmq
from ringway.broker.runtime_lock import claim
from ringway.broker.verdicts import VERDICT_TIME, Answer, Verdicts
from ringway.control import wire
from ringway.control.errors import ControlError
from ringway.control.messages import (
    TO_BROKER,
    AgentFailed,
    Applied,
    Apply,
    Cause,
    Done,
    ErrorReply,
    Hello,
    Message,
    Notice,
    Offered,
    Planned,
    PlanRequest,
    Replacement,
    SetPort,
    SetStack,
    Show,
    Shown,
    Status,
    StatusRequest,
    VmShown,
    Welcome,
)
from ringway.control.names import printable
from ringway.control.release import RELEASE
from ringway.control.rules import Stack
from ringway.control.runtime import control_path, handover_path


class Broker:
    """`say` takes one line for the log."""

    def __init__(self, runtime: Path, say: Callable[[str], None]) -> None:
        """ControlError, and all that was begun is given up: what a broker before this one left stays for the next."""
        check_zmq()
        self._say = say
        self._chatter = Chatter(say)
        self._runtime = runtime
        self._stopped = False
        self._agents = Agents()
        self._asked_by: dict[str, bytes] = {}  # identities by the ids of requests that are being carried out
        self._fabric = Fabric(runtime)
        # By type of message: requests, each answered once; and what only agents say.
        self.requests: dict[type[Message], Callable[[bytes, str, Any], None]] = {
            Hello: self._on_hello,
            Apply: self._on_apply,
            PlanRequest: self._on_plan,
            Show: self._on_show,
        }
        self.words: dict[type[Message], Callable[[KnownAgent, str, Any], None]] = {
            Status: self._on_status,
            Done: self._on_done,
            ErrorReply: self._on_agent_failed,
            Notice: self._on_notice,
        }
        try:
            with contextlib.ExitStack() as begun:
                self._begin(runtime, begun)
                self._begun = begun.pop_all()
        except OSError as error:
            raise _cannot_start(error) from None

    def _begin(self, runtime: Path, begun: contextlib.ExitStack) -> None:
        """Each thing that has to be closed is noted with `begun` as soon as it is there."""
        self._events = select.epoll()
        begun.callback(self._events.close)
        lock_fd = claim(runtime)
        begun.callback(os.close, lock_fd)
        descriptors_max = raise_descriptor_limit()  # before there is a keeper, which sends all that it has
        self._router = Router(control_path(runtime), self._events, self._say)  # it starts while the rest is adopted
        begun.callback(self._close_router, _identity(control_path(runtime)))
        journal = read_journal(runtime)
        self._journal = journal or new_journal()
        adopt_fabric(self._journal, self._fabric, runtime)
        if journal is None:
            write_journal(runtime, self._journal)  # before there is a keeper, which a broker that fails would leave
        self._keeping = KeeperEntries(runtime, self._say)
        begun.callback(self._close_keeping)
        found = self._keeping.recover()
        self._resources = Resources(descriptors_max, self._keeping)
        begun.callback(self._resources.close)
        lost = adopt_links(found, self._fabric, self._resources, self._keeping)
        listener = adopt_handover(found, handover_path(runtime), self._keeping)
        begun.callback(self._unbind, handover_path(runtime), _identity(handover_path(runtime)))
        self._ends = Ends(
            *(listener, self._events, self._fabric, self._resources, self._keeping),
            say=self._say,
        )
        begun.callback(self._ends.close)
        self._handover = self._ends.server
        adopt_ends(found, self._fabric, self._keeping, self._ends.take_over)
        if self._fabric.links:
            self._say(f"adopted {len(self._fabric.links) - len(lost)} of {len(self._fabric.links)} links")
        for name in lost:
            self._say(f"link {name!r}: {report.LOST}; it is recreated when an end needs it, or by the next apply")
        self._registration = self._register()
        begun.callback(self._close_registration)
        self._registration_said = ""
        self._list_links()
        self._router.await_ready()
        self._mend_keeper(time.monotonic())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave links to their ends, and to the next broker; but after an orderly stop, or without links, a keeper that
        is only there for this broker ends. An error is not a stop: it takes from nobody what a SIGKILL would leave."""
        self._begun.close()

    @property
    def _is_last(self) -> bool:
        """Nothing is to be left to a broker after this one."""
        return (self._stopped or not self._fabric.links) and not self._keeping.stays

    def _close_keeping(self) -> None:
        self._keeping.close(end=self._is_last)

    def _close_registration(self) -> None:
        if self._registration is not None:
            self._registration.close(unlink=self._is_last)

    def _close_router(self, ours: tuple[int, int] | None) -> None:
        self._router.close()
        self._unlink(control_path(self._runtime), ours)

    def _unbind(self, path: Path, ours: tuple[int, int] | None) -> None:
        """The socket at which agents wait for the next broker stays for it."""
        if self._is_last:
            self._unlink(path, ours)

    def _unlink(self, path: Path, ours: tuple[int, int] | None) -> None:
        if _identity(path) == ours:  # not that of a broker that runs in a directory of the same name by now
            path.unlink(missing_ok=True)

    @property
    def has_fabric(self) -> bool:
        """One was applied, by this broker or one before it."""
        return bool(self._journal.text)

    def was_applied(self, text: str) -> bool:
        return self._journal.text == text

    def run(self, stop_fd: int) -> None:
        """Until stop_fd is readable."""
        self._events.register(stop_fd, select.EPOLLIN)
        while True:
            self._list_links()
            ready = [fd for fd, _ in self._events.poll(self._patience())]
            if stop_fd in ready:
                self._stopped = True
                return
            now = time.monotonic()
            self._mend_keeper(now)  # before anything else: nobody has what the broker has meanwhile
            for fd in ready:
                # First the desk: an agent's end closes before its successor says hello.
                if self._handover.is_ours(fd):
                    self._at_handover(fd, now)
            for identity, payload in self._router.messages():
                self.on_message(identity, payload)
            for identity in self._router.lost():
                self._lose(identity)
            self._router.mend(now)
            self._handover.expire(now)
            self._agents.expire(now)
            self._chatter.expire(now)

    def _at_handover(self, fd: int, now: float) -> None:
        try:
            recreate = self._ends.on_readable(fd, now)
            if recreate is not None:
                self._recreate(recreate)
        except Exception as error:  # noqa: BLE001 - what one peer can cause must not end everybody's broker
            self._say(f"a handover failed: {error!r}")
            self._ends.abandon(fd)

    def _recreate(self, asked: Recreate) -> None:
        """Replace a link that a claim found unusable, and refuse the claim."""
        try:
            self._make_anew({asked.link: asked.trouble})
            message = (
                f"link {asked.link!r} was recreated, because {asked.trouble}: say hello for a ticket of the new one"
            )
            refusal = ControlError(Cause.TICKET_EXPIRED, message)
        except ControlError as error:
            refusal = error
        self._ends.refuse(asked.claim, refusal)

    def on_message(self, identity: bytes, payload: bytes) -> None:
        try:
            request_id, message = wire.decode(payload, TO_BROKER)
        except wire.WireError as error:
            self._router.send(identity, error.request_id, error.refusal().reply())
            return
        try:
            self._on_decoded(identity, request_id, message)
        except Exception as error:  # noqa: BLE001 - as above
            self._say(f"a {type(message).__name__} failed: {error!r}")
            self._asked_by.pop(request_id, None)
            self._router.send(identity, request_id, _failed(error))

    def _on_decoded(self, identity: bytes, request_id: str, message: Message) -> None:
        if type(message) in self.words:
            self._on_told(identity, request_id, message)
            return
        self._asked_by[request_id] = identity
        self._on_request(identity, request_id, message)

    def apply(self, text: str, name: str, verdicts: Verdicts | None = None) -> Applied:
        """Make the fabric as the text says, or FabricError or ControlError and nothing changed. Tells the agents.

        `verdicts` collects what these answer.
        """
        config = parse_config(text, name)
        self._router.check_room(len(config.vms))
        plan = self._fabric.plan(config, self._troubles())
        notes = self._carry_out(plan, replace(self._journal, name=name, text=text), verdicts)
        self._say(
            f"applied {config.name!r}: {len(plan.made)} made, {len(plan.removed)} removed, "
            f"{len(plan.replaced)} replaced, {len(plan.kept)} kept"
        )
        for note in notes:
            self._say(note)
        return Applied(made=plan.made, removed=plan.removed, replaced=list(plan.replaced), kept=plan.kept, notes=notes)

    def _troubles(self) -> dict[str, str]:
        """The links that have to be recreated, and why."""
        found = {
            name: report.trouble(link, self._resources.links.get(link.link_id))
            for name, link in self._fabric.links.items()
        }
        return {name: trouble for name, trouble in found.items() if trouble}

    def _planned(self, request: PlanRequest) -> Planned:
        config = parse_config(request.text, request.name)
        self._router.check_room(len(config.vms))
        plan = self._fabric.plan(config, self._troubles())
        self._resources.check(plan.effects)
        held = {name: self._resources.links.get(link.link_id) for name, link in self._fabric.links.items()}
        gone = sum(lost.memory for name in (*plan.removed, *plan.replaced) if (lost := held[name]) is not None)
        return Planned(
            made=plan.made,
            removed=plan.removed,
            replaced=[
                Replacement(link=name, reason=reason, in_flight=report.in_flight(held[name]))
                for name, reason in plan.replaced.items()
            ],
            kept=plan.kept,
            stacks=[vm for vm, _ in self._fabric.stacks_changed(config)],
            ports=[str(changed) for changed in plan.ports],
            memory=sum(effect.config.memory() for effect in plan.makes) - gone,
        )

    def _make_anew(self, troubles: Mapping[str, str]) -> None:
        """Replace links that no end can be handed any more, and tell both ends of each."""
        config = self._fabric.config
        if not troubles or config is None:
            return
        for name, trouble in troubles.items():
            self._say(f"link {name!r} is recreated: {trouble}")
        self._carry_out(self._fabric.plan(config, troubles), self._journal)

    def _carry_out(self, plan: Plan, journal: Journal, verdicts: Verdicts | None = None) -> list[str]:
        """Memory first, then the journal, which is when it has happened, then the rest. Notes for the user."""
        ids = {name: self._fabric.links[name].link_id for name in plan.kept}
        ids |= {effect.config.name: effect.link_id for effect in plan.makes}
        journal = replace(journal, links=ids)
        notes = self._resources.carry_out(plan.effects, lambda: self._write_journal(journal))
        self._journal = journal
        changes = self._fabric.commit(plan)
        self._ends.drop(changes.dropped)
        for vm, withdrawn in changes.withdrawn:
            self._push(vm, withdrawn, verdicts)
        notes += [self._set_port(changed, message, verdicts) for changed, message in changes.ports]
        stacks = dict(changes.stacks)
        if verdicts is not None:  # an apply also asks for packet functions whose files have changed
            stacks |= self._fabric.stacks_with_functions()
        # Rules before links: no frame of a new link is to be judged by the old ones.
        for vm, stack in stacks.items():
            self._push(vm, SetStack(stack=stack), verdicts)
        now = time.monotonic()
        for vm, link, side in changes.offered:
            agent = self._agents.of(vm)
            if agent is not None:
                self._push(vm, Offered(offer=self._fabric.offer(link, side, now, agent.holder)), verdicts)
        return notes + [
            _memory_note(vm, stack) for vm, stack in changes.stacks if stack is not None and stack.connections
        ]

    def _write_journal(self, journal: Journal) -> None:
        """Not when only the file's name is another one: what stays as it is needs no room on a full disk."""
        if replace(journal, name=self._journal.name) != self._journal:
            write_journal(self._runtime, journal)

    # -- requests

    def _on_request(self, identity: bytes, request_id: str, message: Message) -> None:
        try:
            self.requests[type(message)](identity, request_id, message)
        except FabricError as error:
            self._answer(request_id, ControlError(Cause.BAD_FABRIC, str(error)).reply())
        except ControlError as error:
            self._answer(request_id, error.reply())

    def _on_apply(self, _identity: bytes, request_id: str, request: Apply) -> None:
        """Answered when all agents have said whether they run it, or their time is over."""
        applied: list[Applied] = []

        def complete(silent: list[str], failed: list[AgentFailed]) -> None:
            self._answer(request_id, replace(applied[0], silent=silent, failed=failed))

        verdicts = Verdicts(lambda silent, failed: self._finish(request_id, partial(complete, silent, failed)))
        applied.append(self.apply(request.text, request.name, verdicts))
        verdicts.close()

    def _on_plan(self, _identity: bytes, request_id: str, request: PlanRequest) -> None:
        self._answer(request_id, self._planned(request))

    def _on_hello(self, identity: bytes, request_id: str, hello: Hello) -> None:
        if hello.version != RELEASE:
            raise _other_release(hello)
        known = self._fabric.config.vms if self._fabric.config else {}
        if hello.vm not in known:
            names = ", ".join(list(known)[:20])
            hint = f"known are: {names}" if known else "the fabric is empty: `ringway apply FILE`"
            raise ControlError(Cause.UNKNOWN_VM, f"the fabric has no VM {hello.vm!r}; {hint}")
        current = self._agents.of(hello.vm)
        stranger = self._ends.stranger(identity, hello.vm)
        if stranger is not None:
            raise _agent_exists(hello.vm, stranger)
        if current is None or current.identity == identity or self._ends.any_held(hello.vm):
            self._welcome(identity, request_id, hello)
        else:
            # It holds nothing; only if it does not speak either, it is gone.
            self._ask(current, request_id, partial(self._on_rival_heard, current, identity, request_id, hello))

    def _on_rival_heard(
        self, rival: KnownAgent, identity: bytes, request_id: str, hello: Hello, status: Status | None
    ) -> None:
        current = self._agents.of(hello.vm)
        if current is not None and (status is not None or current is not rival):
            self._answer(request_id, _agent_exists(current.vm, current.pid).reply())
        else:
            self._welcome(identity, request_id, hello)

    def _welcome(self, identity: bytes, request_id: str, hello: Hello) -> None:
        known = self._agents.by(identity)
        if known is None or known.vm != hello.vm:
            self._agents.welcome(hello, identity)
            self._say_of(hello.vm, f"agent of VM {hello.vm!r} is here (pid {hello.pid})")
        else:
            known.problem = ""
            known.silent = False
        agent = self._agents.of(hello.vm)
        assert agent is not None
        try:
            self._make_anew(self._fabric.note_attached(hello.vm, agent.holder, hello.attached))
        except ControlError as error:  # its other links are not affected; the agent that wants this end tries again
            self._say(str(error))
        now = time.monotonic()
        offers = [self._fabric.offer(link, side, now, agent.holder) for link, side in self._fabric.ends_of(hello.vm)]
        self._answer(request_id, Welcome(vm=hello.vm, offers=offers, stack=self._fabric.stack(hello.vm)))

    def _on_show(self, _identity: bytes, request_id: str, _request: Show) -> None:
        """Ask every agent, and answer when all have spoken or their second is over."""
        vms = list(self._fabric.config.vms) if self._fabric.config else []
        shown: dict[str, VmShown] = {}

        def heard(vm: str, status: Status | None) -> None:
            shown[vm] = self._agents.show(vm, status)
            if len(shown) == len(vms):
                self._answer_show(request_id, [shown[name] for name in vms])

        for vm in vms:
            agent = self._agents.of(vm)
            if agent is None:
                heard(vm, None)
            else:
                self._ask(agent, request_id, partial(heard, vm))
        if not vms:
            self._answer_show(request_id, [])

    def _answer_show(self, request_id: str, vms: list[VmShown]) -> None:
        held = self._resources.links
        links = [report.show_link(link, held.get(link.link_id)) for link in self._fabric.links.values()]
        self._answer(request_id, Shown(links=links, vms=vms))

    def _on_told(self, identity: bytes, request_id: str, message: Message) -> None:
        agent = self._agents.by(identity)
        if agent is None:
            # Also to an agent that was so far behind that it was forgotten.
            error = ControlError(Cause.NOT_GREETED, "no agent is known by this connection: say hello first")
            self._router.send(identity, request_id, error.reply())
            return
        agent.silent = False
        self.words[type(message)](agent, request_id, message)

    def _on_status(self, agent: KnownAgent, request_id: str, status: Status) -> None:
        self._agents.hear(request_id, agent, status)

    def _on_done(self, agent: KnownAgent, request_id: str, done: Done) -> None:
        agent.problem = ""
        self._agents.hear(request_id, agent, done)

    def _on_agent_failed(self, agent: KnownAgent, request_id: str, error: ErrorReply) -> None:
        agent.problem = error.message
        self._say_of(agent.vm, f"agent of VM {agent.vm!r} failed: {error.message}")
        self._agents.hear(request_id, agent, error)

    def _on_notice(self, agent: KnownAgent, _request_id: str, notice: Notice) -> None:
        cause = f" ({notice.cause})" if notice.cause else ""
        port = f"port {notice.port!r}, link {notice.link!r}"
        self._say_of(agent.vm, f"VM {agent.vm!r}, {port}: {notice.event}{cause}")

    def _say_of(self, vm: str, line: str) -> None:
        """For what an agent may cause as often as it likes."""
        self._chatter.say(vm, line, time.monotonic())

    # -- keeper and registry

    def _mend_keeper(self, now: float) -> None:
        if self._keeping.mend(now):
            self._events.register(self._keeping.fileno(), select.EPOLLIN)

    def _register(self) -> Registration | None:
        """None where there can be none: links do not need it."""
        try:
            registration = Registration(self._journal.fabric_id, self._runtime)
        except ControlError as error:
            self._say(str(error))
            return None
        try:
            for name in remove_leftovers():
                self._say(f"removed {name}, which a broker that is dead left")
        except ControlError as error:
            self._say(str(error))
        return registration

    def _list_links(self) -> None:
        """Say in the fabric's entry what has changed; again at the next occasion when it could not be said."""
        if not self._ends.changed or self._registration is None:
            return
        said = ""
        try:
            self._registration.write([report.link_entry(link) for link in self._fabric.links.values()])
            self._ends.changed = False
        except ControlError as error:
            said = str(error)
        if said and said != self._registration_said:
            self._say(said)
        self._registration_said = said

    # -- sending

    def _ask(self, agent: KnownAgent, on_behalf_of: str, heard: Callable[[Status | None], None]) -> None:
        """`on_behalf_of`: the request that needs the agent's word."""
        request_id = wire.new_id()
        self._router.send(agent.identity, request_id, StatusRequest())

        def answered(answer: Answer) -> None:
            # One that has nothing to tell speaks all the same.
            status = answer if answer is None or isinstance(answer, Status) else Status(ports=[], loops=[], rules=[])
            self._finish(on_behalf_of, partial(heard, status))

        self._agents.ask(request_id, agent, time.monotonic() + ANSWER_TIME, answered)

    def _finish(self, on_behalf_of: str, step: Callable[[], None]) -> None:
        """Who failed is not the agent that spoke, if one did, but the request behind the question."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - as in on_message
            self._say(f"what an agent was asked for failed: {error!r}")
            self._answer(on_behalf_of, _failed(error))

    def _set_port(self, changed: ChangedPort, message: SetPort, verdicts: Verdicts | None) -> str:
        """Tell its agent; one that comes later is offered the port as it is then. Returns a note for the user."""
        self._push(changed.vm, message, verdicts)
        return f"port {changed}: changed, no frame is lost by it"

    def _push(self, vm: str, message: Message, verdicts: Verdicts | None = None) -> None:
        agent = self._agents.of(vm)
        if agent is None:
            return
        request_id = wire.new_id()
        self._router.send(agent.identity, request_id, message)
        if verdicts is None:
            return

        def answered(answer: Answer) -> None:
            agent.silent = answer is None
            gone = self._agents.of(vm) is not agent  # then nobody is there, as before an agent is started
            verdicts.heard(vm, Done() if answer is None and gone else answer)

        verdicts.told()
        if agent.silent:  # one apply has waited for it: that it reads nothing is known
            verdicts.heard(vm, None)
            return
        self._agents.ask(request_id, agent, time.monotonic() + VERDICT_TIME, answered)

    def _lose(self, identity: bytes) -> None:
        """Something did not reach that peer. An agent that is still there hears so when it next speaks."""
        agent = self._agents.by(identity)
        if agent is not None:
            self._say_of(agent.vm, f"agent of VM {agent.vm!r} is gone")
            self._agents.lose(agent)

    def _answer(self, request_id: str, message: Message) -> None:
        """Once: what comes after an answer, or for a request that was given up, has nowhere to go."""
        identity = self._asked_by.get(request_id)
        if identity is not None:
            self._router.send(identity, request_id, message)
            del self._asked_by[request_id]

    def _patience(self) -> float | None:
        """Seconds until something expires; none while there are messages that were read and not yet heard."""
        if self._router.pending():
            return 0.0
        waiting = (self._handover, self._agents, self._keeping, self._router, self._chatter)
        expiries = [each.deadline() for each in waiting]
        deadlines = [at for at in expiries if at is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None


def _failed(error: Exception) -> ErrorReply:
    return ControlError(Cause.FAILED, f"the broker could not do it: {printable(repr(error))}").reply()


def _cannot_start(error: OSError) -> ControlError:
    what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    remedy = "raise its hard limit (ulimit -Hn, LimitNOFILE)" if error.errno == errno.EMFILE else "see to that first"
    return ControlError(Cause.SYSTEM, f"the broker cannot start ({what}): {remedy}; links that are up go on")


def _memory_note(vm: str, stack: Stack) -> str:
    size = connections_size(stack.connections) / (1 << 20)
    return f"VM {vm}: its agent remembers {stack.connections} connections in {size:.1f} MiB of its own"


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _other_release(hello: Hello) -> ControlError:
    message = (
        f"this agent of VM {hello.vm!r} is ringway {hello.version or 'of no release'}, and the broker is {RELEASE}: "
        "install one release on both sides, and restart the older one"
    )
    return ControlError(Cause.VERSION, message)


def _agent_exists(vm: str, pid: int) -> ControlError:
    message = f"VM {vm!r} has an agent, pid {pid}: stop that one first"
    return ControlError(Cause.AGENT_EXISTS, message)
