"""Anybody may put anything of a fabric's name into /dev/shm: it is named and left alone, and the others are listed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.broker.registry import Registration, remove_leftovers
from ringway.control.errors import ControlError
from ringway.control.messages import PID_MAX, Cause
from ringway.control.registry import (
    OWNERS_SHARE,
    SIZE_MAX,
    FabricEntry,
    ListedFabric,
    RegistryCause,
    RegistryError,
    decode,
    object_name,
    object_path,
    opened_entry,
    read_entry,
    read_registry,
)
from tests.conftest import require
from tests.support.broker_process import run_ringway, short_directory
from tests.support.forged_entry import GOOD_LINK, changed_link, forged, new_fabric_id, placed

GOOD = forged("0123456789abcdef")
MEMBERS: list[tuple[RegistryCause, str, object]] = [
    (RegistryCause.VERSION, "version", 0),
    (RegistryCause.VERSION, "version", 2),
    *((RegistryCause.CONTENT, "version", value) for value in ("1", None, 1.5)),
    *((RegistryCause.CONTENT, "fabric_id", value) for value in ("0" * 16, "A" * 16, "", 7)),
    *((RegistryCause.CONTENT, "broker_pid", value) for value in (0, -1, PID_MAX + 1, 2**64)),
    (RegistryCause.CONTENT, "broker_pid", "1"),
    *((RegistryCause.CONTENT, "runtime", value) for value in ("", "run/ringway", "/run\0/ringway", "/" + "x" * 107)),
    *((RegistryCause.CONTENT, "device", value) for value in (None, "1", 0.5)),
    (RegistryCause.CONTENT, "inode", None),
    (RegistryCause.CONTENT, "links", {}),
    (RegistryCause.CONTENT, "links", [[]]),
    (RegistryCause.CONTENT, "another", 1),
]
LINKS: list[tuple[str, object]] = [
    *(("link_id", value) for value in (0, -1, 2**63)),
    *((name, text) for name in ("name", "0.vm", "1.port") for text in ("", "UP", "../x", "a\nb", "a\0b", "a" * 64)),
    *((name, 1) for name in ("name", "0.vm", "1.port")),
    ("0.vm", "a.b"),
    ("1.port", "a.b"),
    *(("0.holder_pid", value) for value in (-1, PID_MAX + 1)),
    *(("1.incarnation", value) for value in (-1, 2**32)),
    ("0.another", 1),
    ("another", 1),
    *(("ends", GOOD_LINK["ends"][:1] * count) for count in (0, 1, 3)),
]
GARBLED = {
    "nothing": b"",
    "zeros": bytes(64),
    "an array": b"[]",
    "a deep array": b"[" * 100_000,
    "a deep array in a member": b'{"another":' + b"[" * 100_000,
    "not UTF-8": GOOD.replace(b"/nowhere", b"/\xff\xfe"),
    "half a character": GOOD.replace(b"/nowhere", b"/\\ud800"),
    "something after it": GOOD + b"{}",
}


@pytest.fixture
def neighbour() -> Iterator[str]:
    """A good one beside, by its fabric's id."""
    fabric_id = new_fabric_id()
    with short_directory() as runtime:
        registration = Registration(fabric_id, runtime)
        yield fabric_id
        registration.close(unlink=True)


def listed(fabric_id: str) -> ListedFabric | None:
    """As the list has it; else None, and one note names the object."""
    registry = read_registry()
    found = [fabric for fabric in registry.fabrics if fabric.fabric_id == fabric_id]
    named = [note for note in registry.notes if note.startswith(f"/dev/shm/ringway-{fabric_id} ")]
    assert len(found) + len(named) == 1
    return found[0] if found else None


def cause_of(fabric_id: str) -> RegistryCause:
    with pytest.raises(RegistryError) as caught, opened_entry(fabric_id) as (fd, _):
        read_entry(fd, fabric_id)
    return caught.value.cause


def check_refused(fabric_id: str, cause: RegistryCause) -> None:
    path = object_path(object_name(fabric_id))
    assert cause_of(fabric_id) is cause
    assert listed(fabric_id) is None
    assert object_name(fabric_id) not in remove_leftovers()
    assert path.lstat()


def test_the_forger_writes_what_a_broker_would() -> None:
    """Else the rows below would be refused for what they have in common."""
    fabric_id = new_fabric_id()
    with placed(fabric_id, forged(fabric_id)):
        fabric = listed(fabric_id)
        assert fabric is not None
        assert not fabric.running
        assert [end.holder_pid for end in fabric.links[0].ends] == [4711, 0]


@pytest.mark.parametrize(("cause", "member", "value"), MEMBERS)
def test_an_absurd_member_is_refused_by_name(cause: RegistryCause, member: str, value: object) -> None:
    fabric_id = new_fabric_id()
    with placed(fabric_id, forged(fabric_id, **{member: value})):
        check_refused(fabric_id, cause)


@pytest.mark.parametrize(("member", "value"), LINKS)
def test_an_absurd_link_is_refused_by_name(member: str, value: object) -> None:
    fabric_id = new_fabric_id()
    with placed(fabric_id, forged(fabric_id, links=[changed_link(member, value)])):
        check_refused(fabric_id, RegistryCause.CONTENT)


@pytest.mark.parametrize("other", [{"name": "two"}, {"link_id": 8}])
def test_two_links_of_one_name_or_id_are_refused(other: dict[str, object]) -> None:
    fabric_id = new_fabric_id()
    with placed(fabric_id, forged(fabric_id, links=[GOOD_LINK, {**GOOD_LINK, **other}])):
        check_refused(fabric_id, RegistryCause.CONTENT)


@pytest.mark.parametrize("content", GARBLED.values(), ids=GARBLED)
def test_what_is_no_entry_is_refused(content: bytes) -> None:
    fabric_id = new_fabric_id()
    with placed(fabric_id, content):
        check_refused(fabric_id, RegistryCause.CONTENT)


def test_an_entry_that_is_cut_off_anywhere_is_refused() -> None:
    for size in range(len(GOOD)):
        with pytest.raises(RegistryError, match="what no broker does"):
            decode(GOOD[:size])


def test_an_entry_of_another_release_is_told_from_a_garbled_one() -> None:
    with pytest.raises(RegistryError, match="has version 2; this release reads 1: use the release of its broker"):
        decode(b'{"version": 2, "of": {"whatever": "kind"}}')


def test_an_enormous_object_is_not_read() -> None:
    fabric_id = new_fabric_id()
    for size in (SIZE_MAX + 1, 1 << 40):
        with placed(fabric_id, forged(fabric_id), size=size):
            check_refused(fabric_id, RegistryCause.SIZE)


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_an_object_that_others_may_write_is_not_believed(mode: int) -> None:
    fabric_id = new_fabric_id()
    with placed(fabric_id, forged(fabric_id), mode=mode):
        check_refused(fabric_id, RegistryCause.WRITABLE)


def make_directory(path: Path) -> None:
    path.mkdir()


def make_link_to_a_good_one(path: Path) -> None:
    good = next(fabric for fabric in read_registry().fabrics if fabric.running)
    path.symlink_to(object_path(object_name(good.fabric_id)))


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
        (make_directory, RegistryCause.KIND),
        (make_fifo, RegistryCause.KIND),
        (make_link_to_a_good_one, RegistryCause.UNREADABLE),
        (make_socket, RegistryCause.UNREADABLE),
    ],
)
@pytest.mark.usefixtures("neighbour")
def test_what_is_no_shared_memory_is_named_and_left_alone(make: Callable[[Path], None], cause: RegistryCause) -> None:
    fabric_id = new_fabric_id()
    path = object_path(object_name(fabric_id))
    with gone_afterwards(path):
        make(path)
        check_refused(fabric_id, cause)


@pytest.mark.parametrize("make", [make_fifo, make_link_to_a_good_one, make_socket])
def test_what_has_a_fabrics_name_gives_way_to_its_broker(make: Callable[[Path], None], neighbour: str) -> None:
    fabric_id = new_fabric_id()
    path = object_path(object_name(fabric_id))
    with gone_afterwards(path), short_directory() as runtime:
        make(path)
        registration = Registration(fabric_id, runtime)
        fabric = listed(fabric_id)
        assert fabric is not None
        assert fabric.running
        registration.close(unlink=True)
    assert listed(neighbour) is not None  # the symlink went, and not what it pointed at


@pytest.mark.needs_root
def test_another_users_object_gives_way_to_roots_broker_though_it_is_held() -> None:
    fabric_id = new_fabric_id()
    with placed(fabric_id, forged(fabric_id)) as path, short_directory() as runtime, path.open() as held:
        _give_to_nobody(path)
        fcntl.flock(held, fcntl.LOCK_EX)
        registration = Registration(fabric_id, runtime)
        fabric = listed(fabric_id)
        assert fabric is not None
        assert fabric.owner == 0
        registration.close(unlink=True)


def test_what_cannot_be_replaced_is_named_to_the_broker() -> None:
    fabric_id = new_fabric_id()
    path = object_path(object_name(fabric_id))
    with gone_afterwards(path), short_directory() as runtime:
        path.mkdir()
        with pytest.raises(ControlError, match=f"{path}.* cannot be replaced") as caught:
            Registration(fabric_id, runtime)
        assert caught.value.cause is Cause.SYSTEM


def test_names_that_only_look_like_a_fabrics_are_nobodys_business() -> None:
    names = ["ringway-", f"ringway-{'a' * 15}", f"ringway-{'a' * 17}", f"ringway-{'A' * 16}", f"xringway-{'a' * 16}"]
    with contextlib.ExitStack() as stack:
        for name in names:
            path = Path("/dev/shm", name)
            stack.enter_context(gone_afterwards(path))
            path.touch()
        registry = read_registry()
    assert not [note for note in registry.notes if any(f"{name} " in note for name in names)]


@pytest.mark.needs_root
def test_an_object_of_another_user_is_listed_as_theirs_and_its_paths_are_not_visited(neighbour: str) -> None:
    fabric_id = new_fabric_id()
    with placed(fabric_id, forged(fabric_id, device=Path("/").stat().st_dev)) as path:
        own = listed(fabric_id)
        assert own is not None
        assert own.runtime_gone  # there is no /nowhere
        _give_to_nobody(path)
        fabric = listed(fabric_id)
        assert fabric is not None
        assert fabric.owner == 65534
        assert not fabric.runtime_gone
        temporary = path.rename(f"{path}.{new_fabric_id()}")
        assert remove_leftovers() == []
        assert temporary.exists()
        temporary.rename(path)
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
        registry = read_registry()
    finally:
        os.seteuid(0)
    assert not registry.fabrics
    assert any("cannot be read (Permission denied)" in note for note in registry.notes)


@pytest.mark.needs_root
def test_a_user_cannot_hide_other_fabrics_by_making_many(neighbour: str) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(OWNERS_SHARE + 2):
            fabric_id = new_fabric_id()
            _give_to_nobody(stack.enter_context(placed(fabric_id, forged(fabric_id))))
        registry = read_registry()
    assert len([fabric for fabric in registry.fabrics if fabric.owner == 65534]) == OWNERS_SHARE
    assert [fabric for fabric in registry.fabrics if fabric.running]
    assert f"2 of the {OWNERS_SHARE + 2} objects of uid 65534 were not looked at" in registry.notes


def test_a_terminal_is_not_told_what_to_do() -> None:
    fabric_id = new_fabric_id()
    with placed(fabric_id, forged(fabric_id, runtime="/run/\x1b]0;x\x07[bold]")):
        done = run_ringway("list")
    assert (done.returncode, done.stderr) == (0, "")
    assert "/run/?]0;x?[bold]" in done.stdout


def flipped(bit: int) -> bytes:
    content = bytearray(GOOD)
    content[bit // 8] ^= 1 << bit % 8
    return bytes(content)


@given(st.binary(max_size=600) | st.integers(0, 8 * len(GOOD) - 1).map(flipped))
def test_no_bytes_make_the_reader_fail_otherwise(content: bytes) -> None:
    with contextlib.suppress(RegistryError):
        assert isinstance(decode(content), FabricEntry)


def _give_to_nobody(path: Path) -> None:
    try:
        os.chown(path, 65534, 65534)
    except OSError:
        require(False, "needs a second user: this user namespace has one only")
