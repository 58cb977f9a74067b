"""What a tap's job makes of reads that give no frame: counted as what they are, and no reason to spin."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ringway.engine.loop import Loop
from ringway.shm import Geometry
from ringway.shm._native import lib
from tests.support.open_link import Link, opened

FRAME_MAX = 1522
SLOTS = 64
TURNS_MAX = 200  # a second with the waiter's bound of 10 ms; a loop that spins does thousands at least


@contextlib.contextmanager
def job_over(fd: int) -> Iterator[tuple[Link, Loop, Any]]:
    with opened(Geometry(queues=1, slot_count=SLOTS, slot_payload=2048, headroom=64)) as link:
        producer, consumer = link.a.producers[0], link.a.consumers[0]
        loop = Loop("test", 0)
        try:
            job = lib.rway_tap_new(fd, producer.native, consumer.native, FRAME_MAX)
            loop.add(job, producer, consumer)
            loop.start()
            yield link, loop, job
        finally:
            loop.close()


def await_that(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_reads_that_fail_for_an_unknown_reason_are_no_drops_and_do_not_keep_a_core_busy(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)  # always readable for poll, and EISDIR
    try:
        with job_over(fd) as (link, loop, job):
            await_that(lambda: lib.rway_tap_error(job) != 0)
            before = loop.counts()["iterations"]
            time.sleep(0.5)  # being idle is what is measured
            assert loop.counts()["iterations"] - before < TURNS_MAX
            assert os.strerror(lib.rway_tap_error(job)) == "Is a directory"
            assert (link.ring().produced.drops, link.ring().offered) == ({}, 0)
    finally:
        os.close(fd)


def test_a_descriptor_at_its_end_is_no_drop_either() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    far.close()
    near.setblocking(False)
    with near, job_over(near.fileno()) as (link, loop, job):
        await_that(lambda: lib.rway_tap_error(job) != 0)
        before = loop.counts()["iterations"]
        time.sleep(0.5)  # as above
        assert loop.counts()["iterations"] - before < TURNS_MAX
        assert link.ring().offered == 0


def test_a_read_too_short_for_a_frame_is_one_runt_and_the_next_frame_is_read() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    near.setblocking(False)
    with near, far, job_over(near.fileno()) as (link, _, job):
        far.send(bytes(4))
        far.send(bytes(10) + bytes(60))
        await_that(lambda: link.ring().produced.frames == 1)
        assert link.ring().produced.drops == {"runt": 1}
        assert lib.rway_tap_error(job) == 0


@pytest.mark.parametrize("drops", [False, True])
def test_what_comes_to_a_tap_whose_ring_is_full_stays_in_the_kernel_or_is_dropped_and_counted(drops: bool) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    near.setblocking(False)
    with near, far, job_over(near.fileno()) as (link, _, job):
        lib.rway_tap_set_full(job, drops)
        for _ in range(SLOTS):
            far.send(bytes(10) + bytes(60))  # blocks until it is read where the kernel's queue is full
        await_that(lambda: link.ring().produced.frames == SLOTS)
        for _ in range(3):
            far.send(bytes(10) + bytes(60))
        if drops:
            await_that(lambda: link.ring().produced.drops == {"full": 3})
        assert link.b.consumers[0].receive(SLOTS) == [bytes(60)] * SLOTS
        if not drops:
            await_that(lambda: link.ring().produced.frames == SLOTS + 3)
        assert link.ring().produced.drops == ({"full": 3} if drops else {})
