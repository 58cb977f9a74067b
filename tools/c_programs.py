"""Builds the C programs of tests/c together with all C of the project, in variants, and runs them.

What is built lies in build/c/<variant>/ under a name that holds a checksum of everything it was made from, and appears
there by a rename: it is never stale, and concurrent runs do not disturb each other.
"""

import functools
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("shm", "engine", "stack", "vhost", "agent")
PROGRAMS = ROOT / "tests" / "c"

WARNINGS = ("-Wall", "-Wextra", "-Werror")
COMMON = ("-std=gnu11", "-g", "-pthread", "-I.", *(f"-I{folder}" for folder in FOLDERS), "-Itests/c")
UBSAN_AND_ASAN = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


@dataclass(frozen=True)
class Variant:
    """One way to build and run a program."""

    name: str
    compiler: str
    flags: tuple[str, ...]
    program_flags: tuple[str, ...] = ()  # for the program's own file
    link_flags: tuple[str, ...] = ()
    runner: tuple[str, ...] = ()


PLAIN = Variant("plain", "gcc", ("-O2", *WARNINGS))
ASAN = Variant("asan", "gcc", ("-O1", *WARNINGS, *UBSAN_AND_ASAN))
TSAN = Variant("tsan", "gcc", ("-O1", "-Wall", "-Wextra", "-fsanitize=thread"))
AARCH64 = Variant(
    "aarch64", "aarch64-linux-gnu-gcc", ("-O2", *WARNINGS), link_flags=("-static",), runner=("qemu-aarch64",)
)
# libFuzzer brings a main of its own; the program's becomes an ordinary function.
LIBFUZZER = Variant(
    "libfuzzer",
    "clang",
    ("-O1", "-fsanitize=fuzzer-no-link", *UBSAN_AND_ASAN),
    program_flags=("-Dmain=plain_main",),
    link_flags=("-fsanitize=fuzzer",),
)

SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "abort_on_error=0:detect_leaks=1:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}


class BuildError(Exception):
    """A program did not compile or link; the message is the compiler's."""


@dataclass(frozen=True)
class Run:
    """One call of a program, as a comment in its source asks for it."""

    arguments: tuple[str, ...]
    only: (
        str  # "full": with --full, as the release is compiled; "asan": with --full, in that variant; "tsan"; "": always
    )


def runs(program: Path) -> list[Run]:
    """`/* arguments: ... */` lines of the source, one run each; a program without any runs once, without arguments."""
    found = re.findall(r"/\* arguments( full| tsan| asan)?: *(.*?) *\*/", program.read_text(encoding="utf-8"))
    asked = [Run(tuple(text.split()), only.strip()) for only, text in found]
    return asked if any(run.only == "" for run in asked) else [Run((), ""), *asked]


def runs_in(program: Path, variant: Variant) -> list[Run]:
    """Those for one variant. Lines for the thread sanitizer stand in for the others there; long runs are for speed."""
    every = runs(program)
    if variant is TSAN:
        return [run for run in every if run.only == "tsan"] or [run for run in every if run.only == ""]
    long = {PLAIN: "full", ASAN: "asan"}.get(variant)
    return [run for run in every if run.only in ("", long)]


def wants_tsan(program: Path) -> bool:
    return "/* variants: tsan */" in program.read_text(encoding="utf-8")


def build(program: Path, variant: Variant) -> Path:
    """The executable; made only if what it is made from has changed."""
    library = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.c"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        own = pool.submit(_object, program, variant, variant.program_flags)
        objects = [*pool.map(lambda source: _object(source, variant), library)]
        objects.append(own.result())
    command = [variant.compiler, "-pthread", *variant.flags, *variant.link_flags, *map(str, objects)]
    return _made(variant, program.stem, "", command, inputs=objects)


def call(executable: Path, variant: Variant, arguments: Sequence[str], timeout_s: float) -> tuple[int, str]:
    """Run it. Returns its exit status and all it printed."""
    command = [*variant.runner, str(executable), *arguments]
    status, output = _call(command, timeout_s)
    if "unexpected memory mapping" in output:
        # ThreadSanitizer wants its shadow where this kernel's address randomisation may put something else.
        status, output = _call(["setarch", "--addr-no-randomize", *command], timeout_s)
    return status, output


def _call(command: Sequence[str], timeout_s: float) -> tuple[int, str]:
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **SANITIZER_OPTIONS},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        printed = (expired.stdout or b"").decode(errors="replace")
        return -1, f"{printed}\nstill running after {timeout_s} s: killed"
    return done.returncode, done.stdout.decode(errors="replace")


def _object(source: Path, variant: Variant, extra: tuple[str, ...] = ()) -> Path:
    name = "-".join(source.relative_to(ROOT).with_suffix("").parts)
    command = [variant.compiler, *COMMON, *variant.flags, *extra, "-c", str(source.relative_to(ROOT))]
    return _made(variant, name, ".o", command, inputs=[source, *_headers()])


def _headers() -> list[Path]:
    return sorted(path for folder in (*FOLDERS, "tests/c") for path in (ROOT / folder).glob("*.h"))


@functools.cache
def _compiler_version(compiler: str) -> bytes:
    return subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout


def _made(variant: Variant, name: str, suffix: str, command: Sequence[str], inputs: Iterable[Path]) -> Path:
    digest = hashlib.sha256(repr(command).encode() + _compiler_version(variant.compiler))
    for path in inputs:
        digest.update(path.read_bytes())
    folder = ROOT / "build" / "c" / variant.name
    made = folder / f"{name}-{digest.hexdigest()[:16]}{suffix}"
    if made.exists():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        output = Path(scratch) / "output"
        done = subprocess.run([*command, "-o", str(output)], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        output.rename(made)
    return made
