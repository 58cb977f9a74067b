"""`ringway …`: the commands, their errors as one line each, and their exit codes.

1: refused; 2: wrong usage; 3: `apply` made the fabric, and an agent does not run it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from ringway.broker.config.text import FabricError
from ringway.cli.output import announce, flush_streams, prepare_streams, say
from ringway.control.client import Client
from ringway.control.errors import ControlError
from ringway.control.handover import QUEUES_MAX
from ringway.control.messages import Applied, Apply, Planned, PlanRequest, Show, Shown
from ringway.control.names import printable
from ringway.control.runtime import runtime_directory

if TYPE_CHECKING:
    from ringway.broker.loop import Broker

NOT_RUN = 3

RUNTIME_OPTION = click.option(
    "--runtime",
    type=click.Path(path_type=Path, readable=False),
    metavar="DIR",
    help="The broker's private directory; else $RINGWAY_RUNTIME, /run/ringway for root, $XDG_RUNTIME_DIR/ringway.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ringway")
def commands() -> None:
    """Join appliances on one host by shared-memory packet rings."""


@commands.command()
@RUNTIME_OPTION
@click.option(
    "--fabric",
    type=click.Path(path_type=Path, readable=False),
    metavar="FILE",
    help="Apply this fabric if none was applied before.",
)
def broker(runtime: Path | None, fabric: Path | None) -> None:
    """Run the broker, which makes links, until SIGTERM or SIGINT."""
    from ringway.broker.loop import Broker

    stop_fd, wakeup_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    # The C handler writes to it: one in Python would not run when a signal comes just before the loop's poll.
    signal.set_wakeup_fd(wakeup_fd, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    directory = runtime_directory(runtime)
    with Broker(directory, _log) as loop:
        if fabric:
            _begin_with(loop, fabric)
        announce(f"broker ready on {directory}")
        loop.run(stop_fd)


def _begin_with(loop: Broker, file: Path) -> None:
    """A fabric for a broker that has none. One that goes on from a journal keeps to what was applied last."""
    from ringway.broker.config.text import read_text

    name = printable(str(file))
    if not loop.has_fabric:
        loop.apply(read_text(file), name)
        return
    try:
        edited = not loop.was_applied(read_text(file))
    except FabricError as error:
        _log(str(error))
        edited = True
    if edited:
        _log(f"{name} is not what was applied last, and is left alone: see `ringway plan`, then `ringway apply` it")


def _log(line: str) -> None:
    say(f"ringway broker: {line}")


@commands.command()
@RUNTIME_OPTION
def keeper(runtime: Path | None) -> NoReturn:
    """Run a keeper, which holds the links' descriptors while no broker runs, until SIGTERM or SIGINT."""
    from ringway.broker.keeper_client import command
    from ringway.broker.runtime_lock import make_private

    directory = runtime_directory(runtime)
    make_private(directory)
    words = command(directory)
    os.execv(words[0], words)  # in this process's place: it stays small, and is the one that systemd started


@commands.command()
@click.argument("file", type=click.Path(path_type=Path, readable=False))
@RUNTIME_OPTION
def apply(file: Path, runtime: Path | None) -> None:
    """Make the broker's fabric as FILE says. Exit code 3: made, but an agent does not run it."""
    from ringway.broker.config.text import read_text

    request = Apply(name=printable(str(file)), text=read_text(file))
    with Client(runtime_directory(runtime)) as client:
        # Making memory takes its time: the kernel zeroes it all.
        applied = client.call(request, Applied, timeout=60.0)
    for verb in ("made", "replaced", "removed", "kept"):
        if names := getattr(applied, verb):
            click.echo(f"{verb}: {', '.join(names)}")
    for note in applied.notes:
        click.echo(f"note: {note}")
    for vm in applied.silent:
        click.echo(f"VM {vm}: its agent has not answered yet; look at `ringway show`", err=True)
    for failure in applied.failed:
        click.echo(f"VM {failure.vm}: its agent does not run it: {failure.cause or 'see the broker log'}", err=True)
    if applied.silent or applied.failed:
        sys.stdout.flush()  # what cannot be written is the other kind of failure
        raise SystemExit(NOT_RUN)


@commands.command()
@click.argument("file", type=click.Path(path_type=Path, readable=False))
@RUNTIME_OPTION
def plan(file: Path, runtime: Path | None) -> None:
    """Show what `apply FILE` would do, and do nothing."""
    from ringway.broker.config.text import read_text

    request = PlanRequest(name=printable(str(file)), text=read_text(file))
    with Client(runtime_directory(runtime)) as client:
        planned = client.call(request, Planned, timeout=10.0)
    for verb in ("made", "removed"):
        for name in getattr(planned, verb):
            click.echo(f"{verb}: {name}")
    for link in planned.replaced:
        lost = f"the frames in its rings are lost, {link.in_flight} at the moment"
        click.echo(f"replaced: {link.link} ({link.reason}): {lost}")
    for port in planned.ports:
        click.echo(f"port {port}: changed, no frame is lost by it")
    for vm in planned.stacks:
        click.echo(f"stack of {vm}: changed, no frame is lost by it")
    click.echo(f"kept: {len(planned.kept)} links, which lose nothing")
    click.echo(f"memory: {planned.memory / (1 << 20):+.1f} MiB")


@commands.command()
@click.argument("file", type=click.Path(path_type=Path, readable=False))
def check(file: Path) -> None:
    """Check FILE without a broker."""
    from ringway.broker.config.checks import read_config
    from ringway.broker.limits import connections_size
    from ringway.broker.links import memory_notes

    config = read_config(file)
    click.echo(f"{printable(str(file))}: good: {len(config.vms)} VMs, {len(config.links)} links")
    for link in config.links.values():
        shape = link.geometry.shape()
        memory = f"{link.memory() / (1 << 20):.1f} MiB"
        click.echo(f"link {link.name}: {link.ends[0]} - {link.ends[1]}, frames up to {shape.frame_max} bytes, {memory}")
    for vm in config.vms.values():
        if vm.stack is not None and vm.stack.connections:
            memory = f"{connections_size(vm.stack.connections) / (1 << 20):.1f} MiB"
            click.echo(f"VM {vm.name}: its agent remembers {vm.stack.connections} connections, {memory}")
    for line in memory_notes(list(config.links.values())):
        click.echo(line)


@commands.command()
@RUNTIME_OPTION
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
def show(runtime: Path | None, as_json: bool) -> None:
    """Show links, rings with their books, VMs and rules."""
    import msgspec

    from ringway.cli.tables import print_tables

    with Client(runtime_directory(runtime)) as client:
        shown = client.call(Show(), Shown, timeout=10.0)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(shown), indent=2))
    else:
        print_tables(shown)


@commands.command("list")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
def list_all(as_json: bool) -> None:
    """List the fabrics of this host and their links, without asking any broker."""
    import msgspec

    from ringway.cli.registry import print_registry
    from ringway.control.registry import read_registry

    registry = read_registry()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(registry), indent=2))
    else:
        print_registry(registry)


@commands.command()
@click.option("--vm", required=True, metavar="NAME", help="The VM of the fabric that this agent stands beside.")
@RUNTIME_OPTION
@click.option(
    "--spin-us",
    type=click.IntRange(0, 1_000_000),
    default=0,
    metavar="N",
    help="Look for work for N microseconds before sleeping.",
)
@click.option(
    "--loops",
    type=click.IntRange(1, QUEUES_MAX),
    metavar="N",
    help="Threads for each tap and each forward pair, at most; else one for each queue of their links.",
)
@click.option(
    "--functions",
    type=click.Path(path_type=Path, readable=False),
    metavar="DIR",
    help="Where the packet functions are that the VM's stack may name; none but root and you may write there.",
)
def agent(vm: str, runtime: Path | None, spin_us: int, loops: int | None, functions: Path | None) -> None:
    """Run an agent: attach a VM's ports and carry their frames."""
    from ringway.agent.errors import AgentError
    from ringway.agent.main import main as run_agent

    try:
        run_agent(vm=vm, runtime=runtime_directory(runtime), spin_us=spin_us, loops=loops, functions=functions)
    except AgentError as error:
        _fail(error)


@commands.command()
def headers() -> None:
    """Print where the C headers are, for `cc -I`: to build a packet function against."""
    import ringway.shm

    click.echo(Path(ringway.shm.__file__).resolve().parent.parent)


def _fail(error: Exception) -> NoReturn:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    say(f"ringway: {printable(text)}")
    _end(1)


def _end(status: int) -> NoReturn:
    """With that status, or 1 where it is 0 and not all could be printed that was asked for."""
    trouble = flush_streams()
    if trouble and status == 0:
        say(f"ringway: not everything could be printed ({trouble})")
        status = 1
    flush_streams()
    sys.exit(status)


def main() -> NoReturn:
    """Every foreseen refusal becomes one line; what is not foreseen is a bug and keeps its traceback."""
    from ringway.shm import RegionError

    prepare_streams()
    try:
        commands(prog_name="ringway", standalone_mode=False)
    except click.ClickException as error:
        with contextlib.suppress(OSError):
            error.show()
        _end(2)
    except click.exceptions.Exit as done:
        _end(done.exit_code)
    except SystemExit as done:
        _end(done.code if isinstance(done.code, int) else 1)
    except (click.Abort, KeyboardInterrupt):
        _end(130)
    except (OSError, ControlError, FabricError, RegionError) as error:
        _fail(error)
    _end(0)
