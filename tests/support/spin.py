"""Spin as the tests use it: a model and its switches in, what the search of all its states came to out."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).resolve().parents[1] / "model"
DEPTH_MAX = 1_500_000  # steps of one execution
MEMORY_MAX_MB = 3500
SEARCH_MAX_S = 120  # of a processor: how busy the machine is does not matter


@dataclass(frozen=True)
class Search:
    """What pan said. A search that ended early, for whatever reason but an error, counts as no search."""

    output: str

    @property
    def errors(self) -> int:
        found = re.search(r"errors: (\d+)$", self.output, re.MULTILINE)
        assert found is not None, f"pan ended without a result:\n{self.output}"
        return int(found[1])

    @property
    def is_complete(self) -> bool:
        cut_short = ("max search depth too small", "out of memory", "MEMLIM", "Search not completed", "truncated")
        return not any(sign in self.output for sign in cut_short)

    @property
    def error(self) -> str:
        """Which claim was found not to hold: an assertion, or that nobody gets stuck."""
        sign = r"^pan:\d+: (assertion violated .*|invalid end state) \(at depth \d+\)$"
        found = re.search(sign, self.output, re.MULTILINE)
        return found[1] if found else ""

    @property
    def unreached(self) -> list[str]:
        """Statements that no execution came to, except for the ends of processes that go on for ever."""
        places = re.findall(r"^\t\S*?(\w+\.pml:\d+), state \d+, (.*)$", self.output, re.MULTILINE)
        return [f"{place}: {statement}" for place, statement in places if statement != '"-end-"']


def search(model: str, switches: tuple[str, ...], folder: Path) -> Search:
    """Search all states of a model, up to the first error. Everything that is made for it goes into folder."""
    call(["spin", *defines(switches), "-a", str(path(model))], folder)
    # Not -O2: the search is no faster with it, and compiling takes twice as long.
    call(["gcc", "-O1", "-w", "-DSAFETY", "-DNOFAIR", f"-DMEMLIM={MEMORY_MAX_MB}", "-o", "pan", "pan.c"], folder)
    return Search(call(["prlimit", f"--cpu={SEARCH_MAX_S}", "./pan", f"-m{DEPTH_MAX}"], folder))


def replay(model: str, switches: tuple[str, ...], folder: Path) -> str:
    """The last steps to the error that a search in folder has found."""
    trail = f"{path(model).name}.trail"
    steps = call(["spin", *defines(switches), "-t", "-k", trail, "-p", "-g", str(path(model))], folder)
    return "\n".join(steps.splitlines()[-100:])


def path(model: str) -> Path:
    return MODELS / f"{model}.pml"


def defines(switches: tuple[str, ...]) -> list[str]:
    return [f"-D{switch}" for switch in switches]


def call(command: list[str], folder: Path) -> str:
    """The command's output; it must succeed, which pan does also when it has found an error."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr
