"""Directory segments as no broker writes them, and files of a fabric's name in /dev/shm."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from ringway.control.directory import COPY_SIZE, HEAD, HEAD_FIELDS, JUDGED, LINK, LINK_FIELDS, MAGIC, OBJECT_SIZE
from ringway.control.listing import object_path

Value = bytes | int

GOOD_LINK: dict[str, Value] = {
    "link_id": 7,
    "name": b"one",
    "a_vm": b"client",
    "a_port": b"net",
    "a_holder_pid": 4711,
    "a_incarnation": 2,
    "b_vm": b"server",
    "b_port": b"net",
    "b_holder_pid": 0,
    "b_incarnation": 0,
}


def forged_copy(fabric_id: str, links: Sequence[dict[str, Value]] = (GOOD_LINK,), /, **changes: Value) -> bytes:
    """A good copy but for the changes, its digest made to match unless it is one of them."""
    head: dict[str, Value] = {
        "magic": MAGIC,
        "version": 1,
        "digest": b"",
        "sequence": 1,
        "fabric_id": int(fabric_id, 16),
        "broker_pid": 4710,
        "device": 1,
        "inode": 2,
        "link_count": len(links),
        "runtime": b"/nowhere/ringway",
    }
    assert list(head) == [name for name, _ in HEAD_FIELDS]
    records = b"".join(LINK.pack(*(link[name] for name, _ in LINK_FIELDS)) for link in links)
    head |= changes
    judged = HEAD.pack(*head.values())[JUDGED:] + records
    if "digest" not in changes:
        head["digest"] = hashlib.blake2b(judged, digest_size=16).digest()
    return HEAD.pack(*head.values()) + records


@contextlib.contextmanager
def placed(fabric_id: str, *copies: bytes, size: int = OBJECT_SIZE, mode: int = 0o400) -> Iterator[Path]:
    """A file of that fabric's name with these copies in it, gone afterwards."""
    path = object_path(fabric_id)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        for number, copy in enumerate(copies):
            os.pwrite(fd, copy, number * COPY_SIZE)
        os.ftruncate(fd, size)
        os.fchmod(fd, mode)
        yield path
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)


def new_fabric_id() -> str:
    return secrets.token_hex(8)
