"""Real guests: QEMU with Debian's kernel, which `./run test` unpacks and never installs, and busybox as their root.

A command goes to a guest by its second serial port, where a shell reads line by line; the first one has the kernel's
messages. No guest outlives its test: each is ended by its pid, and QEMU dies with the process that started it.
"""

from __future__ import annotations

import gzip
import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from tests.conftest import require

ROOT: Final = Path(__file__).resolve().parents[2]
KERNELS: Final = ROOT / "build" / "guests"
_MODULES: Final = ("virtio_pci", "virtio_net")
_READY_S: Final = 90.0  # a guest in software emulation on a busy machine; 3 s on a quiet one
_INIT: Final = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /tmp
for module in {modules}; do insmod /modules/$module; done
exec </dev/ttyS1 >/dev/ttyS1 2>&1
stty raw -echo
echo READY
while read -r line; do
    eval "$line"
    echo "__STATUS $?"
done
"""


def needs_guests() -> None:
    """Skip, with what is missing, where no guest can be started."""
    require(shutil.which("qemu-system-x86_64") is not None, "needs QEMU: apt-get install qemu-system-x86")
    require(Path("/bin/busybox").exists(), "needs busybox for the guest's root: apt-get install busybox-static")
    there = bool(list(KERNELS.glob("boot/vmlinuz-*")))
    require(there, f"needs a kernel in {KERNELS}: ./run test --full fetches it where it may")


def _entry(name: str, mode: int, data: bytes = b"") -> bytes:
    """Of a cpio archive, as the kernel reads them: Documentation/driver-api/early-userspace/buffer-format.rst."""
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % value for value in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def _modules(version: str) -> list[Path]:
    """What insmod has to be given, in order."""
    found: list[Path] = []
    for module in _MODULES:
        command = ["modprobe", "-C", "/dev/null", "-d", str(KERNELS), "-S", version, "--show-depends", module]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found += [Path(line.split()[1]) for line in listed.splitlines() if line.startswith("insmod ")]
    return list(dict.fromkeys(found))


def _initramfs(version: str) -> Path:
    modules = _modules(version)
    init = _INIT.format(modules=" ".join(path.name for path in modules))
    folder, file = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755
    archive = b"".join(_entry(name, folder) for name in ("bin", "dev", "proc", "sys", "modules"))
    archive += _entry("init", file, init.encode()) + _entry("bin/busybox", file, Path("/bin/busybox").read_bytes())
    archive += b"".join(_entry(f"modules/{path.name}", file, path.read_bytes()) for path in modules)
    made = KERNELS / f"initramfs-{version}-{os.getpid()}.gz"
    made.write_bytes(gzip.compress(archive + _entry("TRAILER!!!", 0), 1))
    return made


class Guest:
    """A guest that has come up. `options`: QEMU's, for its devices."""

    def __init__(self, folder: Path, name: str, options: Sequence[str], memory_mib: int = 192) -> None:
        needs_guests()
        kernel = max(KERNELS.glob("boot/vmlinuz-*"))
        self._initramfs = _initramfs(kernel.name.removeprefix("vmlinuz-"))
        self.console = folder / f"{name}.console"
        shell = folder / f"{name}.shell"
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "qemu-system-x86_64",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]
        command += ["-accel", "tcg", "-cpu", "max", "-m", str(memory_mib), "-machine", "q35,memory-backend=memory"]
        command += ["-object", f"memory-backend-memfd,id=memory,size={memory_mib}M,share=on"]
        command += ["-kernel", str(kernel), "-initrd", str(self._initramfs)]
        command += ["-append", "console=ttyS0 quiet panic=-1 tsc=reliable nokaslr mitigations=off"]
        command += ["-serial", f"file:{self.console}", "-serial", f"unix:{shell},server=on,wait=off", *options]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._shell = socket.socket(socket.AF_UNIX)
        self._output = ""
        deadline = time.monotonic() + _READY_S
        while True:
            try:
                self._shell.connect(str(shell))
                break
            except OSError:
                assert self.process.poll() is None, f"QEMU ended: {self.process.communicate()[0]}"
                assert time.monotonic() < deadline, "QEMU does not open its serial port"
                time.sleep(0.02)  # nothing announces it
        self._await("READY\n", _READY_S)

    def run(self, line: str, seconds: float = 60.0) -> str:
        """What the command prints; it has to succeed."""
        self._shell.sendall(f"{line}\n".encode())
        output, _, rest = self._await("__STATUS ", seconds).rpartition("__STATUS ")
        status = rest + self._await("\n", seconds)
        assert status.strip() == "0", f"{line!r} in the guest: {output}"
        return output

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._shell.close()
        self._initramfs.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _await(self, text: str, seconds: float) -> str:
        """All up to and with the text."""
        deadline = time.monotonic() + seconds
        while text not in self._output:
            self._shell.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self._shell.recv(65536)
            except TimeoutError:
                data = b""
            if not data:
                console = self.console.read_text(errors="replace")
                self.close()
                raise AssertionError(f"the guest does not say {text!r}, but {self._output!r}; its console: {console}")
            self._output += data.decode(errors="replace").replace("\r", "")
        found, separator, self._output = self._output.partition(text)
        return found + separator
