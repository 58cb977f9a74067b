"""A packet function that was loaded: its tables, the options that a fabric file gives it, and what it has counted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from ringway.shm._native import ffi, lib

Value = int | bool | str

_LINE: Final = 8  # counters in a cache line: no two loops write into the same
_TYPES: Final = {lib.RWAY_OPTION_NUMBER: int, lib.RWAY_OPTION_BOOLEAN: bool, lib.RWAY_OPTION_TEXT: str}
_WORDS: Final = {int: "a whole number", bool: "true or false", str: "a string"}
_NAME_MAX: Final = 128  # characters of a counter's or option's name


class FunctionCause(StrEnum):
    """Why a packet function does not run."""

    NO_DIRECTORY = "no_directory"  # the agent was given none
    MISSING = "missing"  # the directory has no such file
    RIGHTS = "rights"  # somebody else could change the file
    LOAD = "load"  # the dynamic linker, or Python, does not take it
    VERSION = "version"  # it was built for another version of the interface
    ENTRY = "entry"  # it has none, or one that cannot be
    OPTION = "option"  # it does not take that option, or not with that value
    START = "start"  # it does not start


class FunctionError(Exception):
    """`cause` says what kind of thing failed; the message what to do."""

    def __init__(self, cause: FunctionCause, name: str, message: str) -> None:
        super().__init__(f"packet function {name!r}: {message}")
        self.cause = cause


class Counters:
    """One loop's, for as long as it holds them."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self.native: Any = ffi.NULL

    @contextlib.contextmanager
    def hold(self, _name: str) -> Iterator[None]:
        self.native = self._function.free_counters.pop() if self._function.free_counters else self._function.array()
        try:
            yield
        finally:
            self._function.free_counters.append(self.native)


class Function:
    """A function with its options, for all loops of a stack. Close it when none uses it any more."""

    def __init__(
        self, name: str, native: Any, options: Mapping[str, Value], digest: str, unload: Callable[[], None]
    ) -> None:
        """`native`: a `const struct rway_function *`, good until `unload`; `digest`: of what it was loaded from.

        FunctionError, and it is unloaded.
        """
        self.name = name
        self.native = native
        self.given = dict(options)
        self.digest = digest
        self._unload = unload
        self._texts: list[Any] = []  # that options point to
        self._arrays: list[tuple[Any, Any]] = []  # counters: what owns the memory, and where in it they begin
        self.free_counters: list[Any] = []
        try:
            self._check_version()
            self._counter_names = self._names("counter", native.counters, native.counter_count)
            self.options = self._options(options)
        except BaseException:
            unload()
            raise
        self._carried = dict.fromkeys(self._counter_names, 0)

    def close(self) -> None:
        self._unload()

    def was_loaded_from(self, digest: str, options: Mapping[str, Value]) -> bool:
        """True is not 1 here: an option of the wrong type is to be refused, also when the other runs."""
        return self.digest == digest and repr(sorted(self.given.items())) == repr(sorted(options.items()))

    def array(self) -> Any:
        """Counters for one more loop, all 0, in cache lines of their own."""
        size = -(-max(1, len(self._counter_names)) // _LINE) * _LINE
        memory = ffi.new("uint64_t[]", size + _LINE)
        skipped = -(int(ffi.cast("uintptr_t", memory)) // 8) % _LINE
        self._arrays.append((memory, memory + skipped))
        return memory + skipped

    def counts(self) -> dict[str, int]:
        """The sums over all loops there are and were, in the order of its table."""
        return {
            name: self._carried[name] + sum(int(array[index]) for _, array in self._arrays)
            for index, name in enumerate(self._counter_names)
        }

    def carry_on_from(self, before: Sequence[Function]) -> None:
        """Count on from the function of the same name that this one replaces, if there is one."""
        for function in before:
            if function is not self and function.name == self.name:
                counted = function.counts()
                self._carried = {name: counted.get(name, 0) for name in self._counter_names}

    def _check_version(self) -> None:
        """First: of another version nothing else is known."""
        found, wanted = int(self.native.version), int(lib.RWAY_FUNCTION_VERSION)
        if found != wanted:
            message = (
                f"it was built for version {found} of the interface, and this agent has version {wanted}: build it "
                "against the headers of this release (`ringway headers`)"
            )
            raise FunctionError(FunctionCause.VERSION, self.name, message)
        if self.native.burst == ffi.NULL:
            raise self._bad_entry("it has no burst: give it one")

    def _names(self, what: str, table: Any, count: int) -> list[str]:
        most = lib.RWAY_FUNCTION_COUNTERS_MAX if what == "counter" else lib.RWAY_FUNCTION_OPTIONS_MAX
        if count > most:
            raise self._bad_entry(f"it has {count} {what}s, and {most} are possible: take fewer")
        names: list[str] = []
        for index in range(count):
            entry = table[index] if what == "counter" else table[index].name
            name = "" if entry == ffi.NULL else ffi.string(entry, _NAME_MAX + 1).decode("ascii", "replace")
            if not 0 < len(name) <= _NAME_MAX or not all("!" <= char <= "~" for char in name):
                raise self._bad_entry(f"{what} {index} has no name of 1 to {_NAME_MAX} printable ASCII characters")
            if name in names:
                raise self._bad_entry(f"{what} {name!r} is there twice: give each its own name")
            names.append(name)
        return names

    def _options(self, given: Mapping[str, Value]) -> Any:
        """The values of all options, in the order of the function's table."""
        table = self.native.options
        names = self._names("option", table, self.native.option_count)
        for name in given:
            if name not in names:
                message = f"it has no option {name!r}; its options are: {', '.join(names) or 'none'}"
                raise FunctionError(FunctionCause.OPTION, self.name, message)
        values = ffi.new("union rway_option_value[]", max(1, len(names)))
        for index, name in enumerate(names):
            self._set_option(table[index], name, given.get(name), values[index])
        return values

    def _set_option(self, option: Any, name: str, given: Value | None, value: Any) -> None:
        if option.type not in _TYPES:
            raise self._bad_entry(f"option {name!r} is of type {option.type}, which is none: see enum rway_option_type")
        kind = _TYPES[option.type]
        if given is None:
            value.number = option.usual
            if kind is str:
                value.text = ffi.NULL
            return
        if type(given) is not kind:
            message = f"option {name!r} is {given!r}, and has to be {_WORDS[kind]}"
            raise FunctionError(FunctionCause.OPTION, self.name, message)
        if isinstance(given, str):
            encoded = given.encode()
            self._check_range(option, name, len(encoded), " bytes")
            self._texts.append(ffi.new("char[]", encoded))
            value.text = self._texts[-1]
            return
        if kind is int:
            self._check_range(option, name, given, "")
        value.number = given

    def _check_range(self, option: Any, name: str, found: int, unit: str) -> None:
        if not option.least <= found <= option.most:
            message = f"option {name!r} is {found}{unit}, out of range: use {option.least} to {option.most}{unit}"
            raise FunctionError(FunctionCause.OPTION, self.name, message)

    def _bad_entry(self, message: str) -> FunctionError:
        return FunctionError(FunctionCause.ENTRY, self.name, message)
