"""The socket of a vhost port: waits for a front end, or goes to it, and serves one at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ringway.vhost.back_end import QueuePairs
from ringway.vhost.inbox import Inbox
from ringway.vhost.session import Session, SessionError, State

PATH_MAX: Final = 107  # bytes: struct sockaddr_un less its terminating 0
RETRY_S: Final = 0.2  # between attempts to reach a front end that listens
SILENT_S: Final = 2.0  # that a front end may be connected without a word


class SocketError(Exception):
    """The path cannot be listened at: which, and what to do."""


def check_path(path: str) -> None:
    """SocketError."""
    if len(os.fsencode(path)) > PATH_MAX:
        raise SocketError(
            f"{path} is longer than a socket's path can be, {PATH_MAX} bytes: set `socket` to a shorter one"
        )


def listen_at(path: str, mode: int) -> socket.socket:
    """A listening socket, in the place of one that a pump before has left. SocketError."""
    check_path(path)
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(Path(path).lstat().st_mode):
                raise SocketError(f"{path} is there, and is no socket: remove it, or set `socket` to another path")
            Path(path).unlink()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            before = os.umask(0o177)  # nobody comes in before its mode is set
            try:
                listener.bind(path)
            finally:
                os.umask(before)
            Path(path).chmod(mode)
            listener.listen(4)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise SocketError(f"{path}: {error.strerror}") from None
    return listener


class FrontEnd:
    """A connected front end and its session."""

    def __init__(self, connection: socket.socket, pairs: QueuePairs) -> None:
        self.connection = connection
        self.session = Session(pairs, pairs.count)
        self._inbox = Inbox(connection)
        self._silent_until: float | None = time.monotonic() + SILENT_S

    def serve(self) -> None:
        """Answer what is there. SessionError."""
        while (message := self._inbox.receive()) is not None:
            self._silent_until = None
            answer = self.session.on_message(message)
            try:
                # A front end reads the answer that it waits for; one that lets them pile up is no loss.
                if answer and self.connection.send(answer, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) != len(answer):
                    raise SessionError("it does not read its answers")
            except OSError as error:
                raise SessionError(f"it takes no answer: {error.strerror}") from None

    def check_time(self, now: float) -> None:
        """SessionError when it keeps us waiting in the middle of a message, or says nothing at all."""
        deadline = self.deadline()
        if deadline is not None and now >= deadline:
            raise SessionError("it has not gone on with a message, or never begun one")

    def deadline(self) -> float | None:
        return self._inbox.deadline() or self._silent_until

    def close(self) -> None:
        self._inbox.close()
        self.connection.close()
        self.session.close()


class Server:
    """A thread that serves the front ends of one port. What they are told and what fails goes to `log`."""

    def __init__(self, path: str, mode: int | None, pairs: QueuePairs, name: str, log: Callable[[str], None]) -> None:
        """`mode`: of the socket that we listen at; None: the front end listens, and we go to it. SocketError."""
        self._path = path
        self._pairs = pairs
        self._name = name
        self._log = log
        self._listener = listen_at(path, mode) if mode is not None else None
        check_path(path)
        self._front_end: FrontEnd | None = None
        self._told = "no front end is connected"
        self._problems: dict[int, str] = {}  # by ring
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name=f"vhost {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def told(self) -> str:
        """What `show` says. Any thread."""
        return self._told

    def failed(self) -> bool:
        return self._thread.ident is not None and not self._thread.is_alive()

    def leave_to_parent(self) -> None:
        """In a forked child, where the thread does not run."""
        if self._front_end is not None:
            self._front_end.connection.close()
        if self._listener is not None:
            self._listener.close()
        os.close(self._stop_fd)

    def close(self) -> None:
        """End the session and the thread; front ends find nobody from here on."""
        os.eventfd_write(self._stop_fd, 1)
        if self._thread.ident is not None:
            self._thread.join()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                Path(self._path).unlink()
            self._listener.close()
        os.close(self._stop_fd)

    # The thread's own from here on.

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as error:  # noqa: BLE001 - logged; the runner sees that the thread has ended, and is made again
            self._log(f"vhost port {self._name} failed: {error}")
        finally:
            self._end("the pump stops", quietly=True)

    def _turn(self) -> bool:
        """Wait for something, and deal with it. False: to stop."""
        poller = select.poll()
        listened = [self._stop_fd, *self._pairs.trouble_fds()]
        listened += [self._listener.fileno()] if self._listener is not None else []
        listened += [self._front_end.connection.fileno()] if self._front_end is not None else []
        for fd in listened:
            poller.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(self._patience_ms())}
        if self._stop_fd in ready:
            return False
        for fd in ready.intersection(self._pairs.trouble_fds()):
            os.eventfd_read(fd)
        if self._front_end is not None:
            self._serve(self._front_end, self._front_end.connection.fileno() in ready)
        elif self._listener is None:
            self._go()
        if self._listener is not None and self._listener.fileno() in ready:
            self._accept(self._listener)
        self._tell()
        return True

    def _patience_ms(self) -> int | None:
        if self._front_end is None:
            return None if self._listener is not None else int(RETRY_S * 1000)
        deadline = self._front_end.deadline()
        return None if deadline is None else max(0, int((deadline - time.monotonic()) * 1000) + 1)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                time.sleep(RETRY_S)  # the kernel goes on saying that somebody is there
            return
        if self._front_end is not None:
            connection.close()  # the first one has the rings
            return
        self._begin(connection)

    def _go(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.connect(self._path)
        except OSError:
            connection.close()  # not there yet: it is tried again
            return
        self._begin(connection)

    def _begin(self, connection: socket.socket) -> None:
        self._front_end = FrontEnd(connection, self._pairs)
        self._log(f"vhost port {self._name}: a front end is connected")

    def _serve(self, front_end: FrontEnd, readable: bool) -> None:
        try:
            if readable:
                front_end.serve()
            front_end.check_time(time.monotonic())
            if self._pairs.vanished():
                raise SessionError("its memory was taken away")
            self._look_for_breaks(front_end)
        except SessionError as end:
            self._end(str(end))

    def _look_for_breaks(self, front_end: FrontEnd) -> None:
        before, self._problems = self._problems, self._pairs.broken()
        for index, why in self._problems.items():
            if before.get(index) != why:
                self._log(f"vhost port {self._name}: ring {index} is not served any more: {why}")
                front_end.session.on_broken(index)

    def _end(self, why: str, quietly: bool = False) -> None:
        front_end, self._front_end = self._front_end, None
        self._problems = {}
        if front_end is None:
            return
        front_end.close()
        if not quietly:
            self._log(f"vhost port {self._name}: the session has ended: {why}")

    def _tell(self) -> None:
        """One string, stored at once: others read it."""
        if self._front_end is None:
            self._told = "no front end is connected"
        elif self._problems:
            self._told = "; ".join(f"ring {index} is broken: {why}" for index, why in self._problems.items())
        elif self._front_end.session.state is not State.RUNNING:
            self._told = "the guest's driver is not running"
        else:
            self._told = ""
