"""No text keeps the broker busy for long, and no fabric has more links than the broker's answers have room for."""

from __future__ import annotations

import msgspec
import pytest

from ringway.broker.config.checks import parse_config
from ringway.broker.config.text import LINKS_MAX, MARKS_MAX, FabricCause, FabricError
from ringway.control import wire
from ringway.control.handover import QUEUES_MAX
from ringway.control.kinds import Tap
from ringway.control.messages import (
    PID_MAX,
    Applied,
    EndShown,
    GeometryPart,
    LinkShown,
    Planned,
    Replacement,
    RingShown,
    Shown,
)
from ringway.control.registry import SIZE_MAX, EndEntry, FabricEntry, LinkEntry, decode
from ringway.control.runtime import SOCKET_PATH_MAX
from ringway.shm import DropCause
from ringway.shm._native import lib

LONG = "x" * 63
MOST = 2**64 - 1


def fabric_of(links: int) -> str:
    """As a user would write it, with every option of a link."""
    options = "queues = 1\nslots = 64\nslot_payload = 2048\n"
    return "".join(
        f'[vm.a{n}.port.net]\nkind = "local"\n[vm.b{n}.port.net]\nkind = "local"\n'
        f'[link.l{n}]\nends = ["a{n}.net", "b{n}.net"]\n{options}'
        for n in range(links)
    )


def compact(links: int) -> str:
    ports = "".join(f'n{n}.kind = "local"\n' for n in range(2 * links))
    lines = "".join(f'l{n} = {{ends = ["a.n{2 * n}", "a.n{2 * n + 1}"], slots = 64}}\n' for n in range(links))
    return f"[vm.a.port]\n{ports}[link]\n{lines}"


def refused(text: str) -> FabricError:
    with pytest.raises(FabricError) as caught:
        parse_config(text, "fabric.toml")
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[[a]]\n" * 160_000, id="array of tables"),
        pytest.param("".join(f"[t{n}]\n" for n in range(100_000)), id="tables"),
        pytest.param("".join(f"  [t{n}.a.b.c.d.e.f.g]\n" for n in range(40_000)), id="deep tables, indented"),
        pytest.param("".join(f"k{n}.a.b.c = 0\n" for n in range(40_000)), id="dotted keys"),
        pytest.param("a = [" + "{a=0}," * 160_000 + "]", id="inline tables"),
        pytest.param("a = [" + "0," * 400_000 + "]", id="array"),
        pytest.param('a = "' + "\\n" * 400_000 + '"', id="escapes"),
        pytest.param("\n" * 900_000, id="empty lines"),
    ],
)
def test_a_text_that_takes_long_to_read_is_refused_before_it_is_read(text: str) -> None:
    error = refused(text)
    assert error.cause is FabricCause.LIMIT
    assert f"{MARKS_MAX} are possible" in error.message
    assert f"{LINKS_MAX} links at most" in error.message


def test_a_fabric_of_as_many_links_as_there_may_be_is_good_however_it_is_written() -> None:
    assert len(parse_config(fabric_of(LINKS_MAX), "f").links) == LINKS_MAX
    assert len(parse_config(compact(LINKS_MAX), "f").links) == LINKS_MAX


@pytest.mark.parametrize("links", [LINKS_MAX + 1, 2 * LINKS_MAX])
def test_a_fabric_of_more_links_is_refused_by_their_number(links: int) -> None:
    error = refused(compact(links))
    assert error.cause is FabricCause.LIMIT
    assert f"{links} links, and a fabric has {LINKS_MAX} at most" in error.message


def test_answers_about_as_many_links_as_there_may_be_fit_a_message() -> None:
    """Of one link in full, times their number: room is left for what VMs' agents tell."""
    drops = {cause.name.lower(): MOST for cause in DropCause}
    counters = dict.fromkeys(("bytes", "bells", "sleeps", "bells_idle", "mutes"), MOST)
    numbers = dict.fromkeys(("offered", "published", "delivered", "in_flight"), MOST)
    ring = RingShown(
        producing_side=1,
        queue=15,
        **numbers,
        drops_produced=drops,
        drops_consumed=drops,
        balanced=False,
        produced=counters,
        consumed=counters,
    )
    settings = Tap(interface="x" * 15, mac="02:00:00:00:00:01", address=(f"{'fd00:' * 7}1/128",) * 16)
    end = EndShown(*(LONG, LONG, settings, "unreadable"), cause=LONG, incarnation=MOST, queues_served=16, held=True)
    geometry = GeometryPart(queues=16, slot_count=1 << 15, slot_payload=1 << 14, headroom=512)
    link = LinkShown(
        name=LONG,
        link_id=2**63 - 1,
        state="broken",
        ends=[end, end],
        geometry=geometry,
        frame_max=65664,
        memory=1 << 40,
        pages="ordinary",
        note="x" * 300,
        rings=[ring] * 32,
    )
    shown = len(wire.encode(wire.new_id(), Shown(links=[link], vms=[]), wire.REPLY_SIZE))
    assert shown * LINKS_MAX < wire.REPLY_SIZE // 2
    names = [LONG] * LINKS_MAX
    notes = ["x" * 300] * 4 * LINKS_MAX
    applied = Applied(made=names, removed=names, replaced=names, kept=names, notes=notes)
    replaced = [Replacement(link=LONG, reason="x" * 300, in_flight=2**63 - 1)] * LINKS_MAX
    planned = Planned(
        made=names,
        removed=names,
        replaced=replaced,
        kept=names,
        stacks=names,
        memory=MOST,
        notes=notes,
        ports=notes[:9],
    )
    for message in (applied, planned):
        assert len(wire.encode(wire.new_id(), message, wire.REPLY_SIZE)) < wire.REPLY_SIZE // 8


def test_as_many_links_as_there_may_be_fit_an_entry_of_the_registry() -> None:
    end = EndEntry(LONG, LONG, PID_MAX, 2**32 - 1)
    links = [LinkEntry(f"{n:063}", 2**63 - 1 - n, (end, end)) for n in range(LINKS_MAX)]
    entry = FabricEntry("f" * 16, PID_MAX, "/" + "x" * (SOCKET_PATH_MAX - 1), MOST, MOST, links)
    content = msgspec.json.encode(entry)
    assert len(content) < SIZE_MAX
    assert decode(content) == entry


def test_a_handover_has_room_for_as_many_queues_as_a_link_may_have() -> None:
    assert lib.RWAY_QUEUES_MAX == QUEUES_MAX
