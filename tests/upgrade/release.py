"""The two releases that these tests join: the tree's own, and the one before it, built from the commit in `before`."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import require

ROOT = Path(__file__).resolve().parents[2]
NAMED = Path(__file__).with_name("before")
BUILDS = ROOT / "build" / "before"


class BeforeError(Exception):
    """The release before cannot be built; the message says why, and what to do."""


@dataclass(frozen=True)
class Release:
    """One of the two, by the folder in which processes are to look for `ringway` first; None: the tree's own."""

    name: str
    folder: Path | None

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that runs this release."""
        if self.folder is None:
            return dict(os.environ)
        inherited = os.environ.get("PYTHONPATH")
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(self.folder), inherited)))}

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Whatever is started meanwhile, by whomever, runs this release."""
        with contextlib.ExitStack() as restoring:
            restoring.callback(os.environ.update, dict(os.environ))
            if "PYTHONPATH" not in os.environ:
                restoring.callback(os.environ.pop, "PYTHONPATH", None)
            os.environ.update(self.environment)
            yield

    def is_run_by(self, pid: int) -> bool:
        """Is this release's extension, and no other, mapped by that process?"""
        maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
        found = {Path(path).parent for path in re.findall(r"(/\S.*/_native\.\S+\.so)$", maps, re.MULTILINE)}
        return found == {ROOT / "shm" if self.folder is None else self.folder / "ringway" / "shm"}


TREE = Release("tree", None)


def commit_of(text: str) -> str:
    """The one commit that a file like `before` names. BeforeError when it does not."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) != 1 or not re.fullmatch(r"[0-9a-f]{40}", lines[0]):
        raise BeforeError(f"tests/upgrade/before has {lines}: it is to have one line with a commit's 40 digits")
    return lines[0]


def release_before() -> Release:
    """Built at the first call, and found at later ones. Skips where the history or git is not there."""
    commit = commit_of(NAMED.read_text(encoding="utf-8"))
    # An extension fits one kind of python and machine.
    folder = BUILDS / commit / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
    if not folder.exists():
        require(shutil.which("git") is not None, "git is not installed, which has the release before this one")
        reached = _git("cat-file", "-e", f"{commit}^{{commit}}").returncode == 0
        require(reached, f"this clone does not reach back to {commit[:12]}: git fetch --unshallow")
        _build(commit, folder)
    return Release("before", folder)


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True)


def _build(commit: str, folder: Path) -> None:
    """Install the commit into a folder, which is there when all of it is: it appears by a rename."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        source, target = Path(scratch) / "source", Path(scratch) / "target"
        source.mkdir()
        archive = _git("archive", commit)
        _check(archive, f"git archive {commit}")
        _check(subprocess.run(["tar", "-x", "-C", source], input=archive.stdout, capture_output=True), "tar")
        # As a user would, but with the tools of this environment: there may be no network.
        options = ("--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir", "--disable-pip-version-check")
        pip = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)]
        _check(subprocess.run(pip, capture_output=True), "building it")
        try:
            target.rename(folder)
        except OSError:
            if not folder.exists():  # else somebody was quicker, and that one is as good
                raise


def _check(done: subprocess.CompletedProcess[bytes], what: str) -> None:
    if done.returncode != 0:
        told = (done.stdout[-4000:] + done.stderr).decode(errors="replace")
        raise BeforeError(f"the release before cannot be built; {what} failed:\n{told}")
