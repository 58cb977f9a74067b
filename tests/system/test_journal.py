"""The broker's journal: what a broker makes of one that it cannot use, and of one that cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from ringway.broker.journal import SIZE_MAX
from ringway.control.errors import ControlError
from ringway.control.messages import Cause
from tests.support.broker_process import BrokerProcess, run_ringway, short_directory
from tests.support.fabric import Fabric
from tests.support.fabrics import FABRIC
from tests.support.keeper_process import settled_descriptors
from tests.support.network import run
from tests.support.restarts import CHAIN, Chain, come_to, ends_of
from tools.soak.census import keeper_pid


@pytest.fixture
def runtime() -> Iterator[Path]:
    with short_directory() as path:
        yield path / "run"


def changed(**changes: object) -> Callable[[Path], None]:
    def change(journal: Path) -> None:
        journal.write_bytes(msgspec.json.encode({**msgspec.json.decode(journal.read_bytes()), **changes}))

    return change


def become_a_link(journal: Path) -> None:
    journal.rename(journal.with_name("elsewhere"))
    journal.symlink_to("elsewhere")


def become_a_directory(journal: Path) -> None:
    journal.unlink()
    journal.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "malformed": lambda journal: journal.write_bytes(b"no journal"),
    "it has version 2, and this release writes 1": changed(version=2),
    "unknown field `more`": changed(more=1),
    "Expected `str` matching regex": changed(fabric_id="../../etc"),
    f"it has more than {SIZE_MAX} bytes": lambda journal: journal.write_bytes(b" " * (SIZE_MAX + 1)),
    "Too many levels of symbolic links": become_a_link,
    "Is a directory": become_a_directory,
    "holds a fabric that this release does not take (fabric.toml:1: vm.client.kind": changed(
        text='vm.client.kind = "other"\n'
    ),
}


def look_of(path: Path) -> tuple[int, int, bytes]:
    found = path.lstat()
    return found.st_ino, found.st_mode, path.read_bytes() if path.is_file() else b""


def test_a_broker_does_not_start_on_a_journal_that_it_cannot_use_and_touches_nothing(runtime: Path) -> None:
    journal = runtime / "journal"
    with BrokerProcess(runtime) as broker:
        broker.apply()
        before = ends_of(broker.show())
        broker.stop(signal.SIGKILL)
        good, kept = journal.read_bytes(), settled_descriptors(runtime)
        for words, damage in DAMAGES.items():
            damage(journal)
            found = look_of(journal)
            refused = run_ringway("broker", "--runtime", str(runtime))
            assert refused.returncode == 1
            assert refused.stderr.startswith(f"ringway: the journal {journal} ")
            assert words in refused.stderr
            assert "remove it" in refused.stderr
            assert refused.stderr.count("\n") == 1
            assert look_of(journal) == found
            assert settled_descriptors(runtime) == kept
            restore(journal, good)
        broker.start()
        assert ends_of(broker.show()) == before
        assert broker.apply().kept == ["one"]


def restore(journal: Path, content: bytes) -> None:
    if journal.is_dir():
        journal.rmdir()
    journal.unlink(missing_ok=True)
    journal.write_bytes(content)


def test_a_broker_without_its_journal_starts_empty_and_keeps_nothing_of_before(runtime: Path) -> None:
    with BrokerProcess(runtime) as broker:
        broker.restart()
        kept, held = settled_descriptors(runtime), broker.descriptors()
        broker.apply()
        broker.stop(signal.SIGKILL)
        (runtime / "journal").unlink()
        broker.start()
        assert broker.show().links == []
        come_to(broker, kept, held)
        assert broker.apply().made == ["one"]


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    path.mkdir(mode=0o700)
    run("mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "none", str(path))
    try:
        yield path
    finally:
        run("umount", "--lazy", str(path))


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """No byte more can be written there."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        filler.unlink()


@pytest.mark.needs_root
def test_an_apply_whose_journal_cannot_be_written_is_refused_and_the_old_fabric_goes_on(runtime: Path) -> None:
    with small_disk(runtime), BrokerProcess(runtime) as broker, contextlib.closing(Fabric(broker)) as fabric:
        chain = Chain(fabric)
        broker.restart()
        chain.await_agents()
        before, held = ends_of(broker.show()), chain.descriptors()
        other = CHAIN.replace("slots = 64", "slots = 128") + "[vm.more]\n"
        with chain.traffic() as streams, filled(runtime):
            with pytest.raises(ControlError) as caught:
                broker.apply(other)
            assert caught.value.cause is Cause.SYSTEM
            assert f"journal cannot be written ({os.strerror(errno.ENOSPC)})" in caught.value.message
            assert ends_of(broker.show()) == before
            assert chain.descriptors() == held
            for stream in streams:
                stream.pass_on(1000)
            broker.restart()
            assert ends_of(broker.show()) == before
            chain.await_agents()
        assert sorted(broker.apply(other).replaced) == ["direct", "in", "out"]
        broker.stop()


@pytest.mark.needs_root
def test_a_broker_that_cannot_write_its_first_journal_leaves_no_keeper_behind(runtime: Path) -> None:
    with small_disk(runtime), filled(runtime):
        refused = run_ringway("broker", "--runtime", str(runtime))
        assert refused.returncode == 1
        assert "journal cannot be written" in refused.stderr
        assert keeper_pid(runtime) is None


def test_what_a_broker_killed_over_its_journal_left_is_removed(runtime: Path) -> None:
    with BrokerProcess(runtime) as broker:
        broker.apply(FABRIC)
        broker.stop(signal.SIGKILL)
        (runtime / "journal.new").write_bytes(b"{")
        broker.start()
        assert not (runtime / "journal.new").exists()
