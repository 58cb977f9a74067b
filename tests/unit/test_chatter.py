"""What agents cause to be logged is bounded, VM by VM, and what is left out is counted."""

from __future__ import annotations

from ringway.broker.chatter import LINE_LENGTH, LINES_MAX, PERIOD, Chatter


def test_a_few_lines_pass_and_the_rest_is_counted_once_a_period() -> None:
    said: list[str] = []
    chatter = Chatter(said.append)
    assert chatter.deadline() is None
    for number in range(1000):
        chatter.say("client", f"line {number}", number / 1000)
    chatter.expire(0.999)
    assert said == [f"line {number}" for number in range(LINES_MAX)]
    assert chatter.deadline() == PERIOD
    chatter.expire(PERIOD)
    assert said[LINES_MAX:] == [f"VM 'client': {1000 - LINES_MAX} more such lines in 1 s"]
    assert chatter.deadline() is None


def test_who_goes_on_is_heard_again_after_the_count() -> None:
    said: list[str] = []
    chatter = Chatter(said.append)
    for _ in range(LINES_MAX + 1):
        chatter.say("client", "a line", 0)
    chatter.say("client", "another", PERIOD)
    assert said[LINES_MAX:] == ["VM 'client': 1 more such lines in 1 s", "another"]


def test_one_vm_takes_no_lines_from_another() -> None:
    said: list[str] = []
    chatter = Chatter(said.append)
    for _ in range(100):
        chatter.say("client", "noise", 0)
    chatter.say("server", "a word", 0.5)
    assert said[-1] == "a word"
    chatter.expire(PERIOD)
    chatter.expire(PERIOD + 0.5)
    assert sum("more such lines" in line for line in said) == 1


def test_a_line_has_an_end() -> None:
    said: list[str] = []
    Chatter(said.append).say("client", "x" * 8192, 0)
    assert said == ["x" * LINE_LENGTH + "…"]
