"""Reads shm/layout.h for what the compiler does not keep: its names in their order, and the comments beside them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = ROOT / "shm" / "layout.h"
API = ROOT / "shm" / "api.h"

TOKEN = re.compile(
    r"^/\*(?P<comment>.*?)\*/$|^(?P<what>enum|struct)(?: (?P<name>\w+))? \{(?P<body>.*?)\};$",
    re.DOTALL | re.MULTILINE,
)
BESIDE = r"[ \t]*(?:/\*\s*(?P<comment>[^\n]*?)\s*\*/)?\s*"
CONSTANT = re.compile(r"(?P<name>RWAY_\w+) = (?P<literal>\w+)\s*,?" + BESIDE)
MEMBER = re.compile(r"(?:struct )?\w+ (?P<name>\w+)(?:\[\d+\])?;" + BESIDE)


class HeaderError(Exception):
    """Something in a header that this reader does not understand, and would otherwise leave out in silence."""


@dataclass(frozen=True)
class Chapter:
    """A comment that stands alone: prose under a title."""

    title: str
    text: str


@dataclass(frozen=True)
class Entry:
    """A constant or a member. literal: the constant's value as written; comment: may be empty."""

    name: str
    comment: str
    literal: str = ""


@dataclass(frozen=True)
class Declaration:
    """An enum (name "" when it has none) or a struct, and the comment in front of it."""

    what: str
    name: str
    comment: str
    entries: tuple[Entry, ...]

    @property
    def title(self) -> str:
        return f"{self.what} {self.name}" if self.name else "Constants"


def layout() -> list[Chapter | Declaration]:
    """All of layout.h. Its shared words refer to enums of api.h too: these follow where they are named first."""
    text = LAYOUT.read_text(encoding="utf-8")
    check_complete(text)
    items = list(parse(text))
    known = {item.name for item in items if isinstance(item, Declaration)}
    ordered: list[Chapter | Declaration] = []
    for item in items:
        ordered.append(item)
        for name in mentioned_enums(item):
            if name not in known:
                ordered.append(enum_of_api(name))
                known.add(name)
    return ordered


def mentioned_enums(item: Chapter | Declaration) -> list[str]:
    comments = [entry.comment for entry in item.entries] if isinstance(item, Declaration) else []
    return [name for comment in comments for name in re.findall(r"\benum (rway_\w+)", comment)]


def enum_of_api(name: str) -> Chapter | Declaration:
    text = API.read_text(encoding="utf-8")
    found = re.search(rf"(?:^/\*[^\n]*\*/\n)?^enum {name} \{{.*?^\}};$", text, re.DOTALL | re.MULTILINE)
    if found is None:
        raise HeaderError(f"shm/layout.h names enum {name}, which neither it nor shm/api.h has")
    return next(parse(found[0]))


def check_complete(text: str) -> None:
    rest = TOKEN.sub("", text).strip()
    if rest:
        raise HeaderError(f"shm/layout.h: neither a comment, an enum nor a struct: {rest.splitlines()[0]!r}")


def parse(text: str) -> Iterator[Chapter | Declaration]:
    tokens = list(TOKEN.finditer(text))
    for at, token in enumerate(tokens):
        if token["what"]:
            before = tokens[at - 1] if at else None
            adjoins = before is not None and before["comment"] is not None and before.end() + 1 == token.start()
            comment = plain(before["comment"]) if before is not None and adjoins else ""
            yield Declaration(token["what"], token["name"] or "", comment, entries(token))
        elif text[token.end() : token.end() + 2] in ("\n\n", "\n"):
            title, _, body = plain(token["comment"]).partition("\n\n")
            yield Chapter(title.rstrip("."), body)


def entries(token: re.Match[str]) -> tuple[Entry, ...]:
    pattern = CONSTANT if token["what"] == "enum" else MEMBER
    body = token["body"].strip()
    rest = pattern.sub("", body).strip()
    if rest:
        raise HeaderError(f"{token['what']} {token['name'] or ''}: not understood: {rest.splitlines()[0]!r}")
    return tuple(Entry(**{"comment": "", **match.groupdict("")}) for match in pattern.finditer(body))


def plain(comment: str) -> str:
    """Without the stars; paragraphs and indented pictures stay as they are."""
    lines = [re.sub(r"^ \*(?: |$)", "", line) for line in comment.split("\n")]
    return "\n".join(line.rstrip() for line in lines).strip()
