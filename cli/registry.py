"""`ringway list` as tables."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ringway.control.names import printable
from ringway.control.registry import EndEntry, ListedFabric, Registry


def print_registry(registry: Registry) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a file or pipe has no width; wrapped cells would be hard to search
    if not registry.fabrics:
        console.print("no fabric on this host that you may see: `ringway broker`")
    for fabric in registry.fabrics:
        console.print(escape(_heading(fabric)), soft_wrap=True)
        if fabric.links:
            console.print(_links(fabric))
        else:
            console.print("no links")
        console.print()
    for note in registry.notes:
        console.print(f"note: {escape(printable(note))}", soft_wrap=True)


def _heading(fabric: ListedFabric) -> str:
    if fabric.running:
        broker = f"broker runs, pid {fabric.broker_pid}"
    else:
        broker = f"broker is not running (was pid {fabric.broker_pid}); as it last knew its links"
    gone = "; this directory is gone" if fabric.runtime_gone else ""
    return f"{printable(fabric.runtime)}{gone}: {broker}; uid {fabric.owner}, fabric {fabric.fabric_id}"


def _links(fabric: ListedFabric) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("link", "link id", "side a", "side b"):
        table.add_column(column, overflow="fold")
    for link in fabric.links:
        table.add_row(*(escape(cell) for cell in (link.name, str(link.link_id), *map(_end, link.ends))))
    return table


def _end(end: EndEntry) -> str:
    """An end that was never taken has had no incarnation."""
    holder = f"pid {end.holder_pid}" if end.holder_pid else "free"
    return f"{end.vm}.{end.port} {holder}{f', incarnation {end.incarnation}' if end.incarnation else ''}"
