"""The broker's hand on its keeper: reaches it or starts it, puts descriptors in its keeping, and takes them back."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ringway.broker import keeper_server as server
from ringway.control.errors import ControlError
from ringway.control.messages import Cause
from ringway.control.names import printable
from ringway.control.runtime import socket_path

START_TIMEOUT: Final = 10.0  # seconds; it takes some 40 ms on a quiet machine
SEND_TIMEOUT: Final = 1  # seconds
ANSWER_TIMEOUT: Final = 5  # seconds
TIMEVAL: Final = struct.Struct("ll")
SEND_SIZE: Final = 1 << 20  # bytes on their way to a busy keeper; the kernel may give less
KEY_SIZE: Final = 32
VERSION_AND_PID: Final = struct.Struct("<HI")  # how each version's SELF begins


class KeeperGone(ControlError):  # noqa: N818 - says what has happened
    """The keeper has died, hung up, or does not listen. What it held may be lost; links go on without it."""

    def __init__(self, message: str) -> None:
        super().__init__(Cause.SYSTEM, message)


class Kept(NamedTuple):
    """An entry. The descriptors are the caller's own duplicates."""

    key: str
    value: bytes
    fds: list[int]


class Keeper:
    """A connection to a keeper, the only one that it serves; made by `reach`."""

    def __init__(self, connection: socket.socket, who: bytes) -> None:
        if len(who) < VERSION_AND_PID.size:
            raise _garbled(server.SELF)
        version, self.pid = VERSION_AND_PID.unpack_from(who)
        if version != server.VERSION:
            message = (
                f"the keeper (pid {self.pid}) speaks version {version}, and this broker {server.VERSION}: "
                f"stop it (kill {self.pid}); links that are up go on, and the next apply recreates them"
            )
            raise ControlError(Cause.RUNTIME, message)
        if len(who) != server.WHO.size:
            raise _garbled(server.SELF)
        _, _, self.for_broker, open_files_max = server.WHO.unpack(who)
        self.open_files_max: int = open_files_max
        self._connection = connection

    @classmethod
    def reach(cls, runtime: Path) -> Keeper:
        """The keeper of that directory; if there is none, one is started, which is `for_broker`. Waits for a client
        before this one to end. Or ControlError."""
        path = socket_path(runtime, server.SOCKET_NAME)
        connection = _connect(path)
        if connection is None:
            reason = _start(runtime)
            connection = _connect(path)  # even so: another may have been started at the same time
            if connection is None:
                raise ControlError(Cause.SYSTEM, f"the keeper could not be started: {reason}")
        return cls._welcomed(connection)

    @classmethod
    def _welcomed(cls, connection: socket.socket) -> Keeper:
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        try:
            if not poll.poll(ANSWER_TIMEOUT * 1000):
                raise _crowded()
            op, _, value, fds = _receive(connection)
            _close_all(fds)
            if op != server.SELF:
                raise _garbled(op)
            return cls(connection, value)
        except BaseException:
            connection.close()
            raise

    @property
    def room(self) -> int:
        """How many descriptors it can keep, in all entries."""
        return max(0, self.open_files_max - server.KEPT_BACK)

    def successor(self, runtime: Path) -> Keeper:
        """Another keeper, with this process's limits, which shares this one's lock and has nothing. Nobody else reaches
        it before it `replace`s this one, and it ends with its connection until then. ControlError."""
        self._send(server.LOCK)
        op, _, _, lock = _receive(self._connection)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            if op != server.LOCK or len(lock) != 1:
                raise _garbled(op)
            _set_options(ours)
            reason = _start(runtime, "--instead", *lock, theirs.fileno())
            theirs.close()  # or its end would not be seen
            return Keeper._welcomed(ours)
        except KeeperGone:
            raise ControlError(Cause.SYSTEM, f"another keeper could not be started: {reason}") from None
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            _close_all(lock)

    def replace(self, runtime: Path) -> None:
        """Whatever connects to the keeper of that directory reaches this one, a `successor`. ControlError."""
        path = socket_path(runtime, server.SOCKET_NAME)
        try:
            path.with_name(server.NEXT_NAME).rename(path)
        except OSError as error:
            message = f"another keeper cannot take the place of the one at {path} ({error.strerror})"
            raise ControlError(Cause.SYSTEM, message) from None

    def take_all(self) -> list[Kept]:
        """All entries, those included that a killed predecessor had just put; the keys of the earliest come first.
        KeeperGone, or ControlError (LIMIT: this process may not have so many descriptors), and none of them: the
        connection is then of no further use."""
        kept: list[Kept] = []
        self._send(server.LIST)
        try:
            while True:
                op, key, value, fds = _receive(self._connection)
                kept.append(Kept(key.rstrip(b"\0").decode(errors="replace"), value, fds))
                if op == server.SELF:
                    _close_all(kept.pop().fds)
                    return kept
                if op != server.ENTRY:
                    raise _garbled(op)
        except BaseException:
            for entry in kept:
                _close_all(entry.fds)
            self._connection.shutdown(socket.SHUT_RDWR)  # so that the rest of the list is not taken for another answer
            raise

    def put(self, key: str, value: bytes, fds: Sequence[int]) -> None:
        """Replace the entry of that key; the descriptors stay the caller's. Safe from this process's end when it
        returns: the message is then in the keeper's queue. KeeperGone if that was not possible; ValueError for a key of
        more than 32 bytes, a value of more than 1 KiB, more than 253 descriptors."""
        if len(value) > server.VALUE_SIZE or len(fds) > server.DESCRIPTORS_PER_ENTRY:
            message = (
                f"the entry {key!r} has {len(value)} bytes and {len(fds)} descriptors, and a keeper takes up to "
                f"{server.VALUE_SIZE} and {server.DESCRIPTORS_PER_ENTRY}: divide it"
            )
            raise ValueError(message)
        self._send(server.PUT, key, value, fds)

    def drop(self, key: str) -> None:
        """Forget the entry of that key, if there is one. Raises what `put` raises."""
        self._send(server.DROP, key)

    def settle(self) -> None:
        """Return when all that was put is kept. KeeperGone, with its reason, when it has refused something."""
        self._send(server.SELF)
        op, _, _, fds = _receive(self._connection)
        _close_all(fds)
        if op != server.SELF:
            raise _garbled(op)

    def last_word(self) -> str:
        """Why it is gone, as far as it has said so."""
        return f"{_last_word(self._connection)} (pid {self.pid})"

    def fileno(self) -> int:
        """Readable when the keeper is gone: it never speaks unasked."""
        return self._connection.fileno()

    def gone(self) -> bool:
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(0))

    def await_exit(self, seconds: float) -> bool:
        """Whether it has exited within that time."""
        try:
            pid_fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            poll = select.poll()
            poll.register(pid_fd, select.POLLIN)
            return bool(poll.poll(seconds * 1000))
        finally:
            os.close(pid_fd)

    def end(self) -> None:
        """Make a keeper that is `for_broker` let go of everything and exit, and wait until it has; another stays. The
        connection is closed in any case. ControlError if it does not exit."""
        try:
            if self.for_broker:
                self._end()
        finally:
            self.close()

    def close(self) -> None:
        self._connection.close()

    def _end(self) -> None:
        with contextlib.suppress(KeeperGone):
            self._send(server.END)
        if not self.await_exit(ANSWER_TIMEOUT):
            message = f"the keeper (pid {self.pid}) does not exit within {ANSWER_TIMEOUT} s: kill it"
            raise ControlError(Cause.SYSTEM, message)

    def _send(self, op: int, key: str = "", value: bytes = b"", fds: Sequence[int] = ()) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._connection.sendmsg([server.HEAD.pack(op, _key(key)), value], ancillary)
        except BlockingIOError:
            raise KeeperGone(f"the keeper (pid {self.pid}) did not listen for {SEND_TIMEOUT} s") from None
        except ConnectionError:
            raise KeeperGone(self.last_word()) from None
        except OSError as error:
            message = f"{len(fds)} descriptors could not be given to the keeper (pid {self.pid}): {error.strerror}"
            raise ControlError(Cause.SYSTEM, message) from None


def command(runtime: Path, *options: str) -> list[str]:
    """How to run a keeper's process. By path, isolated and without `site`: it needs nothing that they would bring."""
    return [sys.executable, "-I", "-S", server.__file__, str(runtime), *options]


def _key(key: str) -> bytes:
    encoded = key.encode()
    if len(encoded) > KEY_SIZE or b"\0" in encoded:
        raise ValueError(f"the key {key!r} is not one of up to {KEY_SIZE} bytes without zeros: choose another")
    return encoded


def _connect(path: Path) -> socket.socket | None:
    """None when nobody listens there."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _set_options(connection)
    try:
        connection.connect(os.fsencode(path))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        message = f"the keeper at {path} cannot be reached ({error.strerror}): look what the process on it does"
        raise ControlError(Cause.SYSTEM, message) from None
    return connection


def _set_options(connection: socket.socket) -> None:
    # Not settimeout: a connect that has to wait for its place in the backlog would fail at once.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, TIMEVAL.pack(SEND_TIMEOUT, 0))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, TIMEVAL.pack(ANSWER_TIMEOUT, 0))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_SIZE)


def _start(runtime: Path, option: str = "", *descriptors: int) -> str:
    """Start a keeper, and wait until it listens. Returns why it does not, if so."""
    try:
        # Its child, not itself, is the keeper: what we wait for here is its readiness. It is nobody's zombie later on.
        started = subprocess.run(
            command(runtime, "--for-broker", *([option] if option else []), *map(str, descriptors)),
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            stdout=subprocess.PIPE,
            timeout=START_TIMEOUT,
            check=False,
        )
    except OSError as error:
        return f"{sys.executable} cannot be run ({error.strerror})"
    except subprocess.TimeoutExpired:
        return f"it was not ready within {START_TIMEOUT:g} s"
    return started.stdout.decode(errors="replace").strip() or f"it ended with exit code {started.returncode}"


def _receive(connection: socket.socket) -> tuple[int, bytes, bytes, list[int]]:
    """One message of the keeper: op, key, value, and descriptors, which are the caller's."""
    try:
        payload, ancillary, flags = _receive_bytes(connection)
    except BlockingIOError:
        raise KeeperGone(f"the keeper did not answer within {ANSWER_TIMEOUT} s") from None
    except OSError as error:
        raise KeeperGone(f"the keeper's answer did not come: {error.strerror}") from None
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    try:
        _check(payload, flags)
    except ControlError:
        _close_all(found)
        raise
    op, key = server.HEAD.unpack_from(payload)
    return op, key, payload[server.HEAD.size :], list(found)


def _receive_bytes(connection: socket.socket) -> tuple[bytes, list[tuple[int, int, bytes]], int]:
    for last in (False, True):
        try:
            payload, ancillary, flags, _ = connection.recvmsg(
                server.HEAD.size + server.VALUE_SIZE, server.ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC
            )
            break
        except ConnectionResetError:
            # Said once, when the keeper has hung up without reading all, and ahead of what it had sent before.
            if last:
                raise
    return payload, ancillary, flags


def _check(payload: bytes, flags: int) -> None:
    if not payload:
        raise KeeperGone("the keeper is gone")
    if flags & socket.MSG_CTRUNC:
        message = "the keeper's descriptors did not all arrive: raise this process's ulimit -n (LimitNOFILE)"
        raise ControlError(Cause.LIMIT, message)
    if flags & socket.MSG_TRUNC or len(payload) < server.HEAD.size:
        raise ControlError(Cause.PROTOCOL, f"the keeper sent {len(payload)} bytes, which are no message: stop it")
    if payload[0] == server.REFUSED:
        reason = printable(payload[server.HEAD.size :].decode(errors="replace"))
        raise KeeperGone(f"the keeper has hung up: {reason}")


def _last_word(connection: socket.socket) -> str:
    """Why the keeper has gone, as far as it has said so."""
    try:
        _close_all(_receive(connection)[3])
    except ControlError as error:
        return error.message
    return "the keeper has hung up"


def _crowded() -> KeeperGone:
    message = (
        f"the keeper has not let this process in within {ANSWER_TIMEOUT} s: it serves one client at a time, so end the "
        "one that it serves (`ss -xp` shows which), or the keeper if it does not run on"
    )
    return KeeperGone(message)


def _garbled(op: int) -> ControlError:
    return ControlError(Cause.PROTOCOL, f"the keeper sent op {op}, which was not to be expected: stop it")


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
