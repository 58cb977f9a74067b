"""A packet function in Python, called as the pipeline calls one in C."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ringway.shm._native import ffi, lib
from ringway.stack.function import Function, FunctionCause, FunctionError
from ringway.stack.prototype import load_prototype

SOURCE = """
from ringway.stack.prototype import Boolean, Number, Text

OPTIONS = {"least": Number(0, 9, usual=4), "loud": Boolean(usual=True), "word": Text(most=5)}
COUNTERS = ("seen", "turns", "rests")

class Function:
    def __init__(self, start):
        self.start = start
        print(dict(start.options), start.ports)

    def turn(self, now_ns):
        self.start.count("turns", now_ns)

    def rest(self):
        self.start.count("rests")

    def stop(self):
        print("stopped")

    def burst(self, packets):
        self.start.count("seen", len(packets))
        for packet in packets:
            what = packet.content[0]
            if what == 1:
                packet.content[0] = 99
            elif what == 2:
                packet.push(2, b"abc")
            elif what == 3:
                packet.pull(1, 2)
            elif what == 4:
                packet.drop("malformed")
            elif what == 5:
                packet.send(7)
            elif what == 6:
                assert not packet.push(0, bytes(65)) and not packet.pull(0, 1000)
            elif what == 7:
                raise ValueError("seven")
"""


class Caller:
    """What a loop does with a function."""

    def __init__(self, **options: int | bool | str) -> None:
        self.function: Function = load_prototype("mine", SOURCE.encode(), options, "")
        self.counters = self.function.array()
        names = [ffi.new("char[]", name) for name in (b"inside", b"outside")]
        ports = ffi.new("const char *[]", names)
        start = {"options": self.function.options, "counters": self.counters, "ports": ports, "port_count": 2}
        self.state = self.function.native.start(ffi.new("struct rway_function_start *", start))

    def burst(self, *whats: int) -> list[Any]:
        packets = [ffi.new("struct rway_packet *") for _ in whats]
        for packet, what in zip(packets, whats, strict=True):
            packet.bytes = packet.room + lib.RWAY_PUSH_MAX
            packet.bytes[0:4] = bytes([what, 10, 11, 12])
            packet.private_len = packet.len = 4
        self.function.native.burst(self.state, ffi.new("struct rway_packet *[]", packets), len(packets))
        return packets


@pytest.fixture
def caller() -> Iterator[Caller]:
    made = Caller(word="hello")
    yield made
    made.function.native.stop(made.state)
    made.function.close()


def content(packet: Any) -> bytes:
    return bytes(ffi.buffer(packet.bytes, packet.private_len))


def test_options_and_ports_are_given_by_name_and_what_is_not_said_is_as_usual(
    caller: Caller, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Caller(least=9, loud=False)
    other.function.native.stop(other.state)
    assert capsys.readouterr().out.splitlines() == [
        "{'least': 9, 'loud': False, 'word': None} ['inside', 'outside']",
        "stopped",
    ]
    assert caller.function.given == {"word": "hello"}


def test_it_reads_changes_lengthens_shortens_drops_and_sends(caller: Caller) -> None:
    changed, longer, shorter, dropped, sent, refused = caller.burst(1, 2, 3, 4, 5, 6)
    assert content(changed) == bytes([99, 10, 11, 12])
    assert content(longer) == bytes([2, 10]) + b"abc" + bytes([11, 12])
    assert (longer.len, shorter.len, content(shorter)) == (7, 2, bytes([3, 12]))
    assert (dropped.verdict, dropped.cause) == (lib.RWAY_VERDICT_DROP, lib.RWAY_DROP_MALFORMED)
    assert (sent.verdict, sent.out_port) == (lib.RWAY_VERDICT_OUT, 7)
    assert content(refused) == bytes([6, 10, 11, 12])
    caller.function.native.turn(caller.state, 5)
    caller.function.native.rest(caller.state)
    assert caller.function.counts() == {"seen": 6, "turns": 5, "rests": 1, "raised": 0}


def test_what_it_raises_is_counted_and_said_once_and_what_it_had_not_decided_is_dropped(
    caller: Caller, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        sent, raised, behind = caller.burst(5, 7, 0)
        assert sent.verdict == lib.RWAY_VERDICT_OUT
        assert [packet.verdict for packet in (raised, behind)] == [lib.RWAY_VERDICT_DROP] * 2
    assert caller.function.counts()["raised"] == 2
    assert capsys.readouterr().err.count("ValueError: seven") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"most": 1}, "its options are: least, loud, word"),
        ({"least": 10}, "is 10, out of range: use 0 to 9"),
        ({"least": True}, "is True, and has to be a whole number"),
        ({"loud": 1}, "has to be true or false"),
        ({"word": 5}, "has to be a string"),
        ({"word": "sechs!"}, "is 6 bytes, out of range: use 0 to 5 bytes"),
    ],
)
def test_options_are_held_against_its_table(options: dict[str, int | bool | str], said: str) -> None:
    with pytest.raises(FunctionError) as caught:
        load_prototype("mine", SOURCE.encode(), options, "")
    assert caught.value.cause is FunctionCause.OPTION
    assert said in str(caught.value)
