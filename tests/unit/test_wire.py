"""Messages to bytes and back, and the bytes that are no message."""

from __future__ import annotations

import contextlib
import math

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.control import wire
from ringway.control.messages import (
    FROM_BROKER,
    KINDS,
    PID_MAX,
    TO_BROKER,
    Apply,
    Cause,
    Claim,
    ErrorReply,
    Hello,
    RuleCount,
    SetStack,
    Show,
    Status,
    StatusRequest,
)
from ringway.control.rules import Rule, Stack
from ringway.control.wire import NO_ID, WireCause, WireError, decode, encode, new_id

ID = "0123456789abcdef0123456789abcdef"


def packed(body: object, kind: str = "Hello", version: object = 1, request_id: object = ID) -> bytes:
    payload: bytes = msgpack.packb({"v": version, "id": request_id, "kind": kind, "body": body})
    return payload


def cause_of(payload: bytes) -> WireCause:
    with pytest.raises(WireError) as caught:
        decode(payload, TO_BROKER)
    return caught.value.cause


def test_a_message_comes_back_as_it_was() -> None:
    hello = Hello(vm="client", pid=7, version="1")
    assert decode(encode(ID, hello), TO_BROKER) == (ID, hello)


def test_an_agent_cannot_say_a_pid_that_no_process_has() -> None:
    """It is listed for others, in a registry whose readers refuse what no broker writes."""
    hello = {"vm": "client", "version": "1"}
    assert cause_of(packed({**hello, "pid": PID_MAX + 1})) is WireCause.BODY
    assert isinstance(decode(packed({**hello, "pid": PID_MAX}), TO_BROKER).message, Hello)


def test_a_stack_keeps_its_pairs_and_ranges() -> None:
    rule = Rule(name="web", action="allow", protocol=6, destination_port=(80, 90), tcp_mask=18, tcp_value=2)
    message = SetStack(stack=Stack(forward=[("inside", "outside")], default="deny", rules=[rule]))
    assert decode(encode(ID, message), FROM_BROKER).message == message


def test_every_kind_is_listed_under_its_own_name() -> None:
    assert all(name == kind.__name__ for name, kind in KINDS.items())
    assert StatusRequest not in TO_BROKER
    assert Apply not in FROM_BROKER


def test_ids_are_taken_once() -> None:
    assert len({new_id() for _ in range(1000)}) == 1000


def test_a_message_over_the_size_limit_is_refused_unread() -> None:
    assert cause_of(b"\xc0" * (wire.MESSAGE_SIZE + 1)) is WireCause.TOO_LARGE


def test_a_message_over_the_size_limit_is_not_sent() -> None:
    with pytest.raises(WireError) as caught:
        encode(ID, Apply(name="f", text="x" * wire.MESSAGE_SIZE))
    assert caught.value.cause is WireCause.TOO_LARGE


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xc1", id="a byte that msgpack never uses"),
        pytest.param(b"\x91" * 100_000, id="nesting of 100000, cut off"),
        pytest.param(b"\x91" * 100_000 + b"\xc0", id="nesting of 100000"),
        pytest.param(packed([[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]), id="nesting just too deep"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="a map of 2^32-1 entries declared"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="an array of 2^32-1 entries declared"),
        pytest.param(b"\xdb\xff\xff\xff\xff", id="a string of 4 GiB declared"),
        pytest.param(msgpack.packb(msgpack.ExtType(5, b"x")), id="an extension"),
        pytest.param(msgpack.packb(msgpack.ExtType(5, b"")), id="an empty extension"),
        pytest.param(msgpack.packb(msgpack.Timestamp(1)), id="a timestamp"),
        pytest.param(packed({"vm": b"client"}), id="bytes for a string"),
        pytest.param(packed({"vm": b""}), id="empty bytes for a string"),
        pytest.param(packed({"pid": math.nan}), id="NaN"),
        pytest.param(msgpack.packb({math.nan: 1}), id="NaN as a key"),
        pytest.param(msgpack.packb({1: 1}), id="a number as a key"),
        pytest.param(b"\x82\xa1v\x01\xa1v\x01", id="a key twice"),
        pytest.param(b"\xa2\xff\xfe", id="a string that is not UTF-8"),
        pytest.param(encode(ID, Show()) + b"\x00", id="bytes after the end"),
        pytest.param(encode(ID, Show())[:-1], id="cut short"),
    ],
)
def test_bytes_that_are_not_msgpack_within_limits_are_a_typed_error(payload: bytes) -> None:
    assert cause_of(payload) is WireCause.ENCODING


@pytest.mark.parametrize(
    ("payload", "cause"),
    [
        (msgpack.packb([]), WireCause.ENVELOPE),
        (msgpack.packb({"v": 1}), WireCause.ENVELOPE),
        (packed({}, request_id="../../etc"), WireCause.ENVELOPE),
        (packed({}, request_id=ID + "\n"), WireCause.ENVELOPE),
        (packed({}, version=True), WireCause.ENVELOPE),
        (packed([]), WireCause.ENVELOPE),
        (packed({}, version=2), WireCause.VERSION),
        (packed({}, kind="Nonsense"), WireCause.KIND),
        (packed({}, kind="StatusRequest"), WireCause.KIND),
        (packed({}), WireCause.BODY),
        (packed({"vm": "client", "pid": -1, "version": ""}), WireCause.BODY),
        (packed({"vm": "client", "pid": True, "version": ""}), WireCause.BODY),
        (packed({"vm": "client", "pid": "1", "version": ""}), WireCause.BODY),
        (packed({"vm": "client", "pid": 2**64 - 1, "version": ""}), WireCause.BODY),
        (packed({"vm": None, "pid": 1, "version": ""}), WireCause.BODY),
        (packed({"vm": "client", "pid": 1, "version": "", "more": 1}), WireCause.BODY),
    ],
)
def test_valid_msgpack_of_the_wrong_shape_is_a_typed_error(payload: bytes, cause: WireCause) -> None:
    assert cause_of(payload) is cause


def test_a_float_for_an_integer_is_refused_even_when_it_is_whole() -> None:
    assert cause_of(packed({"vm": "client", "pid": 1.0, "version": ""})) is WireCause.ENCODING


def test_the_error_carries_the_request_id_when_there_is_one() -> None:
    with pytest.raises(WireError) as caught:
        decode(packed({}), TO_BROKER)
    assert caught.value.request_id == ID
    with pytest.raises(WireError) as caught:
        decode(b"\xc1", TO_BROKER)
    assert caught.value.request_id == NO_ID


@pytest.mark.parametrize(
    "name",
    ["", "a/b", "..", "a\x00", "a\n", "a" * 64, "A", "-a", "раyment", "a.b", "a b"],  # the sixth is Cyrillic
)
def test_a_vm_name_that_could_be_mistaken_is_refused(name: str) -> None:
    assert cause_of(packed({"vm": name, "pid": 1, "version": ""})) is WireCause.BODY


def test_terminal_codes_do_not_travel_in_texts() -> None:
    payload = packed({"cause": "failed", "message": "\x1b[2J"}, kind="ErrorReply")
    assert cause_of(payload) is WireCause.BODY


def test_an_answer_with_a_bad_ticket_text_is_refused() -> None:
    body = {"vm": "a", "link": "l", "side": 0, "ticket": "x" * 32}
    with pytest.raises(WireError):
        decode(packed(body, kind="Claim"), (Claim,))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_wire_error(payload: bytes) -> None:
    with contextlib.suppress(WireError):
        decode(payload, TO_BROKER)


LEAF = st.sampled_from([None, True, -1, 0, 2**64 - 1, 0.5, b"", "", "net", "\n", ID])
PLAIN = LEAF | st.lists(LEAF, max_size=3) | st.dictionaries(st.sampled_from(["name", "counters", ""]), LEAF, max_size=3)


@given(st.sampled_from(sorted(KINDS)), st.dictionaries(st.sampled_from(["vm", "pid", "name", "ports"]), PLAIN))
def test_any_msgpack_is_a_message_or_a_wire_error(kind: str, body: dict[str, object]) -> None:
    with contextlib.suppress(WireError):
        decode(packed(body, kind), TO_BROKER)


@given(st.sampled_from(list(Cause)), st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=50))
def test_every_error_comes_back_as_it_was(cause: Cause, text: str) -> None:
    message = ErrorReply(cause=cause, message=text)
    assert decode(encode(ID, message), TO_BROKER).message == message


def test_counters_of_64_bits_pass() -> None:
    told = Status(ports=[], loops=[], rules=[RuleCount(name="web", frames=2**64 - 1, bytes=0)])
    assert decode(encode(ID, told), TO_BROKER).message == told
