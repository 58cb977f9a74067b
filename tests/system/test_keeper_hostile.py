"""What a hostile or broken client can send to a keeper, and that it costs nobody else anything."""

from __future__ import annotations

import contextlib
import os
import random
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from ringway.broker.keeper_client import KeeperGone, command
from ringway.broker.keeper_server import (
    BACKLOG,
    DROP,
    END,
    ENTRIES_MAX,
    ENTRY,
    LIST,
    PUT,
    REFUSED,
    SELF,
    SOCKET_NAME,
    VALUE_SIZE,
)
from tests.conftest import require
from tests.support.broker_process import RINGWAY, own_descriptors, short_directory
from tests.support.keeper_process import (
    Stranger,
    keys,
    knocking,
    memories,
    message,
    reached,
    running_keeper,
    settled_descriptors,
)


@pytest.fixture
def runtime() -> Iterator[Path]:
    with short_directory() as path:
        yield path / "run"


@pytest.fixture
def keeper(runtime: Path) -> Iterator[int]:
    """Its pid. It has one entry, which every test of this page leaves as it was, and serves nobody just now."""
    with running_keeper(runtime) as kept, memories(b"region") as fds:
        kept.put("link/one", b"value", fds)
        kept.close()
        yield kept.pid
        assert keys_now(runtime) == ["link/one"]


def keys_now(runtime: Path) -> list[str]:
    """Of the keeper there, after all that came before."""
    with reached(runtime) as latest:
        return keys(latest)


def settled(runtime: Path) -> int:
    """Open descriptors of the keeper, when those that came before have left."""
    keys_now(runtime)
    return settled_descriptors(runtime)


def refusal(stranger: Stranger) -> str:
    """Why the keeper has hung up."""
    said = stranger.hear()
    while said is not None and said.op != REFUSED:
        said = stranger.hear()
    assert said is not None
    assert stranger.hear() is None
    return said.value.decode()


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"x", "its head alone 33"),
        (message(PUT)[:-1], "its head alone 33"),
        (message(PUT, b"a", b"v" * (VALUE_SIZE + 1)), "more than"),
        (message(PUT, b"a", b"v" * 150_000), "more than"),
        (message(DROP, b"link/one", b"v"), "only those with op 1"),
        (message(LIST, b"", b"v"), "only those with op 1"),
        (message(0), "no op 0"),
        (message(ENTRY), "no op 5"),
        (message(REFUSED), "no op 7"),
        (message(255), "no op 255"),
    ],
    ids=["short", "cut", "a byte too long", "long", "drop+", "list+", "0", "entry", "refused", "255"],
)
def test_a_message_that_is_none_ends_its_client_only(runtime: Path, keeper: int, payload: bytes, reason: str) -> None:
    before = settled(runtime)
    with knocking(runtime) as stranger:
        stranger.say(payload)
        assert reason in refusal(stranger)
    with memories(*[b"gift"] * 253) as gifts:
        with knocking(runtime) as stranger:
            stranger.say(payload, gifts)
            refusal(stranger)
        assert settled(runtime) == before


def test_descriptors_without_a_message_are_closed(runtime: Path, keeper: int) -> None:
    before = settled(runtime)
    with memories(b"gift") as gifts:
        with knocking(runtime) as stranger:
            stranger.say(b"", gifts * 100)
            assert stranger.hear() is not None
            assert stranger.hear() is None
        assert settled(runtime) == before


def test_random_bytes_with_random_gifts_change_nothing(runtime: Path, keeper: int) -> None:
    before = settled(runtime)
    dice = random.Random(12)
    with memories(b"gift") as gifts:
        for _ in range(300):
            with knocking(runtime) as stranger:
                op = bytes([dice.choice([0, *range(ENTRY, 256)])])
                stranger.say(op + dice.randbytes(dice.choice([0, 1, 31, 32, 33, 1000])), gifts * dice.randrange(5))
    assert settled(runtime) == before


@pytest.mark.full
def test_a_client_that_does_not_read_what_it_asks_for_is_over_when_it_leaves(runtime: Path, keeper: int) -> None:
    with memories(*[b"region"] * 9) as fds, reached(runtime) as filler:
        for number in range(500):
            filler.put(f"more/{number}", b"v" * 500, fds)
    before = settled(runtime)
    for op in (LIST, SELF):
        with knocking(runtime) as lazy, pytest.raises(BlockingIOError):
            ask_without_end(lazy, op)
    with knocking(runtime) as lazy:
        lazy.say(message(LIST))
        lazy.say(message(PUT, b"link/two"))
    assert keys_now(runtime)[-1] == "link/two"
    assert settled(runtime) == before
    with reached(runtime) as cleaner:
        for key in ("link/two", *(f"more/{number}" for number in range(500))):
            cleaner.drop(key)


def ask_without_end(stranger: Stranger, op: int) -> NoReturn:
    assert stranger.hear() is not None
    stranger.connection.setblocking(False)
    poll = select.poll()
    poll.register(stranger.connection, select.POLLOUT)
    while True:
        stranger.say(message(op))
        if not poll.poll(200):  # the keeper waits for room, and reads no more
            stranger.say(message(op) * 2)


def test_a_crowd_that_waits_is_served_one_after_the_other(runtime: Path, keeper: int) -> None:
    before = settled(runtime)
    with contextlib.ExitStack() as crowd:
        strangers = [crowd.enter_context(knocking(runtime)) for _ in range(BACKLOG)]
        for stranger in strangers:
            stranger.say(message(LIST))
        for stranger in strangers:
            assert [said.op for _ in range(3) if (said := stranger.hear())] == [SELF, ENTRY, SELF]
            stranger.connection.close()
        assert keys_now(runtime) == ["link/one"]
    assert settled(runtime) == before


def test_more_entries_than_may_be_are_refused_and_the_ones_kept_stay(runtime: Path, keeper: int) -> None:
    with reached(runtime) as greedy:
        for number in range(ENTRIES_MAX):
            greedy.put(f"more/{number}", b"", [])
        with pytest.raises(KeeperGone, match=f"{ENTRIES_MAX} entries are kept"):
            keys(greedy)
    with reached(runtime) as late:
        assert len(keys(late)) == ENTRIES_MAX
        late.put("link/one", b"replaced", [])
        for number in range(ENTRIES_MAX):
            late.drop(f"more/{number}")


def test_more_descriptors_than_may_be_are_refused_and_the_ones_kept_stay(runtime: Path) -> None:
    runtime.mkdir(mode=0o700)
    limited = ["sh", "-c", 'ulimit -n 500; exec "$@"', "sh", *command(runtime, "--for-broker")]
    subprocess.run(limited, check=True)
    with running_keeper(runtime) as greedy, memories(*[b"region"] * 50) as fds:
        for number in range(5):
            greedy.put(f"link/{number}", b"", fds)
        with pytest.raises(KeeperGone, match="200 descriptors are kept, and 215 may be: raise LimitNOFILE"):
            keys(greedy)
        greedy.close()
        assert keys_now(runtime) == ["link/0", "link/1", "link/2", "link/3"]


def test_a_keeper_run_by_hand_hangs_up_on_who_wants_it_to_end_and_says_so(runtime: Path) -> None:
    keeping = [*RINGWAY, "keeper", "--runtime", str(runtime)]
    with subprocess.Popen(keeping, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            with knocking(runtime) as stranger:
                stranger.say(message(END))
                assert "not started for a broker" in refusal(stranger)
            with reached(runtime) as keeper:
                assert keys(keeper) == []
        finally:
            process.terminate()
        assert process.communicate()[1].startswith("ringway keeper: hung up on a client: this keeper was not started")


@pytest.mark.needs_root
def test_another_user_is_refused_even_where_the_directory_lets_him_in(runtime: Path, keeper: int) -> None:
    for path, mode in ((runtime.parent, 0o711), (runtime, 0o711), (runtime / SOCKET_NAME, 0o666)):
        path.chmod(mode)
    before = own_descriptors()
    try:
        os.seteuid(65534)
    except OSError as error:
        require(False, f"needs a second user id in its user namespace ({error.strerror})")
    try:
        stranger = Stranger(runtime)
    finally:
        os.seteuid(0)
    with stranger.connection:
        assert refusal(stranger) == "uid 65534 is neither root nor the keeper's (0)"
    assert own_descriptors() == before
