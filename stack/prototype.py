"""Packet functions in Python, to try an idea: the same entry, options and counters as in C, and the GIL.

A file defines a class `Function`, and may define `OPTIONS` and `COUNTERS`:

    from ringway.stack.prototype import Number, Packet, Start

    OPTIONS = {"most": Number(0, 65536, usual=1500)}
    COUNTERS = ("long",)

    class Function:
        def __init__(self, start: Start) -> None: ...          # once for each loop
        def burst(self, packets: list[Packet]) -> None: ...    # in the loop's thread, with the GIL
"""

from __future__ import annotations

import sys
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from ringway.shm._native import ffi, lib
from ringway.stack.function import Function, FunctionCause, FunctionError, Value

_DROPS: Final = {"policy": lib.RWAY_DROP_POLICY, "malformed": lib.RWAY_DROP_MALFORMED}
_RAISED: Final = "raised"  # bursts that ended in an exception


@dataclass(frozen=True)
class Number:
    least: int
    most: int
    usual: int
    type: int = lib.RWAY_OPTION_NUMBER


@dataclass(frozen=True)
class Boolean:
    usual: bool
    type: int = lib.RWAY_OPTION_BOOLEAN
    least: int = 0
    most: int = 1


@dataclass(frozen=True)
class Text:
    """`most`: bytes. None when the fabric file does not say."""

    most: int
    type: int = lib.RWAY_OPTION_TEXT
    least: int = 0
    usual: int = 0


Option = Number | Boolean | Text


class Packet:
    """A packet of the burst that is under way; not to be kept."""

    __slots__ = ("native",)

    def __init__(self, native: Any) -> None:
        self.native = native  # a `struct rway_packet *`

    @property
    def content(self) -> memoryview:
        """The private bytes, to be read and changed in place: `packet.content[6:12] = …`."""
        return memoryview(ffi.buffer(self.native.bytes, self.native.private_len))

    @property
    def len(self) -> int:
        """Bytes of the frame as it leaves."""
        return int(self.native.len)

    @property
    def headers(self) -> Any:
        """A `struct rway_headers`: what the headers said when the frame came in."""
        return self.native.headers

    def drop(self, cause: str = "policy") -> None:
        self.native.verdict = lib.RWAY_VERDICT_DROP
        self.native.cause = _DROPS[cause]

    def send(self, port: int) -> None:
        """By the port of that number, past the functions behind."""
        self.native.out_port = port
        self.native.verdict = lib.RWAY_VERDICT_OUT

    def push(self, at: int, content: bytes | bytearray) -> bool:
        """Put bytes in at offset `at` of the private ones. False, and nothing is changed: there is no room."""
        room = lib.rway_packet_push(self.native, at, len(content))
        if room == ffi.NULL:
            return False
        ffi.memmove(room, content, len(content))
        return True

    def pull(self, at: int, size: int) -> bool:
        """Take bytes out. False, and nothing is changed: not all of them are private."""
        return bool(lib.rway_packet_pull(self.native, at, size) == 0)


class Start:
    """What a function is given for one loop: its `options` by name, and the `ports` of its stack in their order."""

    def __init__(self, options: Mapping[str, Any], ports: Sequence[str], counters: Any, names: list[str]):
        self.options = options
        self.ports = ports
        self._counters = counters
        self._index = {name: index for index, name in enumerate(names)}

    def count(self, name: str, more: int = 1) -> None:
        """Add to a counter, in the loop's thread."""
        self._counters[self._index[name]] += more


class _Step(Protocol):
    def burst(self, packets: list[Packet]) -> None: ...


class Prototype:
    """A module's `Function` as an entry."""

    def __init__(self, name: str, module: Mapping[str, Any]) -> None:
        self._name = name
        self._make: Callable[[Start], _Step] = module["Function"]
        self._options: dict[str, Option] = dict(module.get("OPTIONS", {}))
        self._counters = [*module.get("COUNTERS", ()), _RAISED]
        self._running: dict[int, tuple[_Step, Start]] = {}  # by the address that is its state in C
        self._kept: list[Any] = []
        self._has_raised = False
        self._start_failed = ""  # as it was last said
        self._entry = self._new("struct rway_function *", self._fields())
        self.native = ffi.cast("const struct rway_function *", self._entry)

    def _fields(self) -> dict[str, Any]:
        options = [
            {
                "name": self._text(name),
                "type": option.type,
                "least": option.least,
                "most": option.most,
                "usual": option.usual,
            }
            for name, option in self._options.items()
        ]
        methods: dict[str, tuple[str, Callable[..., object]]] = {
            "start": ("void *(*)(const struct rway_function_start *)", self._start),
            "stop": ("void(*)(void *)", self._stop),
            "burst": ("void(*)(void *, struct rway_packet *const *, uint32_t)", self._burst),
        }
        for hook, type_ in (("turn", "void(*)(void *, uint64_t)"), ("rest", "void(*)(void *)")):
            if hasattr(self._make, hook):
                methods[hook] = (type_, self._hook(hook))
        fields = {name: self._kept_callback(*method) for name, method in methods.items()}
        return fields | {
            "version": lib.RWAY_FUNCTION_VERSION,
            "options": self._new("struct rway_option[]", options),
            "option_count": len(options),
            "counters": self._new("const char *[]", [self._text(name) for name in self._counters]),
            "counter_count": len(self._counters),
        }

    def _new(self, type_: str, value: Any) -> Any:
        self._kept.append(ffi.new(type_, value))
        return self._kept[-1]

    def _text(self, text: str) -> Any:
        return self._new("char[]", text.encode())

    def _kept_callback(self, type_: str, method: Callable[..., object]) -> Any:
        self._kept.append(ffi.callback(type_, method))
        return self._kept[-1]

    def _start(self, native: Any) -> Any:
        try:
            options = {
                name: _value(option, native.options[index])
                for index, (name, option) in enumerate(self._options.items())
            }
            ports = [ffi.string(native.ports[number]).decode() for number in range(native.port_count)]
            start = Start(options, ports, native.counters, self._counters)
            step = self._make(start)
        except Exception:  # noqa: BLE001 - NULL says it, and the traceback why
            if traceback.format_exc() != self._start_failed:  # it is tried again and again
                self._start_failed = traceback.format_exc()
                self._report(self._start_failed)
            return ffi.NULL
        self._running[id(step)] = step, start
        return ffi.cast("void *", id(step))

    def _stop(self, state: Any) -> None:
        step, _ = self._running.pop(int(ffi.cast("uintptr_t", state)))
        if hasattr(step, "stop"):
            step.stop()

    def _burst(self, state: Any, packets: Any, count: int) -> None:
        """What the function raises is counted, and none of the burst leaves that it has not decided over."""
        step, start = self._running[int(ffi.cast("uintptr_t", state))]
        burst = [Packet(packets[index]) for index in range(count)]
        try:
            step.burst(burst)
        except Exception:  # noqa: BLE001 - whatever it is, the loop goes on
            start.count(_RAISED)
            if not self._has_raised:
                self._has_raised = True
                self._report(traceback.format_exc())
            for packet in burst:
                if packet.native.verdict == lib.RWAY_VERDICT_NEXT:
                    packet.drop()

    def _hook(self, name: str) -> Callable[..., None]:
        def call(state: Any, *arguments: int) -> None:
            getattr(self._running[int(ffi.cast("uintptr_t", state))][0], name)(*arguments)

        return call

    def _report(self, trace: str) -> None:
        print(f"packet function {self._name}: {trace}", file=sys.stderr, flush=True)

    def release(self) -> None:
        """No loop uses it any more."""
        self._kept.clear()


def _value(option: Option, native: Any) -> Value | None:
    if isinstance(option, Text):
        return None if native.text == ffi.NULL else bytes(ffi.string(native.text)).decode()
    return bool(native.number) if isinstance(option, Boolean) else int(native.number)


def load_prototype(name: str, content: bytes, options: Mapping[str, Value], digest: str) -> Function:
    """The function in the text of a Python file, which is run. FunctionError."""
    module = types.ModuleType(f"ringway_function_{name}")
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
    try:
        exec(compile(content, f"{name}.py", "exec"), module.__dict__)
        prototype = Prototype(name, module.__dict__)
    except Exception as error:  # noqa: BLE001 - what a file of somebody else's does when it is run
        what = f"{type(error).__name__}: {error}"
        raise FunctionError(FunctionCause.LOAD, name, f"{name}.py cannot be used ({what}): correct it") from None
    return Function(name, prototype.native, options, digest, prototype.release)
