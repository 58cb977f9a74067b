"""A ring behaves like a queue of frames with a number of free slots, through restarts of either end."""

from __future__ import annotations

import os
from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ringway.shm import DropCause, Geometry, Region, create_region, read_region

GEOMETRY = Geometry(queues=2, slot_count=64, slot_payload=256, headroom=64)
FRAME_MAX = GEOMETRY.shape().frame_max
LENGTHS = st.one_of(
    st.integers(0, 20), st.integers(60, 1514), st.integers(240, 270), st.integers(FRAME_MAX - 2, FRAME_MAX + 2)
)
SIDES, QUEUES = st.integers(0, 1), st.integers(0, 1)


class Half:
    """What a ring should hold and what its books should say."""

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()
        self.free = GEOMETRY.slot_count
        self.published = self.taken = 0
        self.drops = dict.fromkeys(("full", "runt", "oversize"), 0)

    def offer(self, frames: list[bytes]) -> int:
        for done, frame in enumerate(frames):
            slots = slots_of(frame)
            if len(frame) < 14:
                self.drops["runt"] += 1
            elif len(frame) > FRAME_MAX:
                self.drops["oversize"] += 1
            elif slots > self.free:
                return done
            else:
                self.frames.append(frame)
                self.free -= slots
                self.published += 1
        return len(frames)

    def take(self, count: int) -> list[bytes]:
        taken = [self.frames.popleft() for _ in range(min(count, len(self.frames)))]
        self.free += sum(map(slots_of, taken))
        self.taken += len(taken)
        return taken


def slots_of(frame: bytes) -> int:
    return max(1, -(-len(frame) // GEOMETRY.slot_payload))


class RingAgainstAModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.fd = create_region(GEOMETRY, 1)
        self.number = 0
        self.ends: list[Region | None] = [None, None]
        self.model = {(side, queue): Half() for side in (0, 1) for queue in (0, 1)}
        for side in (0, 1):
            self.attach(side)

    def attach(self, side: int) -> None:
        self.number += 1
        self.ends[side] = Region.attach(self.fd, GEOMETRY, 1, side, self.number)

    def teardown(self) -> None:
        for end in self.ends:
            if end is not None:
                end.detach()
        os.close(self.fd)

    def fresh(self, length: int) -> bytes:
        self.number += 1
        return (self.number.to_bytes(4, "big") * (length // 4 + 1))[:length]

    @rule(side=SIDES, queue=QUEUES, lengths=st.lists(LENGTHS, max_size=80))
    def send(self, side: int, queue: int, lengths: list[int]) -> None:
        end = self.ends[side]
        if end is not None:
            frames = [self.fresh(length) for length in lengths]
            assert end.producers[queue].send(frames) == self.model[side, queue].offer(frames)

    @rule(side=SIDES, queue=QUEUES, lengths=st.lists(LENGTHS, max_size=80))
    def send_and_drop_the_rest(self, side: int, queue: int, lengths: list[int]) -> None:
        end = self.ends[side]
        if end is not None:
            frames = [self.fresh(length) for length in lengths]
            dealt_with = end.producers[queue].send(frames)
            assert dealt_with == self.model[side, queue].offer(frames)
            end.producers[queue].drop(DropCause.FULL, len(frames) - dealt_with)
            self.model[side, queue].drops["full"] += len(frames) - dealt_with
            # The next send shows the drops to readers; a runt among them, so that it takes no slot.
            assert end.producers[queue].send([b""]) == self.model[side, queue].offer([b""])

    @rule(side=SIDES, queue=QUEUES, count=st.integers(0, 70))
    def receive(self, side: int, queue: int, count: int) -> None:
        end = self.ends[side]
        if end is not None:
            assert end.consumers[queue].receive(count) == self.model[1 - side, queue].take(count)

    @rule(side=SIDES, queue=QUEUES)
    def wait(self, side: int, queue: int) -> None:
        end = self.ends[side]
        if end is not None:
            assert end.consumers[queue].wait(0) is bool(self.model[1 - side, queue].frames)
            assert end.producers[queue].wait(0) is (self.model[side, queue].free >= GEOMETRY.slot_count // 2)

    @precondition(lambda self: None not in self.ends)
    @rule(side=SIDES)
    def detach(self, side: int) -> None:
        end = self.ends[side]
        assert end is not None
        end.detach()
        self.ends[side] = None

    @precondition(lambda self: None in self.ends)
    @rule()
    def come_back(self) -> None:
        self.attach(self.ends.index(None))

    @invariant()
    def the_books_balance(self) -> None:
        for ring in read_region(self.fd).rings:
            half = self.model[ring.producing_side, ring.queue]
            assert ring.in_flight == len(half.frames)
            assert ring.head - ring.tail == GEOMETRY.slot_count - half.free
            assert (ring.produced.frames, ring.consumed.frames) == (half.published, half.taken)
            assert ring.produced.drops == {cause: count for cause, count in half.drops.items() if count}
            assert ring.balanced
            assert ring.offered == ring.delivered + ring.in_flight + sum(half.drops.values())


TestRingAgainstAModel = RingAgainstAModel.TestCase
TestRingAgainstAModel.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
