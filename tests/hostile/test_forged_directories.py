"""Anybody may put anything of a fabric's name into /dev/shm: it is named and left alone, and the others are listed."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.broker.directory import Directory, remove_leftovers
from ringway.control.directory import (
    HEAD,
    LINKS_MAX,
    DirectoryCause,
    DirectoryError,
    DirectoryState,
    decode,
    object_name,
)
from ringway.control.errors import ControlError
from ringway.control.listing import OWNERS_SHARE, ListedFabric, list_fabrics, object_path, opened, read_state
from ringway.control.messages import PID_MAX, Cause
from tests.conftest import require
from tests.hostile.forged_directory import GOOD_LINK, Value, forged_copy, new_fabric_id, placed
from tests.system.broker_process import run_ringway, short_directory

HEADS: list[tuple[DirectoryCause, str, Value]] = [
    (DirectoryCause.MAGIC, "magic", b"RWAYLISU"),
    (DirectoryCause.MAGIC, "magic", b""),
    (DirectoryCause.VERSION, "version", 0),
    (DirectoryCause.VERSION, "version", 2**64 - 1),
    (DirectoryCause.INCOMPLETE, "digest", b"x" * 16),
    (DirectoryCause.INCOMPLETE, "link_count", 2),
    (DirectoryCause.INCOMPLETE, "link_count", 0),
    (DirectoryCause.FIELD, "link_count", LINKS_MAX + 1),
    (DirectoryCause.FIELD, "link_count", 2**64 - 1),
    (DirectoryCause.FIELD, "fabric_id", 0),
    (DirectoryCause.FIELD, "broker_pid", 0),
    (DirectoryCause.FIELD, "broker_pid", PID_MAX + 1),
    (DirectoryCause.FIELD, "broker_pid", 2**64 - 1),
    (DirectoryCause.FIELD, "runtime", b""),
    (DirectoryCause.FIELD, "runtime", b"run/ringway"),
    (DirectoryCause.FIELD, "runtime", b"/run\0/ringway"),
    (DirectoryCause.FIELD, "runtime", b"/run/\xff\xfe"),
]
LINKS: list[tuple[str, Value]] = [
    ("link_id", 0),
    ("link_id", 2**63),
    *((name, text) for name in ("name", "a_vm", "b_port") for text in (b"", b"UP", b"../x", b"a\nb", b"a\0b", b"\xff")),
    ("name", b"a" * 64),
    ("a_vm", b"a" * 64),
    ("a_vm", b"a.b"),
    ("b_port", b"a.b"),
    ("a_holder_pid", PID_MAX + 1),
    ("b_holder_pid", 2**64 - 1),
    ("a_incarnation", 2**32),
    ("b_incarnation", 2**64 - 1),
]


@pytest.fixture
def neighbour() -> Iterator[str]:
    """A good one beside, by its fabric's id."""
    fabric_id = new_fabric_id()
    with short_directory() as runtime:
        directory = Directory(fabric_id, runtime)
        yield fabric_id
        directory.close(unlink=True)


def listed(fabric_id: str) -> ListedFabric | None:
    """As the list has it; else None, and one note names the object."""
    listing = list_fabrics()
    found = [fabric for fabric in listing.fabrics if fabric.fabric_id == fabric_id]
    named = [note for note in listing.notes if note.startswith(f"/dev{object_name(fabric_id).replace('/', '/shm/')} ")]
    assert len(found) + len(named) == 1
    return found[0] if found else None


def cause_of(fabric_id: str) -> DirectoryCause:
    with pytest.raises(DirectoryError) as caught, opened(fabric_id) as fd:
        read_state(fd, fabric_id)
    return caught.value.cause


def check_refused(fabric_id: str, cause: DirectoryCause) -> None:
    path = object_path(fabric_id)
    assert cause_of(fabric_id) is cause
    assert listed(fabric_id) is None
    assert object_name(fabric_id) not in remove_leftovers()
    assert path.lstat()


def test_the_forger_writes_what_a_broker_would() -> None:
    """Else the rows below would be refused for what they have in common."""
    fabric_id = new_fabric_id()
    with placed(fabric_id, forged_copy(fabric_id)):
        fabric = listed(fabric_id)
        assert fabric is not None
        assert not fabric.running
        assert [end.holder_pid for end in fabric.links[0].ends] == [4711, 0]


@pytest.mark.parametrize(("cause", "field", "value"), HEADS)
def test_an_absurd_head_is_refused_by_name(cause: DirectoryCause, field: str, value: Value) -> None:
    fabric_id = new_fabric_id()
    with placed(fabric_id, forged_copy(fabric_id, **{field: value})):
        check_refused(fabric_id, cause)


@pytest.mark.parametrize(("field", "value"), LINKS)
def test_an_absurd_link_is_refused_by_name(field: str, value: Value) -> None:
    fabric_id = new_fabric_id()
    with placed(fabric_id, forged_copy(fabric_id, [{**GOOD_LINK, field: value}])):
        check_refused(fabric_id, DirectoryCause.FIELD)


@pytest.mark.parametrize("other", [{"name": b"two"}, {"link_id": 8}])
def test_two_links_of_one_name_or_id_are_refused(other: dict[str, Value]) -> None:
    fabric_id = new_fabric_id()
    with placed(fabric_id, forged_copy(fabric_id, [GOOD_LINK, {**GOOD_LINK, **other}])):
        check_refused(fabric_id, DirectoryCause.FIELD)


@pytest.mark.parametrize("size", [1, HEAD.size - 1, HEAD.size, HEAD.size + 359])
def test_a_truncated_object_is_refused(size: int) -> None:
    fabric_id = new_fabric_id()
    with placed(fabric_id, forged_copy(fabric_id), size=size):
        check_refused(fabric_id, DirectoryCause.INCOMPLETE)


def test_only_the_head_of_an_enormous_object_is_read() -> None:
    fabric_id = new_fabric_id()
    with placed(fabric_id, forged_copy(fabric_id), size=1 << 40):
        assert listed(fabric_id) is not None
    with placed(fabric_id, b"\1", size=1 << 40):
        check_refused(fabric_id, DirectoryCause.MAGIC)


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_an_object_that_others_may_write_is_not_believed(mode: int) -> None:
    fabric_id = new_fabric_id()
    with placed(fabric_id, forged_copy(fabric_id), mode=mode):
        check_refused(fabric_id, DirectoryCause.WRITABLE)


def test_a_damaged_copy_costs_the_other_nothing() -> None:
    fabric_id = new_fabric_id()
    damaged = forged_copy(fabric_id, sequence=9, digest=b"x" * 16)
    for copies in ((damaged, forged_copy(fabric_id)), (forged_copy(fabric_id), damaged)):
        with placed(fabric_id, *copies):
            assert listed(fabric_id) is not None


def make_directory(path: Path) -> None:
    path.mkdir()


def make_link_to_a_good_one(path: Path) -> None:
    path.symlink_to(next(object_path(fabric.fabric_id) for fabric in list_fabrics().fabrics if fabric.running))


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


@contextlib.contextmanager
def gone_afterwards(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (make_directory, DirectoryCause.KIND),
        (make_fifo, DirectoryCause.KIND),
        (make_link_to_a_good_one, DirectoryCause.UNREADABLE),
        (make_socket, DirectoryCause.UNREADABLE),
    ],
)
@pytest.mark.usefixtures("neighbour")
def test_what_is_no_shared_memory_is_named_and_left_alone(make: Callable[[Path], None], cause: DirectoryCause) -> None:
    fabric_id = new_fabric_id()
    path = object_path(fabric_id)
    with gone_afterwards(path):
        make(path)
        check_refused(fabric_id, cause)


@pytest.mark.parametrize("make", [make_fifo, make_link_to_a_good_one, make_socket])
def test_what_has_a_fabrics_name_gives_way_to_its_broker(make: Callable[[Path], None], neighbour: str) -> None:
    fabric_id = new_fabric_id()
    path = object_path(fabric_id)
    with gone_afterwards(path), short_directory() as runtime:
        make(path)
        directory = Directory(fabric_id, runtime)
        fabric = listed(fabric_id)
        assert fabric is not None
        assert fabric.running
        directory.close(unlink=True)
    assert listed(neighbour) is not None  # the symlink went, and not what it pointed at


def test_what_cannot_be_removed_is_named_to_the_broker() -> None:
    fabric_id = new_fabric_id()
    path = object_path(fabric_id)
    with gone_afterwards(path), short_directory() as runtime:
        path.mkdir()
        with pytest.raises(ControlError, match=f"{path}.* cannot be removed") as caught:
            Directory(fabric_id, runtime)
        assert caught.value.cause is Cause.SYSTEM


def test_names_that_only_look_like_a_fabrics_are_nobodys_business() -> None:
    names = ["ringway-", f"ringway-{'a' * 15}", f"ringway-{'a' * 17}", f"ringway-{'A' * 16}", f"xringway-{'a' * 16}"]
    with contextlib.ExitStack() as stack:
        for name in names:
            path = Path("/dev/shm", name)
            stack.enter_context(gone_afterwards(path))
            path.touch()
        listing = list_fabrics()
    assert not [note for note in listing.notes if any(f"{name} " in note for name in names)]


@pytest.mark.needs_root
def test_an_object_of_another_user_is_listed_as_theirs_and_its_paths_are_not_visited(neighbour: str) -> None:
    fabric_id = new_fabric_id()
    with placed(fabric_id, forged_copy(fabric_id, device=Path("/").stat().st_dev)) as path:
        own = listed(fabric_id)
        assert own is not None
        assert own.runtime_gone  # there is no /nowhere
        _give_to_nobody(path)
        fabric = listed(fabric_id)
        assert fabric is not None
        assert fabric.owner == 65534
        assert not fabric.runtime_gone
        assert object_name(fabric_id) not in remove_leftovers()
        assert path.exists()


@pytest.mark.needs_root
def test_a_fabric_is_closed_to_other_users(neighbour: str) -> None:
    require(os.geteuid() == 0, "needs to be root to become somebody else")
    try:
        os.seteuid(65534)
    except OSError:
        require(False, "needs a second user: this user namespace has one only")
    try:
        listing = list_fabrics()
    finally:
        os.seteuid(0)
    assert not listing.fabrics
    assert any("cannot be read (Permission denied)" in note for note in listing.notes)


@pytest.mark.needs_root
def test_a_user_cannot_hide_other_fabrics_by_making_many(neighbour: str) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(OWNERS_SHARE + 2):
            fabric_id = new_fabric_id()
            _give_to_nobody(stack.enter_context(placed(fabric_id, forged_copy(fabric_id))))
        listing = list_fabrics()
    assert len([fabric for fabric in listing.fabrics if fabric.owner == 65534]) == OWNERS_SHARE
    assert [fabric for fabric in listing.fabrics if fabric.running]
    assert f"2 of the {OWNERS_SHARE + 2} objects of uid 65534 were not looked at" in listing.notes


def test_a_terminal_is_not_told_what_to_do() -> None:
    fabric_id = new_fabric_id()
    with placed(fabric_id, forged_copy(fabric_id, runtime=b"/run/\x1b]0;x\x07[bold]")):
        done = run_ringway("list")
    assert (done.returncode, done.stderr) == (0, "")
    assert "/run/?]0;x?[bold]" in done.stdout


def flipped(bit: int) -> bytes:
    copy = bytearray(forged_copy("0123456789abcdef"))
    copy[bit // 8] ^= 1 << bit % 8
    return bytes(copy)


@given(st.binary(max_size=600) | st.integers(0, 8 * 552 - 1).map(flipped))
def test_no_bytes_make_the_reader_fail_otherwise(copy: bytes) -> None:
    try:
        state = decode(copy)
    except DirectoryError:
        return
    assert isinstance(state, DirectoryState)
    assert copy == forged_copy("0123456789abcdef")


def _give_to_nobody(path: Path) -> None:
    try:
        os.chown(path, 65534, 65534)
    except OSError:
        require(False, "needs a second user: this user namespace has one only")
