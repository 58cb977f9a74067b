"""The chain itself: a broker, three agents, and what ringway says about them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from namespaces import make_management, run, start

HERE = Path(__file__).parent
RINGWAY = [str(Path(sys.executable).with_name("ringway"))]
RUNTIME = Path("/run/ringway")  # private: /run is a tmpfs that ends with the demo
FUNCTIONS = RUNTIME / "functions"  # of the firewall; the demo builds one
VMS = ("client", "firewall", "server")


class Chain:
    """Client, firewall and server, joined by two links; a fabric of one's own must have these three too."""

    def __init__(self, fabric: Path = HERE / "fabric.toml") -> None:
        self.agents: dict[str, subprocess.Popen[str]] = {}
        make_management("switch", VMS)
        self.start_broker()
        self.apply(fabric)
        for vm in VMS:
            self.start_agent(vm)

    def start_broker(self) -> None:
        self.broker = self._start_ready("broker ready", "broker")

    def _start_ready(self, ready: str, *arguments: str, namespace: str | None = None) -> subprocess.Popen[str]:
        process = start(*RINGWAY, *arguments, "--runtime", str(RUNTIME), namespace=namespace)
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if ready in line:
                return process
        raise RuntimeError(f"ringway {' '.join(arguments)} ended:\n{said}")

    def start_agent(self, vm: str, *options: str, namespace: str | None = None) -> None:
        """In the namespace of the VM's name, unless another is named."""
        if vm == "firewall":
            options = (*options, "--functions", str(FUNCTIONS))
        arguments = ("agent", "--vm", vm, *options)
        self.agents[vm] = self._start_ready(f"agent {vm}: ready", *arguments, namespace=namespace or vm)
        if set(VMS) <= set(self.agents):
            for end in ("client", "server"):
                self._await_carrier(end)

    def _await_carrier(self, vm: str) -> None:
        """An agent turns its tap's carrier on when it hears of the other end's, which may be ready by then."""
        deadline = time.monotonic() + 20
        while (shown := run("ip", "link", "show", "fast0", namespace=vm, check=False)).returncode == 0:
            if "LOWER_UP" in shown.stdout:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"fast0 of {vm} has no carrier")
            time.sleep(0.02)

    def stop_agent(self, vm: str) -> None:
        process = self.agents.pop(vm)
        process.terminate()
        process.wait(10)

    def apply(self, fabric: Path) -> None:
        run(*RINGWAY, "apply", str(fabric), "--runtime", str(RUNTIME))

    def apply_text(self, text: str) -> None:
        changed = RUNTIME / "changed.toml"
        changed.write_text(text)
        self.apply(changed)

    def show(self) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(run(*RINGWAY, "show", "--json", "--runtime", str(RUNTIME)).stdout)
        return shown

    def tables(self) -> str:
        return run(*RINGWAY, "show", "--runtime", str(RUNTIME)).stdout

    def rule_frames(self, name: str) -> int:
        firewall = next(vm for vm in self.show()["vms"] if vm["name"] == "firewall")
        return next((int(rule["frames"]) for rule in firewall["rules"] if rule["name"] == name), 0)

    def function_counters(self, name: str) -> dict[str, int]:
        firewall = next(vm for vm in self.show()["vms"] if vm["name"] == "firewall")
        return next((dict(function["counters"]) for function in firewall["functions"] if function["name"] == name), {})

    def quiet_books(self) -> list[dict[str, Any]]:
        """All rings once they stand still: two readings that are alike."""
        before: list[tuple[int, int, int]] | None = None
        for _ in range(50):
            rings = [ring | {"link": link["name"]} for link in self.show()["links"] for ring in link["rings"]]
            still = [(ring["offered"], ring["delivered"], ring["in_flight"]) for ring in rings]
            if still == before:
                return rings
            before = still
            time.sleep(0.1)  # nothing announces that a kernel has no more to send
        raise RuntimeError("the links did not become quiet")


def ping(address: str, count: int = 5, namespace: str = "client") -> tuple[int, str]:
    """How many answers came, and the summary line."""
    done = run("ping", "-n", "-c", str(count), "-i", "0.2", "-W", "1", address, namespace=namespace, check=False)
    received = re.search(r"(\d+) received", done.stdout)
    summary = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()
    return (int(received.group(1)) if received else 0), summary
