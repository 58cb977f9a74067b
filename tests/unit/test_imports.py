"""Imports go one way, names say something, and only shm/ knows what a shared byte means."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# shm <- engine <- stack, vhost; shm, control <- broker; everything but broker <- agent; everything <- cli
MAY_IMPORT: dict[str, set[str]] = {
    "shm": set(),
    "engine": {"shm"},
    "control": set(),
    "stack": {"shm", "engine"},
    "vhost": {"shm", "engine"},
    "agent": {"shm", "engine", "stack", "vhost", "control"},
    "broker": {"shm", "control"},
    "cli": {"shm", "engine", "control", "stack", "vhost", "agent", "broker"},
}
FOLDERS = [folder for folder in MAY_IMPORT if any((ROOT / folder).glob("*.*"))]
EMPTY_WORDS = {"utils", "util", "common", "core", "helper", "helpers", "manager", "base"}


def files(folder: str, *suffixes: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names of all modules that a file imports, inside functions too."""
    package = ["ringway", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def wrong_imports(folder: str, path: Path) -> list[str]:
    allowed = MAY_IMPORT[folder] | {folder}
    wrong = []
    for module in imported_modules(path):
        top, _, rest = module.partition(".")
        if top == "ringway" and rest.split(".")[0] not in allowed:
            wrong.append(module)
        if top in {"tests", "tools", "examples", "bench"} | MAY_IMPORT.keys():
            wrong.append(f"{module} (as a top-level package)")
    return wrong


@pytest.mark.parametrize("folder", FOLDERS)
def test_python_imports_go_one_way(folder: str) -> None:
    wrong = {str(path.relative_to(ROOT)): wrong_imports(folder, path) for path in files(folder, ".py", ".pyi")}
    assert not {path: modules for path, modules in wrong.items() if modules}


@pytest.mark.parametrize("folder", FOLDERS)
def test_c_includes_go_one_way(folder: str) -> None:
    homes = {path.name: path.parent.name for name in MAY_IMPORT for path in files(name, ".h") if path.name != "api.h"}
    allowed = MAY_IMPORT[folder] | {folder}
    wrong = []
    for path in files(folder, ".c", ".h"):
        for include in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE):
            parts = Path(include).parts
            home = next((part for part in parts[:-1] if part in MAY_IMPORT), homes.get(parts[-1], folder))
            if home not in allowed:
                wrong.append(f"{path.relative_to(ROOT)} includes {include}")
    assert not wrong


def test_a_broker_starts_without_what_only_others_need() -> None:
    """A new broker is to have its links back within half a second, and each of these takes 20 ms of it or more."""
    program = "import ringway.cli.main, ringway.broker.loop, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "zmq" in loaded
    assert not loaded & {"asyncio", "pyroute2", "rich"}


def test_the_import_check_sees_a_wrong_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "stack" / "wrong.py"
    path.parent.mkdir()
    path.write_text("def f():\n    from ..broker import fabric\n    import ringway.agent.main\n    import shm\n")
    assert wrong_imports("stack", path) == [
        "ringway.broker.fabric",
        "ringway.agent.main",
        "shm (as a top-level package)",
    ]


def test_nothing_has_a_name_that_says_nothing() -> None:
    named: list[str] = []
    for folder in (*FOLDERS, "tests", "examples", "tools", "bench"):
        for path in files(folder, ".py", ".c", ".h", ".sh"):
            stems = [*path.relative_to(ROOT).parts[:-1], path.stem]
            named += [str(path) for stem in stems if EMPTY_WORDS & set(re.split(r"[^a-z]+", stem.lower()))]
            if path.suffix == ".py":
                named += [f"{path}: {name}" for name in class_names(path) if EMPTY_WORDS & words(name)]
    assert not named


def class_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            yield node.name


def words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z][a-z]*|[a-z]+", name)}


def test_only_shm_touches_the_shared_structs() -> None:
    shared = re.compile(
        r"->\s*(head|tail|wake_consumer|wake_producer)\b|\bstruct\s+rway_(ring_control|desc|extension|header)\b"
    )
    touched = []
    for folder in MAY_IMPORT.keys() - {"shm"}:
        for path in files(folder, ".c", ".h"):
            code = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
            touched += [f"{path.relative_to(ROOT)}: {match.group(0)}" for match in shared.finditer(code)]
    assert not touched
