"""The keeper's process: holds descriptors under keys, so that a killed broker's successor can take them back.

It is run by path and knows nothing else of ringway, so that it starts fast, stays small, and has nothing to fail over.

    client                          keeper
    connect                         SELF: version, pid, started for a broker, hard limit on open files
    PUT key, value + descriptors    (none) replaces the entry
    DROP key                        (none) forgets the entry
    LIST                            ENTRY key, value + descriptors for each, then SELF
    SELF                            SELF, when all that was put before is kept
    LOCK                            LOCK + its lock, for a keeper in its place, if it was started for a broker
    END                             (exits, if it was started for a broker)
    anything else                   REFUSED reason, and hangs up

Messages are SEQPACKET: op (1 byte), key (32 bytes, padded with zeros), value (opaque). Root and the keeper's own uid
are served, one client at a time: the next one waits in the listener's backlog until this one has hung up or is dead and
all that it had sent is read. So a client's list has everything that the one before it put, and nobody can take the
descriptors of a broker that runs.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import resource
import select
import signal
import socket
import stat
import struct
import sys
import time

SOCKET_NAME = "keeper.sock"
NEXT_NAME = "keeper.next"  # the socket of a keeper that is to take the place of another, until it does
LOCK_NAME = "keeper.lock"
VERSION = 2  # of the messages: a keeper may outlive the release that started it

PUT, DROP, LIST, END, ENTRY, SELF, REFUSED, LOCK = range(1, 9)
HEAD = struct.Struct("<B32s")
WHO = struct.Struct("<HI?Q")  # the value of SELF: version, pid, started for a broker, hard limit on open files
VALUE_SIZE = 1 << 10  # bytes, at most
DESCRIPTORS_PER_ENTRY = 253  # the kernel's SCM_MAX_FD

ENTRIES_MAX = 48 << 10  # three for each link, of which a fabric file can describe some 15,000
RESERVE = 32  # descriptors for the interpreter, the lock, the listener and the client
KEPT_BACK = RESERVE + DESCRIPTORS_PER_ENTRY  # of the limit on open files, not for entries
BACKLOG = 16  # clients that wait for the one before them
LOOK_MS = 2000  # between looks whether the runtime directory is still there

CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
DESCRIPTOR = array.array("i").itemsize
ANCILLARY_SIZE = socket.CMSG_SPACE(DESCRIPTORS_PER_ENTRY * DESCRIPTOR)


class Entry:
    """Owns its descriptors."""

    __slots__ = ("fds", "value")

    def __init__(self, value: bytes, fds: array.array[int]) -> None:
        self.value = value
        self.fds = fds


NOTHING = Entry(b"", array.array("i"))


class KeeperServer:
    """`directory_fd` is the runtime directory, in which `listener` is bound; all three are taken over."""

    def __init__(
        self, directory_fd: int, lock_fd: int, listener: socket.socket, for_broker: bool, open_files_max: int
    ) -> None:
        self._directory_fd = directory_fd
        self._lock_fd = lock_fd
        self._listener = listener
        self._bound = _identity(directory_fd, listener.getsockname())
        self._for_broker = for_broker
        self._open_files_max = open_files_max
        self._descriptors_max = open_files_max - KEPT_BACK
        self._entries: dict[bytes, Entry] = {}
        self._descriptors = 0  # in all entries
        self._room = bytearray(HEAD.size + VALUE_SIZE)
        self._said = ""
        self._ended = False

    def run(self, first: socket.socket | None) -> None:
        """Serve `first`, if it is there, and whatever connects, until a client ends it or nothing can reach it."""
        client = first or self._next()
        while client is not None:
            with client:
                fault = self._refusal(client) or self._serve(client)
                if fault:
                    self._say_goodbye(client, fault)
            client = None if self._ended else self._next()
        for name in (SOCKET_NAME, NEXT_NAME):
            if _identity(self._directory_fd, name) == self._bound:
                os.unlink(name, dir_fd=self._directory_fd)

    def _next(self) -> socket.socket | None:
        """None when nobody can reach it any more."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while _identity(self._directory_fd) == self._bound:
            if not poll.poll(LOOK_MS):
                continue
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                continue
            except OSError:
                time.sleep(0.01)  # the host is out of descriptors or memory: the waiting client would wake us at once
                continue
            client.setblocking(True)  # one that does not read what it has asked for holds up nobody else
            return client
        return None

    def _refusal(self, client: socket.socket) -> str:
        _, uid, _ = CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
        served = uid in (0, os.geteuid())
        return "" if served else f"uid {uid} is neither root nor the keeper's ({os.geteuid()})"

    def _say_goodbye(self, client: socket.socket, reason: str) -> None:
        with contextlib.suppress(OSError):
            client.send(HEAD.pack(REFUSED, b"") + reason.encode(), socket.MSG_DONTWAIT)
        if reason != self._said:  # not again and again, in a flood
            _say(f"hung up on a client: {reason}")
            self._said = reason

    # -- what a client says

    def _serve(self, client: socket.socket) -> str:
        """Until it hangs up, dies or ends the keeper; or why it is to be hung up on."""
        self._say_who(client)
        while not self._ended:
            try:
                size, ancillary, flags, _ = client.recvmsg_into([self._room], ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
            except ConnectionResetError:
                continue  # it died without reading all; the kernel says so once, ahead of what it had sent before
            except OSError as error:
                return f"it cannot be heard ({error.strerror})"
            fds = _descriptors(ancillary)
            if size == 0:
                _close(fds)
                return ""
            fault = self._judge(size, flags, fds) or self._obey(client, size, fds)
            if fault:
                _close(fds)
                return fault
        return ""

    def _judge(self, size: int, flags: int, fds: array.array[int]) -> str:
        """What is wrong with the form of the message in the room, or nothing."""
        if flags & socket.MSG_TRUNC:
            return f"a message has more than {len(self._room)} bytes"
        if flags & socket.MSG_CTRUNC:
            return "the descriptors of a message did not all arrive"
        if size < HEAD.size:
            return f"a message has {size} bytes, and its head alone {HEAD.size}"
        op, _ = HEAD.unpack_from(self._room)
        if op != PUT and (fds or size > HEAD.size):
            return f"a message with op {op} has a value or descriptors, which only those with op {PUT} have"
        return ""

    def _obey(self, client: socket.socket, size: int, fds: array.array[int]) -> str:
        """Do what the message in the room says, or return why not."""
        op, key = HEAD.unpack_from(self._room)
        if op == PUT:
            return self._put(key, Entry(bytes(self._room[HEAD.size : size]), fds))
        if op == DROP:
            self._account(self._entries.pop(key, NOTHING), NOTHING)
        elif op == LIST:
            self._say_list(client)
        elif op == SELF:
            self._say_who(client)
        elif op == END and self._for_broker:
            self._ended = True
        elif op == LOCK and self._for_broker:
            self._send(client, LOCK, fds=array.array("i", [self._lock_fd]))
        elif op in (END, LOCK):
            return "this keeper was not started for a broker: it ends by SIGTERM"
        else:
            return f"there is no op {op}"
        return ""

    def _put(self, key: bytes, entry: Entry) -> str:
        old = self._entries.get(key, NOTHING)
        if old is NOTHING and len(self._entries) >= ENTRIES_MAX:
            return f"{ENTRIES_MAX} entries are kept, and no more can be"
        if self._descriptors - len(old.fds) + len(entry.fds) > self._descriptors_max:
            return f"{self._descriptors} descriptors are kept, and {self._descriptors_max} may be: raise LimitNOFILE"
        self._entries[key] = entry
        self._account(old, entry)
        return ""

    def _account(self, old: Entry, new: Entry) -> None:
        """`new` has come into the place of `old`, which is over."""
        self._descriptors += len(new.fds) - len(old.fds)
        _close(old.fds)

    # -- what it is told

    def _say_who(self, client: socket.socket) -> None:
        self._send(client, SELF, value=WHO.pack(VERSION, os.getpid(), self._for_broker, self._open_files_max))

    def _say_list(self, client: socket.socket) -> None:
        if all(self._send(client, ENTRY, key, entry.value, entry.fds) for key, entry in self._entries.items()):
            self._say_who(client)

    def _send(
        self, client: socket.socket, op: int, key: bytes = b"", value: bytes = b"", fds: array.array[int] = NOTHING.fds
    ) -> bool:
        """False for a client that is dead, or that the kernel lets have no more. What it has put counts even so: it is
        told, and heard to its end."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else []
        try:
            client.sendmsg([HEAD.pack(op, key), value], ancillary)
        except OSError as error:
            with contextlib.suppress(OSError):
                client.send(HEAD.pack(REFUSED, b"") + f"no answer: {error.strerror}".encode(), socket.MSG_DONTWAIT)
                client.shutdown(socket.SHUT_WR)
            return False
        return True


def _identity(directory_fd: int, name: str = SOCKET_NAME) -> tuple[int, int] | None:
    """Which file has that name in that directory, wherever that is by now."""
    try:
        found = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except OSError:
        return None
    return (found.st_dev, found.st_ino)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> array.array[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % DESCRIPTOR])
    return found


def _close(fds: array.array[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):  # what a file system says to the last close concerns its writer
            os.close(fd)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"ringway keeper: {line}\n".encode(errors="replace"))


def _begin(runtime: str, lent_fd: int | None) -> tuple[int, int, socket.socket]:
    """The directory, the lock that says whose it is, and the listener in it. Leaves / as working directory. `lent_fd`:
    the lock of a keeper in whose place this one is to come. Both have it, so that it is free at no moment."""
    directory_fd = os.open(runtime, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    beginning_fd = os.open(runtime, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Whoever finds the keeper's lock taken may then count on its listener, for it had to wait for that here.
        fcntl.flock(beginning_fd, fcntl.LOCK_EX)
        lock_fd, listener = _listen(directory_fd, lent_fd)
    finally:
        os.close(beginning_fd)
    os.chdir("/")
    return directory_fd, lock_fd, listener


def _listen(directory_fd: int, lent_fd: int | None) -> tuple[int, socket.socket]:
    """The lock and the listener. The working directory is then that directory."""
    if lent_fd is None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock_fd, name = os.open(LOCK_NAME, flags, 0o600, dir_fd=directory_fd), SOCKET_NAME
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        lock_fd, name = lent_fd, NEXT_NAME
        found = os.fstat(lock_fd)
        if (found.st_dev, found.st_ino) != _identity(directory_fd, LOCK_NAME):
            raise OSError(errno.ESTALE, "the keeper there is that of another directory")
    if _identity(directory_fd, name) is not None:
        os.unlink(name, dir_fd=directory_fd)
    os.umask(0o177)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    os.fchdir(directory_fd)
    listener.bind(name)  # by a relative name, which is never too long
    listener.listen(BACKLOG)
    return lock_fd, listener


def _detach() -> None:
    """Into a process that shares nothing with the broker that started it. That sees its child end: it is ready."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if os.fork():
        os._exit(0)
    os.setsid()
    null_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null_fd, 0)
    os.dup2(null_fd, 1)
    if stat.S_ISFIFO(os.fstat(2).st_mode):
        os.dup2(null_fd, 2)  # whoever reads the broker's log there waits for its end, which would not come
    os.close(null_fd)


def _announce() -> None:
    """Tell systemd, if it has started us and waits for it (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
            notifier.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)


def main() -> int:
    for_broker = sys.argv[2:3] == ["--for-broker"]
    instead = for_broker and sys.argv[3:4] == ["--instead"]
    if len(sys.argv) != 2 + for_broker + 3 * instead:
        sys.stderr.write("usage: keeper_server.py RUNTIME [--for-broker [--instead LOCK_FD CLIENT_FD]]\n")
        return 2
    lent_fd, client_fd = (int(sys.argv[4]), int(sys.argv[5])) if instead else (None, None)
    runtime = sys.argv[1]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        directory_fd, lock_fd, listener = _begin(runtime, lent_fd)
    except OSError as error:
        taken = isinstance(error, BlockingIOError)
        reason = "a keeper is already running there" if taken else f"it cannot be used ({error.strerror})"
        # A broker reads the reason there, and passes it on.
        (sys.stdout if for_broker else sys.stderr).write(f"ringway: no keeper for {runtime!r}: {reason}\n")
        return 1
    if for_broker:
        _detach()
    else:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as SIGTERM does it: nothing has to be put away
        sys.stdout.write(f"keeper ready on {runtime}\n")
        sys.stdout.flush()
        _announce()
    with contextlib.suppress(OSError):  # for `ps`
        name_fd = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
        os.write(name_fd, b"ringway-keeper")
        os.close(name_fd)
    open_files_max = hard if hard != resource.RLIM_INFINITY else sys.maxsize
    first = socket.socket(fileno=client_fd) if client_fd is not None else None
    KeeperServer(directory_fd, lock_fd, listener, for_broker, open_files_max).run(first)
    return 0


if __name__ == "__main__":
    status = main()
    with contextlib.suppress(OSError, ValueError):  # the reader may be gone, and the interpreter would make it 120
        sys.stdout.flush()
    os._exit(status)
