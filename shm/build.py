"""Builds `ringway.shm._native`, the one extension module, from the C files and the public headers of all C folders."""

import os
from pathlib import Path

from cffi import FFI

# cffi runs this file with the project's folder as working directory, in build isolation too; setuptools refuses
# absolute source paths.
ROOT = Path(os.path.relpath(Path(__file__).resolve().parent.parent))

# In the order in which they build on each other: the folder, its private header for C, its public declarations.
FOLDERS = ("shm", "engine", "stack", "vhost", "agent")
PRIVATE_HEADERS = ("shm/ringway.h", "engine/job.h", "stack/stack.h", "vhost/vhost.h", "agent/agent.h")
PUBLIC_HEADERS = (
    *("shm/layout.h", "shm/api.h", "engine/api.h", "stack/api.h", "stack/function_api.h", "vhost/api.h"),
    "agent/api.h",
)


def existing(paths: tuple[str, ...]) -> list[Path]:
    """A folder that has no C yet has no headers either."""
    return [ROOT / path for path in paths if (ROOT / path).is_file()]


def c_files(suffix: str) -> list[str]:
    return sorted(str(path) for folder in FOLDERS for path in (ROOT / folder).glob(f"*{suffix}"))


# By path from the root: stack/api.h and agent/api.h would otherwise hide behind shm/api.h.
INCLUDES = "".join(f'#include "{path.relative_to(ROOT)}"\n' for path in existing(PRIVATE_HEADERS))

ffibuilder = FFI()
ffibuilder.cdef("\n".join(path.read_text(encoding="utf-8") for path in existing(PUBLIC_HEADERS)))
ffibuilder.set_source(
    "ringway.shm._native",
    INCLUDES,
    sources=c_files(".c"),
    depends=c_files(".h"),
    include_dirs=[str(ROOT), *(str(ROOT / folder) for folder in FOLDERS)],
    extra_compile_args=["-std=gnu11", "-O3", "-fvisibility=hidden", "-pthread"],
    extra_link_args=["-pthread", "-Wl,-Bsymbolic-functions"],  # our own calls of public functions stay direct
)
