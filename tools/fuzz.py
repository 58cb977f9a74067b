"""`./run fuzz [seconds]`: runs every fuzz program of tests/c, each for its share of the time."""

import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tools.c_programs import ASAN, LIBFUZZER, PROGRAMS, ROOT, BuildError, build, call

ROUNDS = "200000"
EMPTY_TARGET = b"int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d && n ? 0 : 0; }"


def with_libfuzzer(program: Path, seconds: int) -> int:
    """Guided by coverage; inputs that found something new are kept for the next time."""
    folder = ROOT / "build" / "fuzz" / program.stem
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    executable = build(program, LIBFUZZER)
    options = [f"-max_total_time={seconds}", "-max_len=4096", "-print_final_stats=1", f"-artifact_prefix={folder}/"]
    return subprocess.run([executable, *options, corpus], cwd=ROOT, check=False).returncode


def with_seeds(program: Path, seconds: int) -> int:
    """The program's own mutations, from one seed after the other."""
    executable = build(program, ASAN)
    end = time.monotonic() + seconds
    status = 0
    while status == 0 and time.monotonic() < end:
        arguments = (ROUNDS, str(secrets.randbits(32)))
        status, output = call(executable, ASAN, arguments, timeout_s=300)
        print(f"{program.stem} {' '.join(arguments)}: exit status {status}")
        if status != 0:
            print(output)
    return status


def has_libfuzzer() -> bool:
    """clang comes with or without its runtime libraries; only linking something tells."""
    if shutil.which("clang") is None:
        return False
    command = ["clang", "-fsanitize=fuzzer,address,undefined", "-x", "c", "-", "-o", os.devnull]
    return subprocess.run(command, input=EMPTY_TARGET, capture_output=True, check=False).returncode == 0


def main(arguments: list[str]) -> int:
    if len(arguments) > 1 or not all(text.isdigit() and int(text) > 0 for text in arguments):
        print("usage: ./run fuzz [seconds], a whole number greater than 0", file=sys.stderr)
        return 2
    programs = sorted(PROGRAMS.glob("fuzz_*.c"))
    seconds = max(1, int(arguments[0] if arguments else 60) // max(1, len(programs)))
    failed = []
    for program in programs:
        print(f"{program.stem}: {seconds} s", flush=True)
        try:
            fuzz = with_libfuzzer if has_libfuzzer() else with_seeds
            status = fuzz(program, seconds)
        except BuildError as error:
            print(error, file=sys.stderr)
            status = 1
        if status != 0:
            failed.append(program.stem)
    print(f"{len(programs) - len(failed)} of {len(programs)} fuzz programs found nothing wrong")
    return 1 if failed or not programs else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
