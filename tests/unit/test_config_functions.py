"""What a fabric file may say of packet functions, which the broker knows by their names alone."""

from __future__ import annotations

import pytest

from ringway.broker.config.checks import parse_config
from ringway.broker.config.text import FabricCause, FabricError
from ringway.control.rules import FunctionUse

STACK = """
[vm.fw.port.inside]
kind = "local"
[vm.fw.port.outside]
kind = "local"
[vm.fw.stack]
forward = [["inside", "outside"]]
default = "allow"
"""
FUNCTION = "[[vm.fw.stack.function]]\n"


def test_functions_stand_in_the_files_order_with_options_of_three_types() -> None:
    options = 'options = { most = -5, loud = true, text = "a/b" }'
    stack = parse_config(f'{STACK}{FUNCTION}name = "two"\n{options}\n{FUNCTION}name = "1-one"\n', "f").vms["fw"].stack
    assert stack is not None
    two = FunctionUse(name="two", options={"most": -5, "loud": True, "text": "a/b"})
    assert stack.functions == [two, FunctionUse(name="1-one")]


@pytest.mark.parametrize(
    ("text", "cause", "said"),
    [
        ("", FabricCause.MISSING_KEY, "name is missing"),
        ('name = "../mark"', FabricCause.NAME, "never a path"),
        ('name = "a.so"', FabricCause.NAME, "never a path"),
        ('name = "conntrack"', FabricCause.NAME, "that ringway has"),
        (f'name = "a"\n{FUNCTION}name = "a"', FabricCause.DUPLICATE, "there twice"),
        (f"\n{FUNCTION}".join(f'name = "a{number}"' for number in range(16)), FabricCause.LIMIT, "use 15 at most"),
        ('name = "a"\npath = "/tmp"', FabricCause.UNKNOWN_KEY, "known here: name, options"),
        ('name = "a"\noptions = { rate = 1.5 }', FabricCause.TYPE, "options"),
        ('name = "a"\noptions = 5', FabricCause.TYPE, "write options = { most = 1500 }"),
        (f'name = "a"\noptions = {{ t = "{"x" * 1025}" }}', FabricCause.VALUE, "1025 bytes: use 1024"),
        ('name = "a"\noptions = { t = "x\\u0000y" }', FabricCause.VALUE, "no NUL"),
    ],
)
def test_what_cannot_be_named_is_refused_with_its_line(text: str, cause: FabricCause, said: str) -> None:
    with pytest.raises(FabricError) as caught:
        parse_config(f"{STACK}{FUNCTION}{text}\n", "fabric.toml")
    assert caught.value.cause is cause
    assert said in caught.value.message
    assert int(caught.value.where.partition(":")[2]) > STACK.count("\n")
