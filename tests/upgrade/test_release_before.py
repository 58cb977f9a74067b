"""The release before is what the file says, is built once, and stands beside the tree's without touching it."""

from __future__ import annotations

import subprocess

import pytest

from tests.upgrade.conftest import Releases
from tests.upgrade.link import EndProcess
from tests.upgrade.release import NAMED, ROOT, TREE, BeforeError, commit_of, release_before

pytestmark = pytest.mark.timeout(300)  # the first test builds


def test_the_release_before_has_the_layout_of_its_commit(releases: Releases) -> None:
    folder = releases["before"].folder
    assert folder is not None
    named = f"{commit_of(NAMED.read_text(encoding='utf-8'))}:shm/layout.h"
    shown = subprocess.run(["git", "-C", str(ROOT), "show", named], capture_output=True)
    if shown.returncode == 0:  # else it was built when the history was there
        assert (folder / "ringway" / "shm" / "layout.h").read_bytes() == shown.stdout


def test_a_second_run_finds_what_the_first_has_built(releases: Releases) -> None:
    folder = releases["before"].folder
    assert folder is not None
    built = folder.stat()
    assert release_before() == releases["before"]
    assert folder.stat() == built


def test_each_process_runs_the_release_that_it_is_told_to(releases: Releases) -> None:
    for name, other in (("before", "tree"), ("tree", "before")):
        end = EndProcess(releases[name])
        try:
            assert releases[name].is_run_by(end.process.pid)
            assert not releases[other].is_run_by(end.process.pid)
        finally:
            end.kill()


def test_both_releases_have_the_same_major_layout(releases: Releases) -> None:
    found = []
    for name in ("before", "tree"):
        end = EndProcess(releases[name])
        found.append(end.ask("layout"))
        end.kill()
    (before_major, before_minor), (major, minor) = found
    assert before_major == major, "ends of two majors do not link: say so in docs/running.md"
    assert before_minor <= minor


def test_what_is_started_after_the_release_before_was_in_use_is_the_trees_again(releases: Releases) -> None:
    environment = TREE.environment
    with releases["before"].in_use():
        assert TREE.environment != environment
    assert TREE.environment == environment


@pytest.mark.parametrize("text", ["", "# a comment alone\n", "89b1ea8\n", "0" * 40 + "\n" + "1" * 40 + "\n", "main\n"])
def test_a_file_that_does_not_name_one_commit_is_refused(text: str) -> None:
    with pytest.raises(BeforeError, match="one line with a commit's 40 digits"):
        commit_of(text)
