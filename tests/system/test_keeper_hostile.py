"""What a hostile or broken client can send to a keeper, and that it costs nobody else anything."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from ringway.broker.keeper import Keeper, KeeperGone, command
from ringway.broker.keeper_process import (
    BACKLOG,
    CLIENTS_MAX,
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
    VALUES_SIZE,
)
from tests.conftest import require
from tests.system.broker_process import RINGWAY, own_descriptors, short_directory
from tests.system.keeper_process import (
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
def keeper(runtime: Path) -> Iterator[Keeper]:
    """With one entry, which every test of this page leaves as it was."""
    with running_keeper(runtime) as kept, memories(b"region") as fds:
        kept.put("link/one", b"value", fds)
        yield kept
        assert keys(kept) == ["link/one"]


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
def test_a_message_that_is_none_ends_its_client_only(
    runtime: Path, keeper: Keeper, payload: bytes, reason: str
) -> None:
    before = settled_descriptors(runtime)
    with knocking(runtime) as stranger:
        stranger.say(payload)
        assert reason in refusal(stranger)
    with memories(*[b"gift"] * 253) as gifts, knocking(runtime) as stranger:
        stranger.say(payload, gifts)
        refusal(stranger)
        assert settled_descriptors(runtime) == before


def test_descriptors_without_a_message_are_closed(runtime: Path, keeper: Keeper) -> None:
    before = settled_descriptors(runtime)
    with memories(b"gift") as gifts, knocking(runtime) as stranger:
        stranger.say(b"", gifts * 100)
        assert stranger.hear() is not None
        assert stranger.hear() is None
        assert settled_descriptors(runtime) == before


def test_random_bytes_with_random_gifts_change_nothing(runtime: Path, keeper: Keeper) -> None:
    before = settled_descriptors(runtime)
    dice = random.Random(12)
    with memories(b"gift") as gifts:
        for _ in range(300):
            with knocking(runtime) as stranger:
                op = bytes([dice.choice([0, *range(ENTRY, 256)])])
                stranger.say(op + dice.randbytes(dice.choice([0, 1, 31, 32, 33, 1000])), gifts * dice.randrange(5))
    assert settled_descriptors(runtime) == before


def test_a_reader_that_does_not_read_its_lists_delays_nobody(runtime: Path, keeper: Keeper) -> None:
    with memories(*[b"region"] * 9) as fds:
        for number in range(500):
            keeper.put(f"more/{number}", b"v" * 500, fds)
        keys(keeper)
        before = settled_descriptors(runtime)
        with knocking(runtime) as lazy, knocking(runtime) as lazier:
            for _ in range(40):
                lazy.say(message(LIST))
                lazier.say(message(LIST))
            for _ in range(3):
                assert len(keys(keeper)) == 501
            for number in range(500):
                keeper.drop(f"more/{number}")
            assert keys(keeper) == ["link/one"]
            said = [lazy.hear(), lazy.hear()]
            assert [one.op for one in said if one] == [SELF, ENTRY]
            lazy.say(message(PUT, b"link/two"))
            assert keys(keeper) == ["link/one", "link/two"]
    keeper.drop("link/two")
    assert settled_descriptors(runtime) == before - 500 * 9


def test_clients_that_flood_each_other_with_lists_are_all_served(runtime: Path, keeper: Keeper) -> None:
    with contextlib.ExitStack() as crowd:
        strangers = [crowd.enter_context(knocking(runtime)) for _ in range(10)]
        for stranger in strangers:
            for _ in range(20):
                stranger.say(message(LIST))
        assert keys(keeper) == ["link/one"]
        for stranger in strangers:
            said = [stranger.hear() for _ in range(1 + 20 * 2)]
            assert [one.op for one in said if one] == [SELF, *[ENTRY, SELF] * 20]


def ask_without_end(stranger: Stranger) -> NoReturn:
    while True:
        stranger.say(message(SELF))


def test_a_client_that_asks_for_more_than_it_reads_is_hung_up_on(runtime: Path, keeper: Keeper) -> None:
    before = settled_descriptors(runtime)
    with knocking(runtime) as stranger, pytest.raises(ConnectionError):
        ask_without_end(stranger)
    assert settled_descriptors(runtime) == before


def test_a_flood_of_connections_is_refused_and_forgotten(runtime: Path, keeper: Keeper) -> None:
    before = settled_descriptors(runtime)
    with contextlib.ExitStack() as crowd:
        strangers = [crowd.enter_context(knocking(runtime)) for _ in range(CLIENTS_MAX + BACKLOG + 10)]
        welcome = [stranger.hear() for stranger in strangers]
        assert [said.op for said in welcome if said] == [SELF] * (CLIENTS_MAX - 1) + [REFUSED] * (BACKLOG + 11)
        assert keys(keeper) == ["link/one"]
        with pytest.raises(KeeperGone, match="clients are connected"):
            Keeper.reach(runtime)
    assert settled_descriptors(runtime) == before
    with reached(runtime) as late:
        assert keys(late) == ["link/one"]


def test_more_entries_than_may_be_are_refused_to_their_client_only(runtime: Path, keeper: Keeper) -> None:
    with reached(runtime) as greedy:
        for number in range(ENTRIES_MAX):
            greedy.put(f"more/{number}", b"", [])
        with pytest.raises(KeeperGone, match=f"{ENTRIES_MAX} entries are kept"):
            keys(greedy)
    assert len(keys(keeper)) == ENTRIES_MAX
    keeper.put("link/one", b"replaced", [])
    for number in range(ENTRIES_MAX):
        keeper.drop(f"more/{number}")


def test_more_bytes_than_may_be_are_refused_to_their_client_only(runtime: Path, keeper: Keeper) -> None:
    count = VALUES_SIZE // VALUE_SIZE
    with reached(runtime) as greedy:
        for number in range(count - 1):
            greedy.put(f"more/{number}", b"v" * VALUE_SIZE, [])
        greedy.put("last", b"v" * VALUE_SIZE, [])
        with pytest.raises(KeeperGone, match="all values together"):
            keys(greedy)
    assert len(keys(keeper)) == count
    for number in range(count):
        keeper.drop(f"more/{number}")


def test_more_descriptors_than_may_be_are_refused_and_the_ones_kept_stay(runtime: Path) -> None:
    runtime.mkdir(mode=0o700)
    limited = ["sh", "-c", 'ulimit -n 500; exec "$@"', "sh", *command(runtime, "--for-broker")]
    subprocess.run(limited, check=True)
    with running_keeper(runtime) as keeper, memories(*[b"region"] * 50) as fds, reached(runtime) as greedy:
        for number in range(4):
            greedy.put(f"link/{number}", b"", fds)
        with pytest.raises(KeeperGone, match="150 descriptors are kept, and 151 may be: raise LimitNOFILE"):
            keys(greedy)
        assert keys(keeper) == ["link/0", "link/1", "link/2"]


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
def test_another_user_is_refused_even_where_the_directory_lets_him_in(runtime: Path, keeper: Keeper) -> None:
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
