"""docs/directory.md says where the fields of a directory segment are, and is right."""

from __future__ import annotations

import itertools
import re
import string
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from ringway.broker.checks import parse_config
from ringway.broker.fabric_file import TEXT_SIZE
from ringway.control.directory import COPY_SIZE, HEAD, HEAD_FIELDS, LINK, LINK_FIELDS, LINKS_MAX

PAGE = (Path(__file__).parents[2] / "docs" / "directory.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (\d+) \| (\d+) \| `(\w+)` \|", re.MULTILINE)


def rows(fields: Sequence[tuple[str, str]]) -> list[tuple[int, int, str]]:
    found = []
    offset = 0
    for name, form in fields:
        found.append((offset, struct.calcsize(f"<{form}"), name))
        offset += found[-1][1]
    return found


def test_the_page_has_every_field_where_it_is() -> None:
    written = [(int(offset), int(size), name) for offset, size, name in ROW.findall(PAGE)]
    assert written == rows(HEAD_FIELDS) + rows(LINK_FIELDS)
    assert f"{HEAD.size} bytes, and then so many links of {LINK.size} bytes" in PAGE
    assert f"at {COPY_SIZE} bytes" in PAGE
    assert f"{LINKS_MAX} at the most" in PAGE


def test_every_word_is_aligned_to_8_bytes() -> None:
    assert not [name for offset, _, name in rows(HEAD_FIELDS) + rows(LINK_FIELDS) if offset % 8]
    assert HEAD.size % 8 == LINK.size % 8 == COPY_SIZE % 4096 == 0


def test_the_most_links_fit_a_copy() -> None:
    assert HEAD.size + LINKS_MAX * LINK.size <= COPY_SIZE


def shortest_names() -> Iterator[str]:
    first = string.ascii_lowercase + string.digits
    for size in itertools.count():
        for letters in itertools.product(first, *[first + "_-"] * size):
            yield "".join(letters)


def densest_fabric(link_count: int) -> str:
    """TOML knows no shorter way to say so many links."""
    names = list(itertools.islice(shortest_names(), link_count))
    ports = "{port={" + ",".join(f'{name}={{kind="tap"}}' for name in names) + "}}"
    links = ",".join(f'{name}={{ends=["a.{name}","b.{name}"]}}' for name in names)
    return f"vm={{a={ports},b={ports}}}\nlink={{{links}}}"


def test_no_fabric_file_has_more_links_than_a_directory() -> None:
    assert len(parse_config(densest_fabric(50), "fabric.toml").links) == 50
    assert len(densest_fabric(LINKS_MAX)) > TEXT_SIZE
