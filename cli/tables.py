"""`ringway show` as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ringway.control.messages import Counters, EndShown, LinkShown, RingShown, Shown, VmShown


def print_tables(shown: Shown) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a file or pipe has no width; wrapped cells would be hard to search
    if not shown.links and not shown.vms:
        console.print("the fabric is empty: `ringway apply FILE`")
        return
    for table in (
        _links(shown.links),
        _rings(shown.links),
        _vms(shown.vms),
        _ports(shown.vms),
        _rules(shown.vms),
        _unparsed(shown.vms),
        _connections(shown.vms),
        _functions(shown.vms),
    ):
        if table.row_count:
            console.print(table)
    for link in shown.links:
        if link.note:
            console.print(f"note: {escape(link.note)}")
    for vm in shown.vms:
        if vm.problem:
            console.print(f"VM {escape(vm.name)}: {escape(vm.problem)}")


def _table(title: str, *columns: str) -> Table:
    """Columns whose name begins with '#' hold numbers."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.startswith("#") else "left"
        table.add_column(column.removeprefix("#"), justify=justify, overflow="fold")  # narrow, but nothing cut off
    return table


def _row(table: Table, *cells: object) -> None:
    table.add_row(*(escape(str(cell)) for cell in cells))


def _links(links: Sequence[LinkShown]) -> Table:
    sizes_of = ("#queues", "#slots", "#payload", "#largest frame", "#memory")
    table = _table("links", "link", "state", "side a", "side b", *sizes_of, "pages")
    for link in links:
        shape = link.geometry
        memory = f"{link.memory / (1 << 20):.1f} MiB"
        sizes = (shape.queues, shape.slot_count, shape.slot_payload, link.frame_max, memory)
        _row(table, link.name, link.state, *(_end(end) for end in link.ends), *sizes, link.pages)
    return table


def _end(end: EndShown) -> str:
    state = end.state if end.held or end.state != "attached" else "left"  # it died without a word
    return f"{end.vm}.{end.port} {state}{f' ({end.cause})' if end.cause else ''}"


def _rings(links: Sequence[LinkShown]) -> Table:
    columns = ("ring", "#queue", "#offered", "#published", "#delivered", "#in flight", "dropped", "balanced")
    table = _table("rings", *columns)
    for link in links:
        for ring in link.rings:
            sender, receiver = (link.ends[side].vm for side in (ring.producing_side, 1 - ring.producing_side))
            books = (ring.offered, ring.published, ring.delivered, ring.in_flight)
            name = f"{link.name}: {sender} → {receiver}"
            _row(table, name, ring.queue, *books, _drops(ring), "yes" if ring.balanced else "no")
    return table


def _drops(ring: RingShown) -> str:
    entering = [f"{cause} {count}" for cause, count in ring.drops_produced.items()]
    leaving = [f"{cause} {count} (after)" for cause, count in ring.drops_consumed.items()]
    return ", ".join(entering + leaving) or "-"


def _vms(vms: Sequence[VmShown]) -> Table:
    table = _table("VMs", "vm", "agent", "#pid", "version", "loops")
    for vm in vms:
        loops = "; ".join(f"{loop.name}: {_counters(loop.counters)}" for loop in vm.loops)
        _row(table, vm.name, vm.state, "-" if vm.pid is None else vm.pid, vm.version or "-", loops or "-")
    return table


def _ports(vms: Sequence[VmShown]) -> Table:
    table = _table("ports", "port", "link", "state", "when full", "cause")
    for vm in vms:
        for port in vm.ports:
            _row(table, f"{vm.name}.{port.port}", port.link, port.state, port.full or "-", port.cause or "-")
    return table


def _counters(counters: Counters) -> str:
    return ", ".join(f"{name} {value}" for name, value in counters.items()) or "-"


def _connections(vms: Sequence[VmShown]) -> Table:
    table = _table("connections", "vm", "#in use", "#places", "#made", "#replaced", "#refused")
    for vm in vms:
        if (known := vm.connections) is not None:
            _row(table, vm.name, known.in_use, known.places, known.made, known.replaced, known.refused)
    return table


def _functions(vms: Sequence[VmShown]) -> Table:
    table = _table("packet functions", "vm", "function", "file (sha256)", "counter", "#value")
    for vm in vms:
        for function in vm.functions:
            counted: dict[str, int | str] = {**function.counters} or {"-": "-"}
            for name, value in counted.items():
                _row(table, vm.name, function.name, function.sha256[:12] or "built in", name, value)
    return table


def _unparsed(vms: Sequence[VmShown]) -> Table:
    table = _table("frames whose headers cannot be judged", "vm", "cause", "#dropped", "#passed")
    for vm in vms:
        for count in vm.unparsed:
            _row(table, vm.name, count.cause, count.dropped, count.passed)
    return table


def _rules(vms: Sequence[VmShown]) -> Table:
    table = _table("rules", "vm", "rule", "#frames", "#bytes")
    for vm in vms:
        for rule in vm.rules:
            _row(table, vm.name, rule.name, rule.frames, rule.bytes)
    return table
