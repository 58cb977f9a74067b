"""Packet functions in C: a shared object, sealed in memory before any of its code runs, and its entry."""

from __future__ import annotations

import ctypes
import fcntl
import os
from _ctypes import dlclose
from collections.abc import Mapping
from typing import Final

from ringway.shm import _native
from ringway.shm._native import ffi
from ringway.stack.function import Function, FunctionCause, FunctionError, Value

_ENTRY: Final = "rway_function_entry"
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def load_library(name: str, content: bytes, options: Mapping[str, Value], digest: str) -> Function:
    """The function in these bytes of a shared object. FunctionError."""
    _show_our_symbols()
    fd = _sealed(name, content)
    try:
        library = _opened(name, fd)
    except BaseException:
        os.close(fd)
        raise

    def unload() -> None:
        dlclose(library._handle)
        # The linker knows an object by its path: while it is loaded no other may come to stand there.
        if not _is_loaded(fd):  # as one stays that was linked with -z nodelete
            os.close(fd)

    try:
        entry = ctypes.addressof(ctypes.c_uint32.in_dll(library, _ENTRY))
    except ValueError:
        unload()
        message = f"it exports no {_ENTRY}: define it, as stack/function.h says"
        raise FunctionError(FunctionCause.ENTRY, name, message) from None
    return Function(name, ffi.cast("const struct rway_function *", entry), options, digest, unload)


def _show_our_symbols() -> None:
    """What the extension exports is for functions to call, and Python has loaded it for itself alone."""
    ctypes.CDLL(_native.__file__, os.RTLD_NOW | os.RTLD_NOLOAD | os.RTLD_GLOBAL)


def _sealed(name: str, content: bytes) -> int:
    """A copy that nobody can change: running code is not what a file becomes, and no half-written file is run."""
    fd = os.memfd_create(f"ringway-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _is_loaded(fd: int) -> bool:
    try:
        library = ctypes.CDLL(_path(fd), os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        return False
    dlclose(library._handle)
    return True


def _opened(name: str, fd: int) -> ctypes.CDLL:
    """All its symbols are found now, not while it runs."""
    path = _path(fd)
    try:
        return ctypes.CDLL(path, os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as error:
        why = str(error).replace(path, f"{name}.so")
        message = f"it cannot be loaded ({why}): build it with `cc -shared -fPIC` against this release's headers"
        raise FunctionError(FunctionCause.LOAD, name, message) from None
