"""docs/layout.md: prose and meanings from the comments of shm/layout.h, numbers from the compiled library."""

import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from tools.layout.description import SHAPE, Description
from tools.layout.header import ROOT, Chapter, Declaration, Entry, layout

PAGE = ROOT / "docs" / "layout.md"
FOREWORD = """\
For whoever writes a second implementation of an end. Generated from [shm/layout.h](../shm/layout.h) by
`./run layout page`: edit the comments there. The numbers are those of
[tests/layout_v1.json](../tests/layout_v1.json), which may change only as
[ADR 7](adr/0007-layout-1-is-frozen.md) allows."""
SIZES = "Sizes that follow from a geometry"
SIZES_TEXT = """\
As rway_geometry_shape computes them, in bytes; rings_offset is where the broker puts a→b and b→a."""
PARTS = "Parts of a queue"
PARTS_TEXT = """\
Where a real producer put them, in bytes from the start of its queue: two frames were published, the first over slots 0
and 1, the second in slot 2, and then looked for in the region."""

IDENTIFIER = re.compile(r"(`[^`]*`)|(?<![\w/.])((?:struct|enum) rway_\w+|RWAY_\w+|[a-z]\w*_\w+)(?![\w/]|\.\w)")


def page(description: Description) -> str:
    """The whole page, ending in a line feed."""
    first, *rest = layout()
    assert isinstance(first, Chapter)
    blocks = [f"# {first.title}", FOREWORD, *prose(first.text)]
    for item in rest:
        if isinstance(item, Chapter):
            blocks += [f"## {item.title}", *prose(item.text)]
        else:
            blocks += declaration(item, description)
    blocks += [f"## {SIZES}", *prose(SIZES_TEXT), sizes(description["geometries"])]
    blocks += [f"## {PARTS}", *prose(PARTS_TEXT), parts(description["geometries"])]
    return "\n\n".join(blocks) + "\n"


def prose(text: str) -> Iterator[str]:
    """Paragraphs; indented ones, such as pictures and tables, as they stand."""
    for paragraph in text.split("\n\n"):
        is_picture = paragraph.startswith("    ")
        yield f"```text\n{textwrap.dedent(paragraph)}\n```" if is_picture else marked(paragraph)


def declaration(item: Declaration, description: Description) -> list[str]:
    title = f"### {item.title}"
    if item.what == "enum":
        named = [(entry.literal, f"`{entry.name}`", marked(entry.comment)) for entry in item.entries]
        return [title, *prose(item.comment), table(("value", "name", "meaning"), named)]
    facts = description["structs"][item.name]
    comment = f"{facts['sizeof']} bytes. {item.comment}".strip()
    rows = [member(entry, facts[entry.name]) for entry in item.entries]
    return [title, *prose(comment), table(("offset", "size", "member", "type", "meaning"), rows)]


def member(entry: Entry, fact: dict[str, Any]) -> tuple[str, ...]:
    kind = marked(fact["type"]) if fact["type"].startswith("struct") else f"`{fact['type']}`"
    return str(fact["offset"]), str(fact["size"]), f"`{entry.name}`", kind, marked(entry.comment)


def sizes(geometries: dict[str, dict[str, Any]]) -> str:
    rows = []
    for geometry, facts in geometries.items():
        a_to_b, b_to_a = facts["rings_offset"]
        columns = {**{name: facts[name] for name in SHAPE}, "rings_offset": f"{a_to_b}, {b_to_a}"}
        rows.append((*numbers(geometry), *map(str, columns.values())))
    return table((*MEMBERS, *SHAPE), rows)


def parts(geometries: dict[str, dict[str, Any]]) -> str:
    measured = {geometry: facts["queue"] for geometry, facts in geometries.items() if "queue" in facts}
    names = next(iter(measured.values()))
    titles = [name.replace("_", " ") for name in names]
    return table((*MEMBERS, *titles), [(*numbers(key), *map(str, found.values())) for key, found in measured.items()])


MEMBERS = ("queues", "slots", "payload", "headroom")


def numbers(geometry: str) -> list[str]:
    return re.findall(r"\d+", geometry)


def table(titles: Iterable[str], rows: Iterable[tuple[str, ...]]) -> str:
    head = list(titles)
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines)


def marked(text: str) -> str:
    """Names of the code as code; structs and enums as links to where they stand."""

    def mark(match: re.Match[str]) -> str:
        quoted, name = match.groups()
        if quoted:
            return str(quoted)
        if " " in name:
            return f"[`{name}`](#{name.replace(' ', '-')})"
        return f"`{name}`"

    return IDENTIFIER.sub(mark, text)
