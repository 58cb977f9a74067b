"""What a VM, a port, a link or a rule may be called."""

from __future__ import annotations

import re
from typing import Annotated, Final

from msgspec import Meta

# \Z and not $: $ would let a trailing newline through. Names never become paths, but they end up in logs and tables.
NAME_PATTERN: Final = r"\A[a-z0-9][a-z0-9_.-]{0,62}\Z"
# An end is written "vm.port", so neither half may hold a dot.
PLAIN_NAME_PATTERN: Final = r"\A[a-z0-9][a-z0-9_-]{0,62}\Z"

Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
PlainName = Annotated[str, Meta(pattern=PLAIN_NAME_PATTERN)]

NAME_RULE: Final = "1 to 63 of a-z, 0-9, '_', '.' and '-', beginning with a letter or digit"
PLAIN_NAME_RULE: Final = "1 to 63 of a-z, 0-9, '_' and '-', beginning with a letter or digit"

PRINTED_MAX: Final = 2000  # bytes in UTF-8: with the words around it a message has to fit the smallest of sockets


def printable(text: str) -> str:
    """For messages that quote what somebody wrote: what a terminal would obey is replaced, and the end cut off."""
    shown = "".join(char if char.isprintable() else "?" for char in text[:PRINTED_MAX])
    return shown.encode("utf-8", "replace")[:PRINTED_MAX].decode("utf-8", "ignore")


def is_name(text: str) -> bool:
    return re.search(NAME_PATTERN, text) is not None


def is_plain_name(text: str) -> bool:
    return re.search(PLAIN_NAME_PATTERN, text) is not None
