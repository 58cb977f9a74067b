"""What is judged about a fabric as a whole: ends that exist and are free, sizes, limits."""

from __future__ import annotations

import difflib
from collections import defaultdict
from pathlib import Path
from typing import Final

from ringway.broker.config.tables import MIB, EndName, FabricConfig, LinkConfig, VmConfig, config_from, setting_error
from ringway.broker.config.text import FabricCause, FabricFile, read_text
from ringway.broker.limits import LOOPS_MAX
from ringway.broker.taps import check_taps
from ringway.control.kinds import SettingError
from ringway.control.rules import Stack
from ringway.shm import RegionError

GEOMETRY_KEYS: Final = {"slot_count": "slots", "queues": "queues", "slot_payload": "slot_payload"}


def read_config(path: Path) -> FabricConfig:
    return parse_config(read_text(path), str(path))


def parse_config(text: str, name: str) -> FabricConfig:
    """The fabric that the text asks for, or FabricError."""
    file = FabricFile(text, name)
    config = config_from(file)
    _check_ends(file, config)
    check_taps(file, config)
    _check_alone(file, config)
    for link in config.links.values():
        _check_shape(file, config, link)
    links = {end: link for link in config.links.values() for end in link.ends}
    for vm in config.vms.values():
        if vm.stack is not None:
            _check_forward(file, links, vm, vm.stack)
            _check_waiting(file, links, vm, vm.stack)
    _check_vm_limits(file, config)
    return config


def _check_ends(file: FabricFile, config: FabricConfig) -> None:
    used: dict[EndName, str] = {}
    for link in config.links.values():
        key = ("link", link.name, "ends")
        for end in link.ends:
            _check_end_exists(file, config, link, end)
        if link.ends[0] == link.ends[1]:
            message = f"both ends are {str(link.ends[0])!r}: a link joins two ports"
            raise file.error(FabricCause.SAME_END, key, message)
        for end in link.ends:
            if end in used:
                message = f"port {str(end)!r} is already an end of link {used[end]!r}: a port takes one link"
                raise file.error(FabricCause.PORT_USED, key, message)
            used[end] = link.name


def _check_end_exists(file: FabricFile, config: FabricConfig, link: LinkConfig, end: EndName) -> None:
    vm = config.vms.get(end.vm)
    if vm is not None and end.port in vm.ports:
        return
    known = [str(EndName(name, port)) for name, owner in config.vms.items() for port in owner.ports]
    what = f"VM {end.vm!r} has no port {end.port!r}" if vm else f"there is no VM {end.vm!r}"
    near = difflib.get_close_matches(str(end), known, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    message = f"{str(end)!r} leads nowhere, {what}; {hint}ports are: {', '.join(known[:20]) or 'none'}"
    raise file.error(FabricCause.NOWHERE, ("link", link.name, "ends"), message)


def _check_alone(file: FabricFile, config: FabricConfig) -> None:
    """Two ports at one socket would take each other's guests."""
    first: dict[tuple[str, str], EndName] = {}
    for vm in config.vms.values():
        for port in vm.ports.values():
            alone = port.settings.alone_at()
            if alone is None:
                continue
            end = EndName(vm.name, port.name)
            if alone in first:
                name, value = alone
                message = f"{value!r} is that of port {str(first[alone])!r} already: give each port its own"
                raise file.error(FabricCause.PORT_USED, ("vm", vm.name, "port", port.name, name), message)
            first[alone] = end


def _check_shape(file: FabricFile, config: FabricConfig, link: LinkConfig) -> None:
    key = ("link", link.name)
    try:
        shape = link.shape()
    except RegionError as error:
        at = (*key, GEOMETRY_KEYS[error.what])
        raise file.error(FabricCause.SIZE, at, f"{error.found} is not possible: use {error.allowed}") from None
    if link.memory() > config.limits.link_bytes:
        message = (
            f"takes {_mib(link.memory())} and limits.link_bytes is {_mib(config.limits.link_bytes)}: "
            "take fewer queues or slots, a smaller slot_payload, or raise the limit"
        )
        raise file.error(FabricCause.LIMIT, key, message)
    for end in link.ends:
        try:
            config.port(end).settings.check_link(link.name, shape.frame_max)
        except SettingError as error:
            raise setting_error(file, ("vm", end.vm, "port", end.port), error) from None


def _check_forward(file: FabricFile, links: dict[EndName, LinkConfig], vm: VmConfig, stack: Stack) -> None:
    """A frame that comes in must be able to go out, and the agent must be able to run all the loops."""
    key = ("vm", vm.name, "stack", "forward" if stack.bridge is None else "bridge")
    loops = 0
    for group in stack.forward if stack.bridge is None else [stack.bridge.ports]:
        ends = [links[EndName(vm.name, port)] for port in group if EndName(vm.name, port) in links]
        if len(ends) < 2:
            continue  # a port that has no link yet
        first, most = ends[0], ends[0].shape().frame_max
        for other in ends[1:]:
            if other.shape().frame_max != most:
                message = (
                    f"joins link {first.name!r}, with frames up to {most} bytes, and link {other.name!r}, with up to "
                    f"{other.shape().frame_max}: longer ones would all be dropped; give both the same slots and"
                    " slot_payload"
                )
                raise file.error(FabricCause.SIZE, key, message)
        loops += min(link.geometry.queues for link in ends)
    if loops > LOOPS_MAX:
        message = (
            f"takes {loops} loops, one for each queue of each pair, and {LOOPS_MAX} are possible: use fewer queues"
        )
        raise file.error(FabricCause.LIMIT, key, message)


def _check_waiting(file: FabricFile, links: dict[EndName, LinkConfig], vm: VmConfig, stack: Stack) -> None:
    """A link is not to say that a forwarder waits which cannot."""
    for pair in stack.forward:
        ends = [links[EndName(vm.name, port)] for port in pair if EndName(vm.name, port) in links]
        queues = [link.geometry.queues for link in ends]
        for link in ends:
            if link.full == "wait" and len(set(queues)) > 1:
                message = (
                    f"VM {vm.name!r} forwards between links {ends[0].name!r}, of {queues[0]} queues, and "
                    f"{ends[1].name!r}, of {queues[1]}, and cannot wait: one slow queue would hold up the others; give "
                    "both the same queues, or take it out"
                )
                raise file.error(FabricCause.VALUE, ("link", link.name, "full"), message)


def _check_vm_limits(file: FabricFile, config: FabricConfig) -> None:
    taken: dict[str, int] = defaultdict(int)
    for link in config.links.values():
        for vm in {end.vm for end in link.ends}:
            taken[vm] += link.memory()
    for vm, memory in taken.items():
        if memory > config.limits.vm_bytes:
            message = (
                f"its links take {_mib(memory)} and limits.vm_bytes is {_mib(config.limits.vm_bytes)}: "
                "make links smaller, or raise the limit"
            )
            raise file.error(FabricCause.LIMIT, ("vm", vm), message)


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"
