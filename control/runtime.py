"""Where a broker and its clients meet: the runtime directory and the names in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ringway.control.errors import ControlError
from ringway.control.messages import Cause

SOCKET_PATH_MAX: Final = 107  # sun_path is 108 bytes with its final NUL, unix(7)


def runtime_directory(chosen: str | Path | None = None) -> Path:
    """`chosen`, else $RINGWAY_RUNTIME, else /run/ringway for root, else $XDG_RUNTIME_DIR/ringway."""
    if chosen or os.environ.get("RINGWAY_RUNTIME"):
        return Path(chosen or os.environ["RINGWAY_RUNTIME"]).absolute()
    if os.geteuid() == 0:
        return Path("/run/ringway")
    if os.environ.get("XDG_RUNTIME_DIR"):
        return Path(os.environ["XDG_RUNTIME_DIR"], "ringway").absolute()
    message = "no runtime directory: XDG_RUNTIME_DIR is not set; give --runtime DIR or set RINGWAY_RUNTIME"
    raise ControlError(Cause.RUNTIME, message)


def control_path(runtime: Path) -> Path:
    return socket_path(runtime, "control.sock")


def handover_path(runtime: Path) -> Path:
    return socket_path(runtime, "handover.sock")


def socket_path(runtime: Path, name: str) -> Path:
    """Of a socket in the directory; ControlError if its name is one that the kernel does not take."""
    path = runtime / name
    try:
        str(path).encode()
    except UnicodeEncodeError:
        message = f"the directory {str(path)!r} has a name that is not UTF-8: choose another with --runtime"
        raise ControlError(Cause.RUNTIME, message) from None
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_MAX:
        message = (
            f"the socket path {str(path)!r} has {length} bytes and the kernel takes {SOCKET_PATH_MAX}: "
            "choose a shorter directory with --runtime or RINGWAY_RUNTIME"
        )
        raise ControlError(Cause.RUNTIME, message)
    return path
