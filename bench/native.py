"""The C loops of bench/: compiled when they have changed, and joined to the installed library's public functions.

This is what a user's own C code does: compile against the headers, and be loaded into a process whose
`ringway.shm._native` is made visible to it.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from cffi import FFI

import ringway.shm
from ringway.shm import _native

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

COMMAND = ("gcc", "-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-pthread")

ffi = FFI()
_library = ffi.dlopen(_native.__file__, ffi.RTLD_NOW | ffi.RTLD_GLOBAL)  # loaded already; held: its symbols are seen


def include_dirs() -> list[Path]:
    """Where the headers of the installed library are."""
    shm = Path(ringway.shm.__file__).resolve().parent
    return [shm.parent, shm, HERE]


def _digest(sources: list[Path]) -> str:
    compiler = subprocess.run([COMMAND[0], "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(repr(COMMAND).encode() + compiler)
    for path in [*sources, *sorted(HERE.glob("*.h")), *sorted(include_dirs()[1].glob("*.h"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _compiled() -> Path:
    """Appears by a rename, so that processes that start at once do not disturb each other."""
    sources = sorted(HERE.glob("*.c"))
    folder = ROOT / "build" / "bench"
    made = folder / f"loops-{_digest(sources)}.so"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{path}" for path in include_dirs()]
        # Not a name by pid: processes in two PID namespaces may have the same.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            output = Path(scratch) / "loops.so"
            subprocess.run([*COMMAND, *includes, *map(str, sources), "-o", str(output)], check=True)
            output.rename(made)
    return made


def _load() -> Any:
    ffi.cdef("\n".join((HERE / name).read_text(encoding="utf-8") for name in ("board.h", "api.h", "race.h")))
    return ffi.dlopen(str(_compiled()))


lib = _load()


def pointer(native: Any) -> Any:
    """An object of the library, such as `struct rway_producer *`, as the loops take it."""
    return ffi.cast("void *", int(_native.ffi.cast("uintptr_t", native)))
