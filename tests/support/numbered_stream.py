"""Numbered frames that go from port to port without end, and must each arrive once and in order."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from ringway.agent import Port

HEADER = bytes.fromhex("020000000002 020000000001 88b5")  # from one station to another; a type for experiments
PATIENCE = 20.0  # seconds


class Stream:
    """A thread sends and receives. It never has more under way than `window`, so that no forwarder's ring is full."""

    def __init__(self, source: Port, target: Port, window: int = 32) -> None:
        self.sent = self.received = 0
        self._source = source
        self._target = target
        self._window = window
        self._ending = self._cancelled = False
        self._error: BaseException | None = None
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def pass_on(self, frames: int) -> None:
        """Return when so many more have arrived."""
        with self._moved:
            goal = self.received + frames
            arrived = self._moved.wait_for(lambda: self._error is not None or self.received >= goal, PATIENCE)
        assert self._error is None, self._error
        assert arrived, f"{self.sent} frames were sent, and only {self.received} of them have come"

    def cancel(self) -> None:
        """Stop, whatever is still under way."""
        self._cancelled = self._ending = True
        self._thread.join()

    def end(self) -> None:
        """Send no more; all that were sent have arrived when it returns."""
        self._ending = True
        self._thread.join()
        assert self._error is None, self._error
        assert self.received == self.sent

    def _run(self) -> None:
        try:
            deadline = time.monotonic() + PATIENCE
            while not (self._cancelled or (self._ending and self.received == self.sent)):
                self._send()
                if self._receive():
                    deadline = time.monotonic() + PATIENCE
                assert time.monotonic() < deadline, f"{self.sent} frames were sent, and {self.received} have come"
        except BaseException as error:  # noqa: BLE001 - raised where the stream's user looks
            with self._moved:
                self._error = error
                self._moved.notify_all()

    def _send(self) -> None:
        room = 0 if self._ending else self._window - (self.sent - self.received)
        frames = [HEADER + number.to_bytes(46, "big") for number in range(self.sent, self.sent + room)]
        if frames:
            self.sent += self._source.send(frames, timeout=0)

    def _receive(self) -> bool:
        frames = self._target.receive(timeout=0.02)
        numbers = [int.from_bytes(frame[len(HEADER) :], "big") for frame in frames]
        expected = list(range(self.received, self.received + len(frames)))
        assert numbers == expected, f"{numbers} came, where {expected} were to come"
        with self._moved:
            self.received += len(frames)
            self._moved.notify_all()
        return bool(frames)


@contextlib.contextmanager
def streaming(source: Port, target: Port) -> Iterator[Stream]:
    """In the end all that was sent has arrived."""
    stream = Stream(source, target)
    try:
        yield stream
    except BaseException:
        stream.cancel()
        raise
    stream.end()
