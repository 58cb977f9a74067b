"""A child of an application's process has nothing of its links, whatever it does and however long it lives."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest

from ringway.agent import Agent, Port
from tests.support.fabric import Fabric
from tests.support.fabrics import PAIR
from tests.support.network import namespaces, run
from tests.support.waiting import until

TWO_QUEUES = PAIR + "queues = 2\n"
TAP = """
[vm.left.port.p]
kind = "tap"
interface = "fast0"
[vm.right.port.p]
kind = "local"
[link.wire]
ends = ["left.p", "right.p"]
"""
FRAME = bytes(12) + b"\x88\xb5" + bytes(46)

# An application whose child lives on, having done nothing at all after the fork.
APPLICATION = """
import multiprocessing, os, signal, sys
from ringway.agent import Agent
agent = Agent("left", sys.argv[1])
agent.start()
child = multiprocessing.get_context("fork").Process(target=signal.pause)
child.start()
print(child.pid, flush=True)
signal.pause()
"""


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked child, or the error that it raises."""

    def call(answer: Connection) -> None:
        try:
            answer.send(work())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            answer.send((type(error).__name__, str(getattr(error, "cause", "")), str(error)))

    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    child = fork.Process(target=call, args=(theirs,))
    child.start()
    theirs.close()
    assert ours.poll(20), "the child does not answer"
    answer = ours.recv()
    child.join(20)
    assert child.exitcode == 0
    return answer


@pytest.mark.needs_root
@pytest.mark.parametrize("text", [TWO_QUEUES, TAP], ids=["local", "tap"])
def test_a_child_that_lives_on_does_not_keep_its_dead_parents_end(fabric: Fabric, text: str) -> None:
    with namespaces("left"):
        fabric.apply(text)
        command = [sys.executable, "-c", APPLICATION, str(fabric.runtime)]
        with subprocess.Popen(
            ["nsenter", "--net=/run/netns/left", *command], stdout=subprocess.PIPE, text=True
        ) as application:
            assert application.stdout is not None
            child = int(application.stdout.readline())
            try:
                until(lambda: fabric.broker.link("wire").ends[0].held, "the parent has the end")
                application.kill()
                application.wait()
                until(lambda: not fabric.broker.link("wire").ends[0].held, "nobody holds the end")
                agent = fabric.agent("left", "left")
                until(lambda: fabric.broker.link("wire").ends[0].held, "the next one has it")
                if text == TAP:
                    until(lambda: "fast0" in run("ip", "link", namespace="left").stdout, "the interface is there")
                    assert fabric.broker.vm("left").ports[0].state == "attached"
                assert agent.stop() == 0
            finally:
                os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("use", ["send", "receive", "port", "detach", "stop"])
def test_what_a_child_does_with_its_parents_port_is_refused_and_disturbs_nobody(fabric: Fabric, use: str) -> None:
    fabric.apply(TWO_QUEUES)
    left, right = fabric.local("left"), fabric.port("right")
    port: Port = left.port("p")
    works: dict[str, Callable[[], Any]] = {
        "send": lambda: port.send([FRAME]),
        "receive": lambda: port.receive(timeout=0),
        "port": lambda: left.port("p"),
        "detach": port.detach,
        "stop": left.stop,
    }
    done = threading.Event()
    busy = threading.Thread(target=lambda: [port.receive(timeout=0.05) for _ in iter(done.is_set, True)])
    busy.start()  # holds the port's locks now and then, when the child is made
    try:
        answers = [in_child(works[use]) for _ in range(5)]
    finally:
        done.set()
        busy.join()
    if use in ("detach", "stop"):
        assert answers == [None] * 5
    else:
        assert {answer[:2] for answer in answers} == {("AgentError", "forked")}
        assert "forked" in answers[0][2]
    assert port.send([FRAME]) == 1
    assert right.receive(timeout=10) == [FRAME]
    assert fabric.quiet("wire").state == "up"


def test_a_child_can_start_an_agent_of_its_own(fabric: Fabric) -> None:
    fabric.apply(TWO_QUEUES)
    port = fabric.port("left")

    def other_end() -> list[bytes]:
        with Agent("right", fabric.runtime) as agent:
            return agent.port("p").receive(timeout=10)

    port.send([FRAME])
    assert in_child(other_end) == [FRAME]
