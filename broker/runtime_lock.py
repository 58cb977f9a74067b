"""The broker's claim on its runtime directory: private, and one broker at a time."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from ringway.control.errors import ControlError
from ringway.control.messages import Cause
from ringway.control.runtime import control_path


def claim(runtime: Path) -> int:
    """Make the directory if need be, lock it, clear away what a killed broker left. Returns the lock, to be kept."""
    control = control_path(runtime)
    make_private(runtime)
    try:
        lock_fd = os.open(runtime / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _unusable(runtime, error) from None
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        control.unlink(missing_ok=True)
    except BlockingIOError:
        os.close(lock_fd)
        message = f"a broker is already running on {runtime}: use it, stop it, or choose another --runtime"
        raise ControlError(Cause.RUNTIME, message) from None
    except OSError as error:
        os.close(lock_fd)
        message = f"{error.filename or runtime} cannot be removed ({error.strerror}): remove it by hand"
        raise ControlError(Cause.RUNTIME, message) from None
    return lock_fd


def make_private(runtime: Path) -> None:
    """Make the directory if need be; ControlError when it is not its owner's alone."""
    try:
        runtime.mkdir(mode=0o700, exist_ok=True)
        _check_private(runtime)
    except OSError as error:
        raise _unusable(runtime, error) from None


def _unusable(runtime: Path, error: OSError) -> ControlError:
    message = f"{runtime} cannot be used ({error.strerror}): choose another directory with --runtime"
    return ControlError(Cause.RUNTIME, message)


def _check_private(runtime: Path) -> None:
    """Whoever can enter the directory can speak to the broker, so nobody else may."""
    found = runtime.lstat()
    if not stat.S_ISDIR(found.st_mode):
        message = f"{runtime} is not a directory: remove it or choose another with --runtime"
    elif found.st_uid != os.geteuid():
        message = f"{runtime} belongs to uid {found.st_uid}, not to {os.geteuid()}: choose another with --runtime"
    elif found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        remedy = "choose a directory of its own" if mode & stat.S_ISVTX else "chmod 700 it, or choose another"
        message = f"{runtime} is open to others (mode {mode:04o}): {remedy} with --runtime"
    else:
        return
    raise ControlError(Cause.RUNTIME, message)
