"""The agents that have said hello, and the questions they have not answered yet."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ringway.broker.end import Holder
from ringway.broker.verdicts import Answer
from ringway.control.messages import Hello, Status, VmShown

ANSWER_TIME: Final = 1.0  # seconds an agent has for an answer that somebody waits for


@dataclass
class KnownAgent:
    vm: str
    identity: bytes  # of its ROUTER peer
    pid: int
    version: str
    problem: str = ""  # what it last failed to do
    silent: bool = False  # it has let an apply wait in vain, and not spoken since

    @property
    def holder(self) -> Holder:
        """What it is as a holder of ends."""
        return Holder(self.identity, self.pid)


@dataclass
class Question:
    agent: KnownAgent
    heard: Callable[[Answer], None]


class Agents:
    """Times are monotonic seconds, given by the caller."""

    def __init__(self) -> None:
        self._by_vm: dict[str, KnownAgent] = {}
        self._by_identity: dict[bytes, KnownAgent] = {}
        self._questions: dict[str, Question] = {}
        self._deadlines: list[tuple[float, str]] = []  # a heap, with those of questions that have been answered

    def of(self, vm: str) -> KnownAgent | None:
        return self._by_vm.get(vm)

    def by(self, identity: bytes) -> KnownAgent | None:
        return self._by_identity.get(identity)

    def welcome(self, hello: Hello, identity: bytes) -> KnownAgent:
        """From now on this is the VM's agent, whoever was before, and what the identity was before."""
        for previous in (self._by_vm.get(hello.vm), self._by_identity.get(identity)):
            if previous is not None:
                self.forget(previous)
        agent = KnownAgent(hello.vm, identity, hello.pid, hello.version)
        self._by_vm[agent.vm] = self._by_identity[identity] = agent
        return agent

    def forget(self, agent: KnownAgent) -> None:
        if self._by_vm.get(agent.vm) is agent:
            del self._by_vm[agent.vm]
        if self._by_identity.get(agent.identity) is agent:
            del self._by_identity[agent.identity]

    def lose(self, agent: KnownAgent) -> None:
        """It is gone: forget it, and give up what it was asked."""
        self.forget(agent)
        for request_id in [key for key, question in self._questions.items() if question.agent is agent]:
            self._questions.pop(request_id).heard(None)

    def ask(self, request_id: str, agent: KnownAgent, deadline: float, heard: Callable[[Answer], None]) -> None:
        self._questions[request_id] = Question(agent, heard)
        heapq.heappush(self._deadlines, (deadline, request_id))

    def hear(self, request_id: str, agent: KnownAgent, answer: Answer) -> None:
        """An answer; a reply to a question nobody asked, or that another agent was asked, is ignored."""
        question = self._questions.get(request_id)
        if question is not None and question.agent is agent:
            del self._questions[request_id]
            question.heard(answer)

    def deadline(self) -> float | None:
        while self._deadlines and self._deadlines[0][1] not in self._questions:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def expire(self, now: float) -> None:
        while (deadline := self.deadline()) is not None and deadline <= now:
            self._questions.pop(self._deadlines[0][1]).heard(None)

    def show(self, vm: str, status: Status | None) -> VmShown:
        agent = self._by_vm.get(vm)
        return VmShown(
            name=vm,
            state="away" if agent is None else "present" if status else "silent",
            pid=agent.pid if agent else None,
            version=agent.version if agent else "",
            problem=_problem(agent, status),
            ports=status.ports if status else [],
            loops=status.loops if status else [],
            rules=status.rules if status else [],
            connections=status.connections if status else None,
            unparsed=status.unparsed if status else [],
            functions=status.functions if status else [],
        )


def _problem(agent: KnownAgent | None, status: Status | None) -> str:
    """What it says now; else what it last failed to do, until it says that all its ports are well."""
    if agent is None:
        return ""
    if status is None:
        return agent.problem
    if not status.problem and all(port.state == "attached" for port in status.ports):
        agent.problem = ""
    return status.problem or agent.problem
