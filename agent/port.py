"""A VM's port with its link attached; for local ports also how an application sends and receives."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Literal, overload

from ringway.agent.carriers import attach
from ringway.agent.errors import AgentCause, AgentError
from ringway.agent.fork import let_go_when_forked
from ringway.control.messages import Offer
from ringway.shm import BreakCause, Consumer, Consumers, DropCause, Frame, Producer
from ringway.stack.steering import Steering

_BURST = 1024  # frames put together for one call into C
_STEP_OR_DROP = 64  # the same where each frame may be stopped by another queue
_STEP = 0.1  # seconds a sleeping call holds its lock: how long a withdrawal may have to wait for it


_Lock = contextlib.AbstractContextManager[object]


class _Every:
    """Several locks as one, always taken in the same order."""

    def __init__(self, locks: Sequence[threading.Lock]) -> None:
        self._locks = locks

    def __enter__(self) -> None:
        for lock in self._locks:
            lock.acquire()

    def __exit__(self, *_: object) -> None:
        for lock in self._locks:
            lock.release()


class _Locks:
    """One for each queue, for the thread that uses that half of it."""

    def __init__(self, queues: int) -> None:
        self._each = [threading.Lock() for _ in range(queues)]
        self.every: _Lock = self._each[0] if queues == 1 else _Every(self._each)

    def of(self, queue: int | None) -> _Lock:
        return self.every if queue is None else self._each[queue]


class Port:
    """One end of a link, attached. Sending and receiving may be done by different threads, each queue by one of each.

    An application uses `send` and `receive` of a local port; for frames in its own C code it takes
    `region.native` and the functions of shm/api.h.
    """

    def __init__(self, vm: str, offer: Offer) -> None:
        self.vm = vm
        self.offer = offer
        self.name = offer.port
        self._life = threading.Lock()  # over the region's mapping, for callers that only look
        self._run_by_agent = False
        # The lifeline is open as long as the end is attached: that is how others know.
        self.region, self.lifeline, self.incarnation = attach(vm, offer)
        queues = self.region.geometry.queues
        self._sending = _Locks(queues)
        self._receiving = _Locks(queues)
        self._steering = Steering(self.region) if queues > 1 else None
        self._forked = False
        let_go_when_forked(self)

    def leave_to_parent(self) -> None:
        """In a forked child: the end is the parent's. AgentError (FORKED) for whoever uses the port there."""
        self._forked = True
        self._life = threading.Lock()
        self._sending = _Locks(self.region.geometry.queues)
        self._receiving = _Locks(self.region.geometry.queues)
        self.region.leave_to_parent()
        self.lifeline.leave_to_parent()

    @property
    def attached(self) -> bool:
        return self.region.attached

    @property
    def broken(self) -> BreakCause:
        """WHOLE while the link can be used, and when the port is detached."""
        with self._life:
            return self.region.broken if self.attached else BreakCause.WHOLE

    @property
    def peer_attached(self) -> bool:
        """Does somebody hold the other end? Known without the broker once it was there.

        Frames sent while nobody does wait in the ring for the next one to attach.
        """
        return self.lifeline.peer_attached

    def check_free(self) -> None:
        """AgentError (NOT_LOCAL) when the agent itself runs the port."""
        if self._run_by_agent:
            message = f"port {self.name!r} of VM {self.vm} is run by its agent (a tap, or part of its stack)"
            raise AgentError(AgentCause.NOT_LOCAL, message)

    def give_out(self) -> None:
        """To an application; AgentError as `check_free` raises it.

        Frames that it takes out would count as lost by a forwarder that was killed before: that one's note is void.
        """
        self.check_free()
        with self._life:
            if self.attached:
                self.region.forget_losses()

    def run_by_agent(self, taken: bool) -> None:
        """Take the port from applications, or give it back: a ring has one producer and one consumer."""
        with self._all():
            self._run_by_agent = taken

    @property
    def frame_max(self) -> int:
        """Bytes of the longest frame this link carries."""
        return self.region.shape.frame_max

    def serve(self, queues: int) -> None:
        """Ask the peer for frames in the first `queues` queues only; it follows flow by flow, if it steers by flow.

        Frames may still come in the others and are to be received. ValueError for a number the link does not have.
        """
        if not 1 <= queues <= self.region.geometry.queues:
            raise ValueError(f"{queues} queues: the link has 1 to {self.region.geometry.queues}")
        with self._life:
            self._check_attached()
            self.check_free()
            self.region.serve((1 << queues) - 1)

    def send(self, frames: Sequence[bytes | Frame], *, queue: int | None = None, timeout: float | None = None) -> int:
        """Send frames in order, waiting for room; returns how many were dealt with when `timeout` seconds were over.

        Each goes into the queue of its flow, among those that the peer wants; or all into `queue`, when that is given.
        Frames sent in both ways are in no order with each other. Frames that the link never carries (runt, oversize)
        are dropped and counted, and so is a whole Frame whose offload data does not fit it. RegionBrokenError,
        AgentError (WITHDRAWN) when the link is gone.
        """
        frames = _list_of_frames(frames)
        deadline = None if timeout is None else time.monotonic() + timeout
        done = 0
        while True:
            with self._use(self._sending.of(queue)):
                sent, full = self._offer(frames[done : done + _BURST], queue)
                done += sent
                if done == len(frames) or _is_over(deadline):
                    return done
                if full is not None:
                    self.region.producers[full].wait(_left(deadline))

    def send_or_drop(self, frames: Sequence[bytes | Frame], *, queue: int | None = None) -> int:
        """Send what there is room for now; the rest is dropped and counted as `full`. Returns how many were sent.

        By flow, or into one queue, as `send`. A frame that its queue does not take is dropped alone when frames are
        sent by flow: the next may be of another queue's.
        """
        frames = _list_of_frames(frames)
        by_flow = queue is None and self._steering is not None
        step = _STEP_OR_DROP if by_flow else len(frames)
        sent = at = 0
        with self._use(self._sending.of(queue)):
            while at < len(frames):
                done, full = self._offer(frames[at : at + step], queue)
                sent, at = sent + done, at + done
                if full is not None:
                    given_up = 1 if by_flow else len(frames) - at
                    self.region.producers[full].drop(DropCause.FULL, given_up)
                    at += given_up
        return sent

    def _offer(self, frames: Sequence[bytes | Frame], queue: int | None) -> tuple[int, int | None]:
        """Send what there is room for; the queue that is full, when not all were sent."""
        if queue is None and self._steering is not None:
            return self._steering.send(frames)
        producer: Producer = self.region.producers[queue or 0]
        done = producer.send(frames)
        return done, None if done == len(frames) else queue or 0

    @overload
    def receive(
        self,
        count: int = 256,
        *,
        queue: int | None = None,
        timeout: float | None = None,
        whole: Literal[False] = False,
    ) -> list[bytes]: ...
    @overload
    def receive(
        self, count: int = 256, *, queue: int | None = None, timeout: float | None = None, whole: Literal[True]
    ) -> list[Frame]: ...
    def receive(
        self, count: int = 256, *, queue: int | None = None, timeout: float | None = None, whole: bool = False
    ) -> list[bytes] | list[Frame]:
        """Take up to `count` frames, waiting for the first one; an empty list after `timeout` seconds.

        From all queues in turn, or from `queue` alone: then somebody has to receive from the others too.

        They are as a wire would have carried them: cut into segments, checksums finished. Segments beyond `count` are
        the next call's; a detach drops them. With `whole` a frame comes as a `Frame` with what is left to do to it,
        which `send` takes: for applications that forward.
        """
        if count < 1:
            raise ValueError(f"count is {count}: ask for one frame at least")
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._use(self._receiving.of(queue)):
                consumer: Consumer | Consumers
                if queue is None and self._steering is not None:
                    consumer = self.region.all_consumers
                else:
                    consumer = self.region.consumers[queue or 0]
                if (frames := consumer.receive(count, whole=whole)) or _is_over(deadline):
                    return frames
                consumer.wait(_left(deadline))

    def _check_attached(self) -> None:
        if self._forked:
            message = f"port {self.name} belongs to the process that this one was forked from: start an Agent here"
            raise AgentError(AgentCause.FORKED, f"{message}, of a VM that has none, or fork before you start one")
        if not self.attached:
            message = f"port {self.name} was detached from link {self.offer.link}: ask the agent for the port again"
            raise AgentError(AgentCause.WITHDRAWN, message)

    @contextlib.contextmanager
    def _use(self, lock: _Lock) -> Iterator[None]:
        with lock:
            self._check_attached()
            self.check_free()
            yield

    @contextlib.contextmanager
    def _all(self) -> Iterator[None]:
        """While no application is inside a call."""
        with self._sending.every, self._receiving.every:
            yield

    def detach(self, timeout: float | None = None) -> None:
        """Give the end back; the agent's `port` then asks for it again. Safe to call twice.

        Waits for calls under way, which take up to a tenth of a second. RegionHeldError when somebody still uses the
        region after `timeout` seconds (None: 10): the end is still this port's, and its link goes on.
        """
        self.check_free()
        with self._all(), self._life:
            self.region.detach(timeout)
        self.lifeline.close()


def _list_of_frames(frames: Sequence[bytes | Frame]) -> Sequence[bytes | Frame]:
    if isinstance(frames, (bytes, bytearray, memoryview, Frame)):
        raise TypeError("send takes a list of frames: put the one frame into brackets")
    return frames


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _left(deadline: float | None) -> float:
    return _STEP if deadline is None else max(0.0, min(_STEP, deadline - time.monotonic()))
