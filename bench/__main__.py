"""`./run bench NAME [--json] [--quick]`: run one bench and print its rows."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys

import click
from rich.console import Console
from rich.table import Table

from bench import machine
from bench.form import BenchError, Report

NAMES = ("link", "hop", "chain", "latency", "race", "idle", "flow", "function", "control")


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _print_table(report: Report, described: dict[str, object]) -> None:
    console = Console()
    console.print(f"bench {report.name}: " + ", ".join(f"{key} {value}" for key, value in described.items()))
    table = Table("case", "unit", "ours", "peer", "ratio", "quartiles", "windows", "against")
    for row in report.rows:
        low, high = row.spread["ratio"]
        numbers = (_number(row.ours), _number(row.peer), f"{row.ratio:.2f}", f"{low:.2f}-{high:.2f}")
        table.add_row(row.case, row.unit, *numbers, str(row.windows), row.against)
    console.print(table)
    for row in report.rows:
        if row.notes:
            console.print(f"{row.case}: {row.notes}", highlight=False)
    for note in report.notes:
        console.print(note, highlight=False)


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, and nothing else there.")
@click.option("--quick", is_flag=True, help="Few and short windows: to see that it runs, not to compare.")
def main(name: str, as_json: bool, quick: bool) -> None:
    """Run a bench beside its peer and print what both did."""
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("bench: two cores are needed, and this process may use one; free another (taskset, cgroup) first")
    module = importlib.import_module(f"bench.{name}")
    described = machine.described()
    try:
        report: Report = module.run(quick=quick)
    except BenchError as error:
        sys.exit(f"bench {name}: {error}")
    if as_json:
        rows = [dataclasses.asdict(row) for row in report.rows]
        print(json.dumps({"name": name, "machine": described, "rows": rows, "notes": report.notes}, indent=1))
    else:
        _print_table(report, described)


if __name__ == "__main__":
    main()
