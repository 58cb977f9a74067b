"""The broker's journal: the last applied fabric, and which link of it is which memory. Never what is up or not.

One file in the runtime directory, replaced as a whole; the replacing is the moment at which an apply has happened. What
the keeper holds beyond what the journal names is an apply that was interrupted, before or after that moment, and is
removed by the next broker.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from ringway.control.errors import ControlError
from ringway.control.messages import Cause

VERSION: Final = 1
SIZE_MAX: Final = 4 << 20  # bytes; a fabric's text has at most one message


class Journal(Struct, frozen=True, forbid_unknown_fields=True):
    fabric_id: Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]  # names the fabric's entry in the host's registry
    version: int = VERSION
    name: str = ""  # of the file that was applied, for messages
    text: str = ""
    links: dict[str, int] = {}  # link ids by name


def new_journal() -> Journal:
    return Journal(fabric_id=secrets.token_hex(8))


def journal_path(runtime: Path) -> Path:
    return runtime / "journal"


def _fresh_path(runtime: Path) -> Path:
    return runtime / "journal.new"


def read_journal(runtime: Path) -> Journal | None:
    """None where there is none. ControlError (RUNTIME) for one that this release did not write."""
    path = journal_path(runtime)
    with contextlib.suppress(OSError):
        _fresh_path(runtime).unlink()  # of a broker that was killed over it
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as file:
            content = file.read(SIZE_MAX + 1)
        if len(content) > SIZE_MAX:
            raise ValueError(f"it has more than {SIZE_MAX} bytes")
        journal = msgspec.json.decode(content, type=Journal)
        if journal.version != VERSION:
            raise ValueError(f"it has version {journal.version}, and this release writes {VERSION}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # msgspec's own errors are ValueErrors
        message = (
            f"the journal {path} cannot be used ({error}): remove it, and the broker starts with an empty fabric; "
            "links in use go on between their ends until the fabric is applied again"
        )
        raise ControlError(Cause.RUNTIME, message) from None
    return journal


def write_journal(runtime: Path, journal: Journal) -> None:
    """Replace it. ControlError (SYSTEM) and the old one when that cannot be done."""
    path = journal_path(runtime)
    fresh = _fresh_path(runtime)
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(journal))
            file.flush()
            os.fsync(fd)
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        message = f"the journal {path} cannot be written ({error.strerror}): nothing has been changed"
        raise ControlError(Cause.SYSTEM, message) from None
