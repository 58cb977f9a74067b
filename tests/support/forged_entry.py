"""Entries of the registry as no broker writes them, and files of a fabric's name in /dev/shm."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ringway.control.registry import object_name, object_path

GOOD_LINK: dict[str, Any] = {
    "name": "one",
    "link_id": 7,
    "ends": [
        {"vm": "client", "port": "net", "holder_pid": 4711, "incarnation": 2},
        {"vm": "server", "port": "net", "holder_pid": 0, "incarnation": 0},
    ],
}


def forged(fabric_id: str, /, **changes: object) -> bytes:
    """A good entry except for the changes."""
    entry = {
        "fabric_id": fabric_id,
        "broker_pid": 4710,
        "runtime": "/nowhere/ringway",
        "device": 1,
        "inode": 2,
        "links": [GOOD_LINK],
        "version": 1,
    }
    return json.dumps(entry | changes).encode()


def changed_link(path: str, value: object) -> dict[str, Any]:
    """The good link with another value at "member" or "side.member"."""
    link = json.loads(json.dumps(GOOD_LINK))
    side, _, member = path.rpartition(".")
    (link["ends"][int(side)] if side else link)[member] = value
    return link


@contextlib.contextmanager
def placed(fabric_id: str, content: bytes, size: int | None = None, mode: int = 0o400) -> Iterator[Path]:
    """A file of that fabric's name with that content, cut off or enlarged to `size`; gone afterwards."""
    path = object_path(object_name(fabric_id))
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(fd, content)
        if size is not None:
            os.ftruncate(fd, size)
        os.fchmod(fd, mode)
        yield path
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)


def new_fabric_id() -> str:
    return secrets.token_hex(8)
