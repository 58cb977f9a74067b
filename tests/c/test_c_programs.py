"""Every C test program passes: as the release is compiled, under sanitizers, and on aarch64."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import require
from tools import c_programs
from tools.c_programs import AARCH64, ASAN, PLAIN, PROGRAMS, TSAN, Run, Variant

LONG = ("full", "asan")
KILLED = ("restart_step_test", "restart_test")  # each end that is killed is a process, which ASan makes slow


def cases() -> list[object]:
    """One case for each program, variant and line of arguments; fuzz programs run briefly, where mistakes show."""
    found = []
    for program in sorted(PROGRAMS.glob("*_test.c")):
        variants = [PLAIN, ASAN, AARCH64] + ([TSAN] if c_programs.wants_tsan(program) else [])
        found += [case(program, variant, run) for variant in variants for run in c_programs.runs_in(program, variant)]
    for program in sorted(PROGRAMS.glob("fuzz_*.c")):
        found += [case(program, ASAN, run) for run in c_programs.runs_in(program, ASAN)]
    return found


def case(program: Path, variant: Variant, run: Run) -> object:
    marks = [pytest.mark.full] if is_long(program, variant, run) or variant is AARCH64 else []
    return pytest.param(program, variant, run, marks=marks, id="-".join((program.stem, variant.name, *run.arguments)))


def is_long(program: Path, variant: Variant, run: Run) -> bool:
    return run.only in LONG or (program.stem in KILLED and variant is ASAN)


@pytest.mark.timeout(360)  # the first case of a variant compiles everything
@pytest.mark.parametrize(("program", "variant", "run"), cases())
def test_the_program_succeeds(program: Path, variant: Variant, run: Run) -> None:
    for tool in (variant.compiler, *variant.runner):
        require(shutil.which(tool) is not None, f"{tool} is not installed; ./run test installs it where it may")
    executable = c_programs.build(program, variant)
    status, output = c_programs.call(executable, variant, run.arguments, timeout_s=300)
    assert status == 0, f"{program.name} {' '.join(run.arguments)} ({variant.name}) ended with {status}:\n{output}"


@pytest.mark.timeout(360)
@pytest.mark.parametrize(
    ("name", "variant", "words"),
    [
        ("deliberate_overflow.c", ASAN, "heap-buffer-overflow"),
        ("deliberate_shift.c", ASAN, "shift exponent"),
        ("deliberate_race.c", TSAN, "data race"),
    ],
)
def test_a_deliberate_mistake_is_found_by_its_sanitizer(name: str, variant: Variant, words: str) -> None:
    status, output = c_programs.call(c_programs.build(PROGRAMS / name, variant), variant, (), timeout_s=100)
    assert status != 0
    assert words in output
