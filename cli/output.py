"""The process's own standard streams: there from the start, never the reason why a command fails in its middle.

A stream may be closed when the process starts, its reader may go, its disk be full, its encoding know no arrows. What a
command does, and the status it ends with, must not depend on any of that; what was not printed is all that is lost.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from typing import Final, TextIO

_PLAIN: Final = {"→": "->", "…": "...", "µ": "u"}
_PLAIN_ERRORS: Final = "ringway.plain"


def prepare_streams() -> None:
    """Before anything else is opened: a closed stream's number would become that of a socket or a file."""
    codecs.register_error(_PLAIN_ERRORS, _plain)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - as long as the process
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_PLAIN_ERRORS)


def flush_streams() -> str:
    """Print what is still to be printed. Returns why that cannot be done for standard output, else nothing.

    Otherwise the interpreter tries once more when it ends, and makes the exit status 120.
    """
    trouble = _flush(sys.stdout)
    _flush(sys.stderr)
    return trouble


def announce(line: str) -> None:
    """A line for whoever started this process, if that listens: nothing depends on it."""
    with contextlib.suppress(OSError, ValueError):
        print(line)
    flush_streams()


def say(line: str) -> None:
    """A line for the log on standard error, if anybody can read that."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def _flush(stream: TextIO) -> str:
    try:
        stream.flush()
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):
            null_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null_fd, stream.fileno())
            os.close(null_fd)
        return getattr(error, "strerror", None) or str(error)
    return ""


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in unknown), error.end
