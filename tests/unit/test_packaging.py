"""The package installs as a wheel and in place, under one name, with its C extension inside."""

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TREE = ("shm", "engine", "control", "broker", "stack", "agent", "cli", "vhost")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")

pytestmark = pytest.mark.timeout(300)  # compiles the extension


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, in a folder with a space in its name, so that nothing lying about in the tree is used."""
    source = tmp_path_factory.mktemp("a copy")
    for folder in TREE:
        if (ROOT / folder).is_dir():
            shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in FILES:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source / name)
    pip("wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "dist", cwd=source)
    (built,) = (source / "dist").glob("ringway-*.whl")
    return built


def pip(*arguments: str | Path, cwd: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def origin(python: str | Path, module: str, cwd: Path) -> Path:
    code = f"import json, sys, {module}; json.dump({module}.__file__, sys.stdout)"
    done = subprocess.run([python, "-c", code], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout))


def test_a_wheel_holds_one_top_level_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"ringway"}
    assert [name for name in names if name.startswith("ringway/shm/_native.") and name.endswith(".so")]
    assert "ringway/__init__.py" not in names


def test_a_wheel_holds_the_layout_that_it_was_compiled_from(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("ringway/shm/layout.h") == (ROOT / "shm" / "layout.h").read_bytes()


def test_a_wheel_installs_and_imports_away_from_the_source(wheel: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    pip("--python", venv / "bin" / "python", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    (site,) = (venv / "lib").glob("python3.*/site-packages")
    # What ringway depends on comes from the environment of this test: there may be no network to install it from.
    (site / "dependencies.pth").write_text(sysconfig.get_path("platlib") + "\n")
    assert origin(venv / "bin" / "python", "ringway.shm._native", tmp_path).is_relative_to(site / "ringway" / "shm")
    assert not {path.name for path in site.iterdir()} & set(TREE)
    assert (venv / "bin" / "ringway").is_file()
    done = subprocess.run([venv / "bin" / "ringway", "headers"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == f"{site.resolve() / 'ringway'}\n", done.stderr
    source = ROOT / "examples" / "functions" / "mark.c"
    strict = ("-Wall", "-Wextra", "-Werror")
    for standard in ("c11", "gnu17"):
        command = ["cc", f"-std={standard}", *strict, "-shared", "-fPIC", f"-I{done.stdout.strip()}", "-o", "mark.so"]
        built = subprocess.run([*command, source], cwd=tmp_path, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr


def test_the_editable_install_uses_the_tree(tmp_path: Path) -> None:
    found = origin(sys.executable, "ringway.shm._native", tmp_path)
    assert found.parent == ROOT / "shm"
    assert found.name.startswith("_native.")
