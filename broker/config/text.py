"""A fabric file as text: reading it within limits, its TOML, and the line on which each of its keys stands."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Final

TEXT_SIZE: Final = 1_000_000  # bytes; with its envelope it has to fit one control message of 1 MiB
LINKS_MAX: Final = 1024  # of one fabric; everything about all of them has to fit one reply of wire.REPLY_SIZE
MARKS_MAX: Final = 50_000  # of a text; the broker is deaf while it reads one
MARKS: Final = {"\n": 1, "[": 1, "{": 1, "=": 1, ",": 1, "\\": 1, '""': 1, ".": 2}  # what takes time to read
HEADER_MARKS: Final = 2  # what the beginning of a table costs more
HEADER_BEGINS: Final = re.compile(r"^[ \t]*\[", re.MULTILINE)

DOTS_MAX: Final = 16  # between the parts of a key
QUOTED: Final = re.compile(r"\"[^\"]*\"|'[^']*'")

Key = tuple[str | int, ...]  # ("vm", "client", "port", "net", "mtu"); an int is an index into an array


class FabricCause(StrEnum):
    FILE = "file"
    ENCODING = "encoding"
    SYNTAX = "syntax"
    DUPLICATE = "duplicate"
    UNKNOWN_KEY = "unknown_key"
    MISSING_KEY = "missing_key"
    TYPE = "type"
    NAME = "name"
    VALUE = "value"
    KIND = "kind"
    PORT_USED = "port_used"
    NOWHERE = "nowhere"
    SAME_END = "same_end"
    SIZE = "size"
    MTU = "mtu"
    LIMIT = "limit"
    FORWARD = "forward"
    RULE = "rule"


class FabricError(Exception):
    """A fabric file that cannot be applied: `where` is file and line, the message says the key and the remedy."""

    def __init__(self, cause: FabricCause, message: str, where: str) -> None:
        super().__init__(f"{where}: {message}")
        self.cause = cause
        self.message = message
        self.where = where


def read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(TEXT_SIZE + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise FabricError(FabricCause.FILE, f"cannot be read ({why}): name a fabric file", str(path)) from None
    if len(data) > TEXT_SIZE:
        message = f"has more than {TEXT_SIZE} bytes: a fabric file is text of at most that; is it the right file?"
        raise FabricError(FabricCause.FILE, message, str(path))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"byte {error.start} is not UTF-8 ({error.reason}): save the file as UTF-8"
        raise FabricError(FabricCause.ENCODING, message, f"{path}:{line}") from None


class FabricFile:
    """A parsed fabric file that knows where its keys stand."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.tables = _parse(text, name)
        self._text = text
        self._refuse_huge_numbers()

    @cached_property
    def _lines(self) -> dict[Key, int]:
        """Found when an error asks for them: in a large file that takes longer than all the rest."""
        lines: dict[Key, int] = {}
        for key, line in _keys(self._text):
            if _exists(self.tables, key):  # else it only looked like a key, inside an array or a string
                lines.setdefault(key, line)
        return lines

    def _refuse_huge_numbers(self) -> None:
        """Python refuses to print a number of thousands of digits, and messages about it would have to."""
        waiting: list[tuple[Key, object]] = [((), self.tables)]
        while waiting:
            key, found = waiting.pop()
            if isinstance(found, dict):
                waiting += [((*key, name), value) for name, value in found.items()]
            elif isinstance(found, list):
                waiting += [((*key, index), value) for index, value in enumerate(found)]
            elif isinstance(found, int) and not -(1 << 63) <= found < 1 << 63:
                raise self.error(FabricCause.SIZE, key, "a number that does not fit 64 bits: use a smaller one")

    def where(self, key: Key) -> str:
        """File and line of the key, or of what holds it."""
        for length in range(len(key), 0, -1):
            if key[:length] in self._lines:
                return f"{self.name}:{self._lines[key[:length]]}"
        return self.name

    def error(self, cause: FabricCause, key: Key, message: str) -> FabricError:
        return FabricError(cause, f"{spell(key)}: {message}" if key else message, self.where(key))


def spell(key: Key) -> str:
    """The key as a reader would write it; a rule is counted from 1."""
    parts = [f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in key]
    return "".join(parts).removeprefix(".")


def _parse(text: str, name: str) -> dict[str, Any]:
    if len(text) > TEXT_SIZE:
        raise FabricError(FabricCause.FILE, f"has more than {TEXT_SIZE} characters", name)
    _refuse_laborious(text, name)
    _refuse_long_keys(text, name)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        what = str(error)[: found.start()] if found else str(error)
        if re.match(r"Cannot (overwrite|declare|mutate)", what):
            message = f"{what}: the name is there twice; take one out or rename it"
            raise FabricError(FabricCause.DUPLICATE, message, f"{name}:{line}") from None
        raise FabricError(FabricCause.SYNTAX, f"not TOML: {what}", f"{name}:{line}") from None
    except (RecursionError, ValueError) as error:  # ValueError: a number with thousands of digits, an impossible date
        why = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise FabricError(FabricCause.SYNTAX, f"not TOML that can be read: {why}", name) from None


def _refuse_laborious(text: str, name: str) -> None:
    """Before it is parsed: a megabyte of table headers takes seconds, and as long the broker hears nobody."""
    marks = sum(text.count(mark) * weight for mark, weight in MARKS.items())
    marks += HEADER_MARKS * sum(1 for _ in HEADER_BEGINS.finditer(text))
    if marks > MARKS_MAX:
        message = (
            f"has {marks} line ends, brackets, '=', ',', '.' and '\\' (a '.' counts for 2, a table header for "
            f"{HEADER_MARKS} more), and {MARKS_MAX} are possible: a fabric has {LINKS_MAX} links at most; divide "
            "it among several brokers, or write each table in a line: [link], and below it NAME = {ends = [...]}"
        )
        raise FabricError(FabricCause.LIMIT, message, name)


def _refuse_long_keys(text: str, name: str) -> None:
    """Before they are parsed: the time that takes grows with the square of their parts."""
    for line, content in enumerate(text.split("\n"), 1):
        if QUOTED.sub("", content).split("#")[0].split("=")[0].count(".") > DOTS_MAX:
            message = f"a key with more than {DOTS_MAX} dots: none of a fabric's is so long"
            raise FabricError(FabricCause.UNKNOWN_KEY, message, f"{name}:{line}")


HEADER: Final = re.compile(r"\s*(\[\[?)\s*([^\[\]=]+?)\s*\]\]?\s*(?:#.*)?$")
KEY_PART: Final = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
PLAIN_PART: Final = re.compile(r"""[A-Za-z0-9_-]+|"[^"'\\]*"|'[^"']*'""")
PLAIN_KEY: Final = re.compile(rf"(?:{PLAIN_PART.pattern})(?:[ \t]*\.[ \t]*(?:{PLAIN_PART.pattern}))*")
ASSIGNMENT: Final = re.compile(rf"\s*({KEY_PART}(?:\s*\.\s*{KEY_PART})*)\s*=")


def _keys(text: str) -> Iterator[tuple[Key, int]]:
    """All that looks like a table header or an assignment, line by line."""
    table: Key = ()
    counts: dict[Key, int] = {}  # of arrays of tables, so far
    for line, content in enumerate(text.split("\n"), 1):
        if (header := HEADER.match(content)) is not None:
            parts = _within(counts, _split(header[2]))
            if not parts:
                continue
            if header[1] == "[[":
                counts[parts] = counts.get(parts, -1) + 1
                yield parts, line
                parts = (*parts, counts[parts])
            table = parts
            yield from _prefixes(table, line)
        elif (assignment := ASSIGNMENT.match(content)) is not None:
            yield from _prefixes((*table, *_split(assignment[1])), line)


def _prefixes(key: Key, line: int) -> Iterator[tuple[Key, int]]:
    """The key and what it implies: [vm.a.port.b] may be the only line on which vm.a stands."""
    for length in range(1, len(key) + 1):
        yield key[:length], line


def _split(dotted: str) -> Key:
    if PLAIN_KEY.fullmatch(dotted):  # nearly all; the rest takes some hundred times as long
        return tuple(part.strip("\"'") for part in PLAIN_PART.findall(dotted))
    try:
        table: object = tomllib.loads(f"{dotted} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    parts: list[str] = []
    while isinstance(table, dict):
        name, table = next(iter(table.items()))
        parts.append(name)
    return tuple(parts)


def _within(counts: dict[Key, int], key: Key) -> Key:
    """A header below an array of tables means the array's last element."""
    found: Key = ()
    for part in key[:-1]:
        found = (*found, part)
        if found in counts:
            found = (*found, counts[found])
    return (*found, *key[-1:])


def _exists(value: object, key: Key) -> bool:
    for part in key:
        if isinstance(part, int):
            if not isinstance(value, list) or part >= len(value):
                return False
            value = value[part]
        else:
            if not isinstance(value, dict) or part not in value:
                return False
            value = value[part]
    return True
