"""Network namespaces that stand for VMs, in private namespaces of their own: nothing of the host is seen or changed.

Everything is made inside one PID, mount and network namespace. When its first process ends, in whatever way, the
kernel ends all others and takes interfaces, bridges and mounts with it: there is nothing to clean up.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_UNSHARE = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
_AS_USER = ["--user", "--map-root-user"]
_IN_CHROOT = ["--propagation", "unchanged"]  # a "/" that is no mount point has none to change


def enter_private_namespaces(program: str, tools: Sequence[str]) -> None:
    """Run this program again, inside. Returns only there; ends with a message where namespaces are not allowed."""
    mark = f"RINGWAY_{program.upper()}_INSIDE"  # each program's own: one may start the other
    if os.environ.get(mark):
        for folder in ("/run", "/dev/shm"):  # what brokers leave there when all ends goes with the mount
            _mount_private(program, folder)
        run("ip", "link", "set", "lo", "up")
        return
    missing = [tool for tool in ("unshare", "nsenter", "ip", *tools) if shutil.which(tool) is None]
    if missing:
        advice = f"`./run {program}` installs them as root, or see README.md"
        sys.exit(f"{program}: {', '.join(missing)} not found; {advice}")
    command = _allowed(program, _UNSHARE + ([] if os.geteuid() == 0 else _AS_USER))
    os.environ[mark] = "1"
    # unshare ignores SIGINT and SIGTERM, so this process waits for them, and the kernel ends unshare with this process.
    again = [sys.executable, *sys.orig_argv[1:]]
    child = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command, *again])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: child.kill())
    sys.exit(child.wait() % 256)


def _allowed(program: str, command: list[str]) -> list[str]:
    """The way in which `unshare` works here; else it ends with a message."""
    for tried in (command, [*command, *_IN_CHROOT]):
        probe = subprocess.run([*tried, "true"], capture_output=True, text=True, check=False)
        if probe.returncode == 0:
            return tried
    sys.exit(
        f"{program}: namespaces of its own are not allowed here ({probe.stderr.strip()}).\n"
        "Run it as root, or allow user namespaces: on Ubuntu 24.04\n"
        "  sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0\n"
        "in a container add the capability SYS_ADMIN."
    )


def _mount_private(program: str, folder: str) -> None:
    """An empty folder over this one, or the program's end where the host would get that mount too."""
    run("mount", "-t", "tmpfs", "tmpfs", folder)
    if "shared" in run("findmnt", "--noheadings", "--output", "PROPAGATION", folder).stdout:
        run("umount", folder)
        sys.exit(
            f"{program}: what is mounted in this chroot is mounted on the host too, and nothing of it is to change.\n"
            "Make the chroot's folder a mount of its own first, on the host:\n"
            "  mount --bind FOLDER FOLDER && mount --make-private FOLDER"
        )


def run(*command: str, namespace: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in a namespace if one is named; what it printed is in the result."""
    done = subprocess.run(
        inside(namespace, command), capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}: {done.stdout}{done.stderr}")
    return done


def start(
    *command: str, namespace: str | None = None, folder: Path | None = None, keep_fds: Sequence[int] = ()
) -> subprocess.Popen[str]:
    """Start a command that goes on, in a folder; what it prints is a pipe, `stdout`. It gets `keep_fds` as they are."""
    return subprocess.Popen(
        inside(namespace, command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        pass_fds=keep_fds,
        text=True,
    )


def inside(namespace: str | None, command: Sequence[str]) -> list[str]:
    return list(command) if namespace is None else ["nsenter", f"--net=/run/netns/{namespace}", *command]


def make_management(switch: str, vms: Sequence[str]) -> None:
    """The ordinary network: a bridge in a namespace of its own, and for each VM mgmt0, 192.0.2.1 and so on."""
    run("ip", "netns", "add", switch)
    run("ip", "link", "add", "br0", "type", "bridge", namespace=switch)
    run("ip", "link", "set", "br0", "up", namespace=switch)
    for number, vm in enumerate(vms, start=1):
        run("ip", "netns", "add", vm)
        run("ip", "link", "set", "lo", "up", namespace=vm)
        run("ip", "link", "add", "mgmt0", "netns", vm, "type", "veth", "peer", "name", vm, "netns", switch)
        run("ip", "link", "set", vm, "master", "br0", "up", namespace=switch)
        run("ip", "addr", "add", f"192.0.2.{number}/24", "dev", "mgmt0", namespace=vm)
        run("ip", "link", "set", "mgmt0", "up", namespace=vm)
