"""The broker's one thread: waits on its sockets, reads what comes, lets the fabric decide, and answers.

Nothing here waits for anybody: what has to be asked of an agent first is answered later, when it has spoken or its
second is over.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import zmq

from ringway.broker import watch
from ringway.broker.agents import Agent, Agents
from ringway.broker.answers import Answers
from ringway.broker.checks import parse_config
from ringway.broker.config import FabricConfig
from ringway.broker.desk import Desk, Grant
from ringway.broker.effects import Resources, raise_descriptor_limit
from ringway.broker.fabric import Fabric
from ringway.broker.fabric_file import FabricError
from ringway.broker.runtime import claim
from ringway.control import wire
from ringway.control.errors import ControlError
from ringway.control.messages import (
    TO_BROKER,
    Applied,
    Apply,
    Ask,
    Cause,
    Done,
    ErrorReply,
    Hello,
    Message,
    Notice,
    Offered,
    SetStack,
    Show,
    Shown,
    Take,
    Told,
    VmShown,
    Welcome,
)
from ringway.control.names import printable
from ringway.control.rules import Stack, connections_size
from ringway.control.runtime import control_path, handover_path

HIGH_WATER: Final = 1024  # messages per peer and direction; a peer that does not read loses what is over
HANDSHAKE_MS: Final = 2000  # a connection that has not shaken hands by then is closed
MESSAGES_PER_ROUND: Final = 64  # so that a talkative peer cannot keep the loop from the descriptors
ZMQ_OLDEST: Final = (4, 3, 3)  # before it: CVE-2020-15166, CVE-2021-20237


class Loop:
    """`say` takes one line for the log."""

    def __init__(self, runtime: Path, say: Callable[[str], None]) -> None:
        if zmq.zmq_version_info() < ZMQ_OLDEST:
            raise ControlError(Cause.SYSTEM, f"libzmq {zmq.zmq_version()} is too old: 4.3.3 or newer is needed")
        self._say = say
        self._runtime = runtime
        self._lock_fd = claim(runtime)
        self._resources = Resources(raise_descriptor_limit())
        self._fabric = Fabric(str(handover_path(runtime)))
        self._agents = Agents()
        self._answers = Answers()
        self._desk = Desk(handover_path(runtime), self._redeem, self._released)
        self._context = zmq.Context()
        self._router: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 200)  # ms: a reply before stopping still gets out
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # tells of peers that are gone
        self._router.setsockopt(zmq.MAXMSGSIZE, wire.MESSAGE_SIZE)
        self._router.setsockopt(zmq.SNDHWM, HIGH_WATER)
        self._router.setsockopt(zmq.RCVHWM, HIGH_WATER)
        self._router.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        self._router.bind(f"ipc://{control_path(runtime)}")
        self._bound = {path: _identity(path) for path in (control_path(runtime), handover_path(runtime))}

    def close(self) -> None:
        self._desk.close()
        self._router.close()
        self._context.term()
        self._resources.close()
        for path, ours in self._bound.items():
            if _identity(path) == ours:  # not those of a broker that runs in a directory of the same name by now
                path.unlink(missing_ok=True)
        os.close(self._lock_fd)

    def run(self, stop_fd: int) -> None:
        """Until stop_fd is readable."""
        while True:
            poller = zmq.Poller()
            poller.register(self._router, zmq.POLLIN)
            for fd in (stop_fd, *self._desk.descriptors()):
                poller.register(fd, zmq.POLLIN)
            ready = poller.poll(self._patience())
            now = time.monotonic()
            messages = False
            for which, _ in ready:
                if which == stop_fd:
                    return
                if which is self._router:
                    messages = True
                else:
                    # First the desk: an agent's end closes before its successor says hello.
                    self._at_desk(which, now)
            if messages:
                self._read_messages()
            self._desk.expire(now)
            self._agents.expire(now)

    def _at_desk(self, fd: int, now: float) -> None:
        try:
            self._desk.on_readable(fd, now)
        except Exception as error:  # noqa: BLE001 - what one peer can cause must not end everybody's broker
            self._say(f"a handover failed: {error!r}")
            self._desk.abandon(fd)

    def on_message(self, identity: bytes, payload: bytes) -> None:
        try:
            request_id, message = wire.decode(payload, TO_BROKER)
        except wire.WireError as error:
            self._send(identity, error.request_id, ControlError(Cause.BAD_MESSAGE, error.message).reply())
            return
        try:
            self._on_decoded(identity, request_id, message)
        except Exception as error:  # noqa: BLE001 - as above
            self._say(f"a {type(message).__name__} failed: {error!r}")
            reply = ControlError(Cause.FAILED, f"the broker could not do it: {printable(repr(error))}").reply()
            self._send(identity, request_id, reply)

    def _on_decoded(self, identity: bytes, request_id: str, message: Message) -> None:
        if isinstance(message, Done | Told | ErrorReply | Notice):
            self._on_told(identity, request_id, message)
            return
        answer = self._answers.repeated(request_id)
        if answer is not None:
            self._send_bytes(identity, answer)
        elif self._answers.open(request_id, identity):
            self._on_request(identity, request_id, message)

    def apply(self, config: FabricConfig) -> Applied:
        """Make the fabric so, or ControlError and nothing changed. Tells the agents concerned."""
        broken = [
            name for name, link in self._fabric.links.items() if watch.is_broken(self._resources.links[link.link_id])
        ]
        plan = self._fabric.plan(config, broken)
        notes = self._resources.carry_out(plan.effects)
        changes = self._fabric.commit(plan)
        for connection in changes.dropped:
            self._desk.drop(connection)
        for vm, withdrawn in changes.withdrawn:
            self._push(vm, withdrawn)
        # Rules before links: no frame of a new link is to be judged by the old ones.
        for vm, stack in changes.stacks:
            self._push(vm, SetStack(stack=stack))
        now = time.monotonic()
        for vm, link, side in changes.offered:
            if self._agents.of(vm) is not None:
                self._push(vm, Offered(offer=self._fabric.offer(link, side, now)))
        self._say(
            f"applied {config.name!r}: {len(plan.made)} made, {len(plan.removed)} removed, "
            f"{len(plan.replaced)} replaced, {len(plan.kept)} kept"
        )
        notes += [_memory_note(vm, stack) for vm, stack in changes.stacks if stack is not None and stack.connections]
        for note in notes:
            self._say(note)
        return Applied(made=plan.made, removed=plan.removed, replaced=plan.replaced, kept=plan.kept, notes=notes)

    # -- requests

    def _on_request(self, identity: bytes, request_id: str, message: Message) -> None:
        try:
            match message:
                case Hello():
                    self._on_hello(identity, request_id, message)
                case Apply():
                    self._answer(request_id, self.apply(parse_config(message.text, message.name)))
                case Show():
                    self._on_show(request_id)
        except FabricError as error:
            self._answer(request_id, ControlError(Cause.BAD_FABRIC, str(error)).reply())
        except ControlError as error:
            self._answer(request_id, error.reply())

    def _on_hello(self, identity: bytes, request_id: str, hello: Hello) -> None:
        known = self._fabric.config.vms if self._fabric.config else {}
        if hello.vm not in known:
            names = ", ".join(list(known)[:20])
            hint = f"known are: {names}" if known else "the fabric is empty: `ringway apply FILE`"
            raise ControlError(Cause.UNKNOWN_VM, f"the fabric has no VM {hello.vm!r}; {hint}")
        current = self._agents.of(hello.vm)
        if current is None or current.identity == identity:
            self._welcome(identity, request_id, hello)
        elif any(self._is_held(connection) for connection in self._fabric.holders(hello.vm)):
            raise _agent_exists(current)
        else:
            # It holds nothing; only if it does not speak either, it is gone.
            judge = partial(self._on_rival_heard, current, identity, request_id, hello)
            if not self._ask(current, judge):
                judge(None)

    def _on_rival_heard(self, rival: Agent, identity: bytes, request_id: str, hello: Hello, told: Told | None) -> None:
        current = self._agents.of(hello.vm)
        if current is not None and (told is not None or current is not rival):
            self._answer(request_id, _agent_exists(current).reply())
        else:
            self._welcome(identity, request_id, hello)

    def _welcome(self, identity: bytes, request_id: str, hello: Hello) -> None:
        known = self._agents.by(identity)
        if known is None or known.vm != hello.vm:
            self._agents.welcome(hello, identity)
            self._say(f"agent of VM {hello.vm!r} is here (pid {hello.pid})")
        else:
            known.problem = ""
        now = time.monotonic()
        offers = [self._fabric.offer(link, side, now) for link, side in self._fabric.ends_of(hello.vm)]
        self._answer(request_id, Welcome(vm=hello.vm, offers=offers, stack=self._fabric.stack(hello.vm)))

    def _on_show(self, request_id: str) -> None:
        """Ask every agent, and answer when all have spoken or their second is over."""
        vms = list(self._fabric.config.vms) if self._fabric.config else []
        shown: dict[str, VmShown] = {}

        def heard(vm: str, told: Told | None) -> None:
            shown[vm] = self._agents.show(vm, told)
            if len(shown) == len(vms):
                self._answer_show(request_id, [shown[name] for name in vms])

        for vm in vms:
            agent = self._agents.of(vm)
            if agent is None or not self._ask(agent, partial(heard, vm)):
                heard(vm, None)
        if not vms:
            self._answer_show(request_id, [])

    def _answer_show(self, request_id: str, vms: list[VmShown]) -> None:
        links = [watch.show_link(link, self._resources.links[link.link_id]) for link in self._fabric.links.values()]
        self._answer(request_id, Shown(links=links, vms=vms))

    def _on_told(self, identity: bytes, request_id: str, message: Done | Told | ErrorReply | Notice) -> None:
        agent = self._agents.by(identity)
        if agent is None:
            # Also to an agent that was so far behind that it was forgotten.
            error = ControlError(Cause.NOT_GREETED, "no agent is known by this connection: say hello first")
            self._send(identity, request_id, error.reply())
            return
        match message:
            case Told():
                self._agents.hear(request_id, agent, message)
            case Done():
                agent.problem = ""
            case ErrorReply():
                agent.problem = message.message
                self._say(f"agent of VM {agent.vm!r} failed: {message.message}")
                self._agents.hear(request_id, agent, Told(ports=[], loops=[], rules=[]))  # it speaks
            case Notice():
                cause = f" ({message.cause})" if message.cause else ""
                self._say(f"VM {agent.vm!r}, port {message.port!r}, link {message.link!r}: {message.event}{cause}")

    # -- the desk's questions

    def _redeem(self, take: Take, connection: int, now: float) -> Grant:
        link_id, granted = self._fabric.redeem(take, connection, now)
        return Grant(granted, self._resources.links[link_id].descriptors(take.side))

    def _is_held(self, connection: int) -> bool:
        """Asks the socket: its closing may not have been noticed yet."""
        if self._desk.holds(connection):
            return True
        self._released(connection)
        return False

    def _released(self, connection: int) -> None:
        gone = self._fabric.released(connection)
        if gone is not None:
            self._say(f"link {gone[0]!r}: side {'ab'[gone[1]]} has let go")

    # -- sending

    def _ask(self, agent: Agent, heard: Callable[[Told | None], None]) -> bool:
        request_id = wire.new_id()
        if not self._send(agent.identity, request_id, Ask()):
            self._agents.forget(agent)
            return False
        self._agents.ask(request_id, agent, time.monotonic(), heard)
        return True

    def _push(self, vm: str, message: Message) -> None:
        agent = self._agents.of(vm)
        if agent is not None and not self._send(agent.identity, wire.new_id(), message):
            self._agents.forget(agent)
            self._say(f"agent of VM {vm!r} is gone")

    def _answer(self, request_id: str, message: Message) -> None:
        answer = wire.encode(request_id, message, wire.REPLY_SIZE)
        for identity in self._answers.give(request_id, answer):
            self._send_bytes(identity, answer)

    def _send(self, identity: bytes, request_id: str, message: Message) -> bool:
        return self._send_bytes(identity, wire.encode(request_id, message, wire.REPLY_SIZE))

    def _send_bytes(self, identity: bytes, payload: bytes) -> bool:
        """False when the peer is gone, or so far behind that it loses this."""
        try:
            self._router.send_multipart([identity, payload], zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    # -- receiving

    def _read_messages(self) -> None:
        for _ in range(MESSAGES_PER_ROUND):
            try:
                identity = self._router.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            payload = self._router.recv()
            if not self._router.getsockopt(zmq.RCVMORE):
                self.on_message(identity, payload)
                continue
            while self._router.getsockopt(zmq.RCVMORE):  # never kept: a message may have any number of frames
                self._router.recv(copy=False)
            error = ControlError(Cause.BAD_MESSAGE, "a message is one frame: {v, id, kind, body} as msgpack")
            self._send(identity, wire.NO_ID, error.reply())

    def _patience(self) -> int | None:
        """Milliseconds until something expires."""
        deadlines = [at for at in (self._desk.deadline(), self._agents.deadline()) if at is not None]
        return max(0, int((min(deadlines) - time.monotonic()) * 1000) + 1) if deadlines else None


def _memory_note(vm: str, stack: Stack) -> str:
    size = connections_size(stack.connections) / (1 << 20)
    return f"VM {vm}: its agent remembers {stack.connections} connections in {size:.1f} MiB of its own"


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _agent_exists(agent: Agent) -> ControlError:
    message = f"VM {agent.vm!r} has an agent, pid {agent.pid}: stop that one first"
    return ControlError(Cause.AGENT_EXISTS, message)
