"""The agents that have said hello, and the questions they have not answered yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ringway.broker.fabric import Holder
from ringway.control.messages import Hello, Told, VmShown

ANSWER_TIME: Final = 1.0  # seconds an agent has for an answer that somebody waits for


@dataclass
class Agent:
    vm: str
    identity: bytes  # of its ROUTER peer
    pid: int
    version: str
    problem: str = ""  # what it last failed to do
    revision: int = 0

    @property
    def holder(self) -> Holder:
        """What it is as one who takes ends."""
        return Holder(self.identity, self.pid, lifeline=self.revision >= 1, set_port=self.set_port)

    @property
    def set_port(self) -> bool:
        """It knows SetPort, and what came with it."""
        return self.revision >= 2


@dataclass
class Question:
    agent: Agent
    deadline: float
    heard: Callable[[Told | None], None]  # None: no answer in time


class Agents:
    """Times are monotonic seconds, given by the caller."""

    def __init__(self) -> None:
        self._by_vm: dict[str, Agent] = {}
        self._by_identity: dict[bytes, Agent] = {}
        self._questions: dict[str, Question] = {}

    def of(self, vm: str) -> Agent | None:
        return self._by_vm.get(vm)

    def by(self, identity: bytes) -> Agent | None:
        return self._by_identity.get(identity)

    def welcome(self, hello: Hello, identity: bytes) -> Agent:
        """From now on this is the VM's agent, whoever was before, and what the identity was before."""
        for previous in (self._by_vm.get(hello.vm), self._by_identity.get(identity)):
            if previous is not None:
                self.forget(previous)
        agent = Agent(hello.vm, identity, hello.pid, hello.version, revision=hello.revision)
        self._by_vm[agent.vm] = self._by_identity[identity] = agent
        return agent

    def forget(self, agent: Agent) -> None:
        if self._by_vm.get(agent.vm) is agent:
            del self._by_vm[agent.vm]
        if self._by_identity.get(agent.identity) is agent:
            del self._by_identity[agent.identity]

    def lose(self, agent: Agent) -> None:
        """It is gone: forget it, and give up what it was asked."""
        self.forget(agent)
        for request_id in [key for key, question in self._questions.items() if question.agent is agent]:
            self._questions.pop(request_id).heard(None)

    def ask(self, request_id: str, agent: Agent, now: float, heard: Callable[[Told | None], None]) -> None:
        self._questions[request_id] = Question(agent, now + ANSWER_TIME, heard)

    def hear(self, request_id: str, agent: Agent, told: Told | None) -> None:
        """An answer; to a question nobody asked, or another agent was asked, it is none."""
        question = self._questions.get(request_id)
        if question is not None and question.agent is agent:
            del self._questions[request_id]
            question.heard(told)

    def deadline(self) -> float | None:
        return min((question.deadline for question in self._questions.values()), default=None)

    def expire(self, now: float) -> None:
        for request_id in [key for key, question in self._questions.items() if question.deadline <= now]:
            self._questions.pop(request_id).heard(None)

    def show(self, vm: str, told: Told | None) -> VmShown:
        agent = self._by_vm.get(vm)
        return VmShown(
            name=vm,
            state="away" if agent is None else "present" if told else "silent",
            pid=agent.pid if agent else None,
            version=agent.version if agent else "",
            problem=agent.problem if agent else "",
            ports=told.ports if told else [],
            loops=told.loops if told else [],
            rules=told.rules if told else [],
            connections=told.connections if told else None,
            unparsed=told.unparsed if told else [],
        )
