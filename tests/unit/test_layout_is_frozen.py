"""The layout is the frozen one, its page says so, and no departure from it goes unseen."""

import copy
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ringway.shm import Geometry, Region, create_region
from ringway.shm._native import ffi, lib
from tools.layout import __main__ as command
from tools.layout import description, header
from tools.layout.description import Description, describe, differences, read_frozen
from tools.layout.page import PAGE, page
from tools.layout.parts import LINK, publish

FROZEN = read_frozen()
REMEDY = "run `./run layout check`: it says what may be done about it"


def test_every_frozen_fact_is_as_it_was_and_nothing_is_new() -> None:
    assert not [str(difference) for difference in differences(FROZEN, describe())], REMEDY


def test_the_page_is_the_one_that_the_header_makes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(describe()), "docs/layout.md is old: run `./run layout page`"


def test_the_whole_header_is_frozen() -> None:
    declared = {item.title for item in header.layout() if isinstance(item, header.Declaration)}
    assert {f"struct {name}" for name in FROZEN["structs"]} < declared
    assert len(declared) == len(FROZEN["structs"]) + len(FROZEN["enums"])
    assert {"rway_header", "rway_desc", "rway_extension", "rway_ring_control"} <= FROZEN["structs"].keys()
    assert "rway_break" in FROZEN["enums"], "a side's cause is one of them"


def test_a_ring_lies_where_the_page_computes_it() -> None:
    for name, facts in FROZEN["geometries"].items():
        queues, slot_count, payload, headroom = (int(word) for word in name.replace(",", "").split()[1::2])
        stride = ((headroom + payload) // 64 | 1) * 64
        queue_size = -(-(1536 + slot_count * (16 + stride)) // 4096) * 4096
        a_to_b, b_to_a = facts["rings_offset"]
        assert facts["slot_stride"] == stride
        assert facts["frame_max"] == min(slot_count // 2 * payload, 65664)
        assert (facts["queue_size"], facts["rings_size"]) == (queue_size, queues * queue_size)
        assert a_to_b == 2**21
        assert b_to_a - a_to_b == facts["region_size"] - b_to_a == -(-queues * queue_size // 2**21) * 2**21
        if "queue" in facts:
            slots = 1536 + 16 * slot_count
            assert facts["queue"] == {
                "control": 0,
                "descriptor_0": 1536,
                "descriptor_2": 1536 + 2 * 16,
                "extension_0": slots,
                "payload_0": slots + headroom,
                "payload_1": slots + stride + headroom,
                "payload_2": slots + 2 * stride + headroom,
            }


def members() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for owner, facts in FROZEN["structs"].items():
        yield from ((owner, name, fact) for name, fact in facts.items() if name != "sizeof")


def test_every_word_is_naturally_aligned_and_no_byte_lies_between_two_members() -> None:
    ends = dict.fromkeys(FROZEN["structs"], 0)
    for owner, name, fact in members():
        word = fact["type"].split("[")[0]
        align = {"uint8_t": 1, "uint16_t": 2, "uint32_t": 4, "uint64_t": 8}.get(word)
        if align is None:  # a struct of its own: as its words need it
            align = 4 if word == "struct rway_geometry" else 8
        assert fact["offset"] % align == 0, f"{owner}.{name}"
        assert fact["offset"] == ends[owner], f"bytes without a name before {owner}.{name}"
        ends[owner] = fact["offset"] + fact["size"]
    assert ends == {owner: facts["sizeof"] for owner, facts in FROZEN["structs"].items()}


def test_constants_are_what_the_comments_beside_them_say() -> None:
    numbers = FROZEN["enums"][""]
    assert struct.pack("<II", numbers["RWAY_MAGIC_LOW"], numbers["RWAY_MAGIC_HIGH"]) == b"RINGWAY1"
    assert max(FROZEN["enums"]["rway_drop"].values()) < numbers["RWAY_DROPS"], "a cause has no counter"
    assert numbers["RWAY_FRAME_MAX"] == 2**16 + 128
    for limit in ("MIN", "MAX", "DEFAULT"):
        assert numbers[f"RWAY_SLOTS_{limit}"].bit_count() == 1
        assert numbers[f"RWAY_PAYLOAD_{limit}"] % numbers["RWAY_LINE"] == 0


def test_what_is_called_pad_or_reserved_stays_0_through_a_regions_life() -> None:
    geometry = Geometry(queues=2, slot_count=64, slot_payload=256, headroom=64)
    fd = create_region(geometry, LINK)
    try:
        with (
            Region.attach(fd, geometry, LINK, lib.RWAY_SIDE_A, 1) as a,
            Region.attach(fd, geometry, LINK, lib.RWAY_SIDE_B, 1) as b,
        ):
            publish(b.producers[1].native, geometry)
            frames = ffi.new("struct rway_frame[]", 4)
            assert lib.rway_ring_peek(a.consumers[1].native, frames, 4) == 2
            lib.rway_consumer_drop(a.consumers[1].native, lib.RWAY_DROP_SINK, 1)
            lib.rway_ring_release(a.consumers[1].native)
        memory = os.pread(fd, geometry.shape().region_size, 0)
    finally:
        os.close(fd)
    (b_to_a,) = struct.unpack_from("<Q", memory, 128 + 3 * 32 + 8)  # the offset in the table's fourth entry
    ring = b_to_a + geometry.shape().queue_size
    assert struct.unpack_from("<Q", memory, ring + 128) == (3,), "the ring of queue 1 was not used"
    for base, owner in ((0, "rway_header"), (4096, "rway_side"), (8192, "rway_side"), (ring, "rway_ring_control")):
        for name, fact in FROZEN["structs"][owner].items():
            if description.UNUSED.fullmatch(name):
                at = base + fact["offset"]
                assert not any(memory[at : at + fact["size"]]), f"{owner}.{name}"


def changed(change: Callable[[Description], Any]) -> Description:
    modified = copy.deepcopy(FROZEN)
    change(modified)
    return modified


def member(name: str, **facts: Any) -> Callable[[Description], Any]:
    return lambda layout: layout["structs"]["rway_header"].update({name: facts})


DEFAULT = "queues 1, slot_count 1024, slot_payload 2048, headroom 64"
BREAKING: dict[str, Callable[[Description], Any]] = {
    "a member moved": lambda layout: layout["structs"]["rway_desc"]["len"].update(offset=8),
    "a member grew": lambda layout: layout["structs"]["rway_desc"]["slots"].update(size=4),
    "a member has another type": lambda layout: layout["structs"]["rway_desc"]["hash"].update(type="int32_t"),
    "a member is gone": lambda layout: layout["structs"]["rway_desc"].pop("vlan"),
    "a member lies over others": member("burst", offset=68, size=4, type="uint32_t"),
    "a member sticks out of what was reserved": member("burst", offset=124, size=8, type="uint64_t"),
    "a struct has another size": lambda layout: layout["structs"]["rway_side"].update(sizeof=8192),
    "a struct is gone": lambda layout: layout["structs"].pop("rway_counts"),
    "a constant has another value": lambda layout: layout["enums"]["rway_drop"].update(RWAY_DROP_DOWN=8),
    "a constant is gone": lambda layout: layout["enums"]["rway_desc_kind"].pop("RWAY_DESC_CONTINUATION"),
    "a limit is another": lambda layout: layout["enums"][""].update(RWAY_FRAME_MAX=65536),
    "slots are further apart": lambda layout: layout["geometries"][DEFAULT].update(slot_stride=2176),
    "slots begin elsewhere": lambda layout: layout["geometries"][DEFAULT]["queue"].update(payload_0=17536),
}
ADDING: dict[str, Callable[[Description], Any]] = {
    "a constant": lambda layout: layout["enums"]["rway_drop"].update(RWAY_DROP_ELSEWHERE=9),
    "a minor version": lambda layout: layout["enums"][""].update(RWAY_LAYOUT_MINOR=lib.RWAY_LAYOUT_MINOR + 1),
    "a member where bytes were reserved": lambda layout: (
        layout["structs"]["rway_header"].update(burst={"offset": 72, "size": 4, "type": "uint32_t"}),
        layout["structs"]["rway_header"]["reserved"].update(offset=76, size=52, type="uint8_t[52]"),
    ),
    "a struct": lambda layout: layout["structs"].update(rway_capture={"sizeof": 64}),
}


@pytest.mark.parametrize("change", BREAKING.values(), ids=BREAKING)
def test_what_breaks_an_end_is_found(change: Callable[[Description], Any]) -> None:
    assert any(difference.breaks for difference in differences(FROZEN, changed(change)))


@pytest.mark.parametrize("change", ADDING.values(), ids=ADDING)
def test_what_a_minor_version_may_add_is_found_and_breaks_nothing(change: Callable[[Description], Any]) -> None:
    found = differences(FROZEN, changed(change))
    assert found
    assert not any(difference.breaks for difference in found)


def test_a_difference_says_what_was_and_what_is() -> None:
    (found,) = differences(FROZEN, changed(BREAKING["a constant has another value"]))
    assert str(found) == "RWAY_DROP_DOWN: was 7, is 8"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command's files, in a folder of their own."""
    for module in (description, command):
        monkeypatch.setattr(module, "FROZEN", tmp_path / "frozen.json")
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(command, "PAGE", tmp_path / "page.md")
    return tmp_path


def put(frozen: Description, folder: Path) -> bytes:
    path = folder / "frozen.json"
    path.write_text(description.text_of(frozen), encoding="utf-8")
    return path.read_bytes()


def test_freezing_writes_what_the_check_then_accepts(elsewhere: Path) -> None:
    assert command.main(["freeze"]) == 0
    assert command.main(["check"]) == 0
    assert (elsewhere / "page.md").read_bytes() == PAGE.read_bytes()


def test_an_addition_fails_the_check_until_it_is_frozen(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(changed(lambda layout: layout["enums"]["rway_drop"].pop("RWAY_DROP_RESTART")), elsewhere)
    assert command.main(["check"]) == 1
    assert "RWAY_DROP_RESTART: new, 8" in capsys.readouterr().out
    assert command.main(["freeze"]) == 0
    assert read_frozen() == describe()


def test_a_breaking_change_is_not_frozen_by_a_slip(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = put(changed(BREAKING["a member moved"]), elsewhere)
    assert command.main(["freeze"]) == 1
    assert (elsewhere / "frozen.json").read_bytes() == before
    assert "struct rway_desc, len: was" in capsys.readouterr().out
    assert command.main(["freeze", "--before-release"]) == 0
    assert command.main(["check"]) == 0


def test_a_page_that_is_old_fails_the_check(elsewhere: Path) -> None:
    assert command.main(["freeze"]) == 0
    with (elsewhere / "page.md").open("a", encoding="utf-8") as file:
        file.write("by hand\n")
    assert command.main(["check"]) == 1
    assert command.main(["page"]) == 0
    assert command.main(["check"]) == 0
