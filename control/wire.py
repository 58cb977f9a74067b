"""Messages to bytes and back: a msgpack map {v, id, kind, body}, decoded under limits and converted strictly.

What arrives is not trusted. Without the limits a few bytes could make the reader allocate without bound or recurse
until it dies; without strict conversion a float, a second key of the same name or a missing field would surface far
from here.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from enum import StrEnum
from typing import Annotated, Any, Final, NamedTuple, NoReturn

import msgpack
import msgspec

from ringway.control.errors import ControlError
from ringway.control.messages import KINDS, Cause, Message

VERSION: Final = 1
MESSAGE_SIZE: Final = 1 << 20  # bytes that a broker accepts in one message
REPLY_SIZE: Final = 64 << 20  # bytes that a client accepts from its broker: everything about every link
NESTING_MAX: Final = 16
ARRAY_MAX: Final = 1 << 16
MAP_MAX: Final = 4096
NO_ID: Final = "0" * 32  # in answers to what had no readable id


class WireCause(StrEnum):
    TOO_LARGE = "too_large"
    ENCODING = "encoding"  # not msgpack, over a limit, or a type that no message has
    ENVELOPE = "envelope"
    VERSION = "version"
    KIND = "kind"  # unknown, or not to be said in this direction
    BODY = "body"


class WireError(Exception):
    """Bytes that are not a message, or a message that is too large to be sent."""

    def __init__(self, cause: WireCause, message: str, request_id: str = NO_ID) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message
        self.request_id = request_id

    def refusal(self) -> ControlError:
        """What whoever sent it is told."""
        cause = Cause.VERSION if self.cause is WireCause.VERSION else Cause.BAD_MESSAGE
        return ControlError(cause, self.message)


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: int
    id: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    kind: str
    body: dict[str, Any]


class Received(NamedTuple):
    request_id: str
    message: Message


def new_id() -> str:
    return os.urandom(16).hex()


def encode(request_id: str, message: Message, size: int = MESSAGE_SIZE) -> bytes:
    envelope = Envelope(VERSION, request_id, type(message).__name__, msgspec.to_builtins(message))
    payload: bytes = msgpack.packb(msgspec.to_builtins(envelope))
    if len(payload) > size:
        text = f"a {type(message).__name__} of {len(payload)} bytes is more than the {size} that one message may have"
        raise WireError(WireCause.TOO_LARGE, text, request_id)
    return payload


def decode(payload: bytes, expected: Collection[type[Message]], size: int = MESSAGE_SIZE) -> Received:
    if len(payload) > size:
        text = f"{len(payload)} bytes arrived in one message; {size} are allowed"
        raise WireError(WireCause.TOO_LARGE, text)
    value = _unpack(payload)
    try:
        envelope = msgspec.convert(value, Envelope, strict=True)
    except msgspec.ValidationError as error:
        raise WireError(WireCause.ENVELOPE, f"not an envelope {{v, id, kind, body}}: {error}") from None
    if envelope.v != VERSION:
        text = f"the message has version {envelope.v}; this release speaks {VERSION}: use one release on both sides"
        raise WireError(WireCause.VERSION, text, envelope.id)
    kind = KINDS.get(envelope.kind)
    if kind is None or kind not in expected:
        known = ", ".join(sorted(allowed.__name__ for allowed in expected))
        text = f"a message {envelope.kind[:40]!r} is not expected here; expected are: {known}"
        raise WireError(WireCause.KIND, text, envelope.id)
    try:
        return Received(envelope.id, msgspec.convert(envelope.body, kind, strict=True))
    except msgspec.ValidationError as error:
        raise WireError(WireCause.BODY, f"{envelope.kind}: {error}", envelope.id) from None


def _unpack(payload: bytes) -> object:
    try:
        value: object = msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_map_without_twins,
            ext_hook=_refuse_extension,
            max_str_len=len(payload),
            max_bin_len=0,
            max_array_len=ARRAY_MAX,
            max_map_len=MAP_MAX,
            max_ext_len=0,
        )
    # msgpack's own errors derive from ValueError, except for a few; the recursion is that of its pure Python twin.
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise WireError(WireCause.ENCODING, f"not msgpack within limits: {error or type(error).__name__}") from None
    _check_plain(value)
    return value


def _map_without_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a map has the same key twice")
    return found


def _refuse_extension(code: int, _data: bytes) -> NoReturn:
    raise ValueError(f"extension type {code}; messages have none")


def _check_plain(value: object) -> None:
    """Only maps, arrays, strings, integers, booleans and nil, and not too deep. Level by level: no recursion."""
    level = [value]
    for _ in range(NESTING_MAX):
        deeper: list[object] = []
        for item in level:
            if isinstance(item, dict):
                deeper.extend(item.values())
            elif isinstance(item, list):
                deeper.extend(item)
            elif item is not None and not isinstance(item, str | int):
                raise WireError(WireCause.ENCODING, f"a value of type {type(item).__name__}; messages have none")
        if not deeper:
            return
        level = deeper
    raise WireError(WireCause.ENCODING, f"nested deeper than {NESTING_MAX}")
