"""What is judged about a fabric's tap ports as a whole: interfaces and addresses that are there twice."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Final

from ringway.broker.config.tables import EndName, FabricConfig, VmConfig
from ringway.broker.config.text import FabricCause, FabricFile
from ringway.control.kinds import Tap

IPV6_MTU_MIN: Final = 1280  # RFC 8200, section 5; below it the kernel takes IPv6 away from an interface


def check_taps(file: FabricFile, config: FabricConfig) -> None:
    _check_interfaces(file, config)
    for vm in config.vms.values():
        for name, tap in _taps(vm):
            _check_ipv6_mtu(file, EndName(vm.name, name), tap)
        _check_vm(file, vm)
    for segment in _segments(config):
        _check_segment(file, config, segment)


def _taps(vm: VmConfig) -> Iterator[tuple[str, Tap]]:
    """The VM's tap ports, by name."""
    for port in vm.ports.values():
        if isinstance(port.settings, Tap):
            yield port.name, port.settings


def _check_interfaces(file: FabricFile, config: FabricConfig) -> None:
    for vm in config.vms.values():
        owners: dict[str, str] = {}
        for name, tap in _taps(vm):
            interface = str(tap.interface)
            if interface in owners:
                message = f"port {owners[interface]!r} has the interface {interface!r} too: use another name"
                raise file.error(FabricCause.DUPLICATE, (*_key(EndName(vm.name, name)), "interface"), message)
            owners[interface] = name


def _check_ipv6_mtu(file: FabricFile, end: EndName, tap: Tap) -> None:
    ipv6 = [address for address in tap.address if ":" in address]
    if ipv6 and tap.mtu < IPV6_MTU_MIN:
        message = (
            f"{tap.mtu} is too small for the IPv6 address {ipv6[0]}: use at least {IPV6_MTU_MIN} (RFC 8200, section "
            "5), or take the address out"
        )
        raise file.error(FabricCause.MTU, (*_key(end), "mtu"), message)


def _check_vm(file: FabricFile, vm: VmConfig) -> None:
    owners: dict[str, str] = {}
    for name, tap in _taps(vm):
        for host in map(_host, tap.address):
            if host in owners and not (ipaddress.ip_address(host).is_link_local and owners[host] != name):
                message = f"port {owners[host]!r} of VM {vm.name!r} has the address {host} already: use another one"
                raise file.error(FabricCause.DUPLICATE, (*_key(EndName(vm.name, name)), "address"), message)
            owners[host] = name


def _check_segment(file: FabricFile, config: FabricConfig, segment: list[EndName]) -> None:
    """Frames go from each of these ports to the others, so that each is found by addresses of its own."""
    owners: dict[str, EndName] = {}
    for end in segment:
        tap = config.port(end).settings
        if not isinstance(tap, Tap):
            continue
        found = [("mac", tap.mac.lower())] if tap.mac is not None else []
        found += [("address", _host(address)) for address in tap.address]
        for what, value in found:
            if value in owners:
                message = (
                    f"{str(owners[value])!r}, which links join to {str(end)!r}, has {value} too: neither would reach "
                    f"the other; use another {what}"
                )
                raise file.error(FabricCause.DUPLICATE, (*_key(end), what), message)
            owners[value] = end


def _segments(config: FabricConfig) -> list[list[EndName]]:
    """The ports that are joined, directly or through forwarders, in the order of the file."""
    joined = [link.ends for link in config.links.values()]
    for vm in config.vms.values():
        pairs = vm.stack.joined() if vm.stack is not None else []
        joined += [(EndName(vm.name, first), EndName(vm.name, second)) for first, second in pairs]
    segments: dict[EndName, list[EndName]] = {}
    for ends in joined:
        first, second = (segments.setdefault(end, [end]) for end in ends)
        if first is second:
            continue
        shorter, longer = sorted((first, second), key=len)
        longer += shorter
        segments.update(dict.fromkeys(shorter, longer))
    ports = [EndName(vm.name, port) for vm in config.vms.values() for port in vm.ports]
    order = {end: position for position, end in enumerate(ports)}
    different = {id(segment): segment for segment in segments.values()}.values()
    return [sorted(segment, key=order.__getitem__) for segment in different]


def _key(end: EndName) -> tuple[str, str, str, str]:
    return "vm", end.vm, "port", end.port


def _host(address: str) -> str:
    return address.partition("/")[0]
