"""A firewall between client and server whose packets cross shared memory and no switch. Start it with `./run demo`."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import changes
import kills
import own_function
import race
import traffic
from chain import Chain
from namespaces import enter_private_namespaces

STEPS = (
    traffic.pings,
    traffic.management,
    traffic.download,
    traffic.throughput,
    changes.without_bridge,
    changes.without_firewall,
    changes.blocked,
    changes.changed,
    kills.broker_killed,
    kills.firewall_killed,
    own_function.marked,
    changes.books,
    race.race,
)


def main() -> int:
    enter_private_namespaces("demo", ("ping", "iperf3"))
    started = time.monotonic()
    print("Three namespaces stand for VMs: client, firewall, server; a bridge joins their management interfaces.\n")
    try:
        chain = Chain()
    except RuntimeError as error:
        sys.exit(f"demo: {error}")
    failures = 0
    for step in STEPS:
        title = (step.__doc__ or "").strip().splitlines()[0]
        print(f"* {title}", flush=True)
        try:
            for line in step(chain):
                print(f"    {line}", flush=True)
        except (traffic.StepError, RuntimeError) as failure:
            failures += 1
            print(f"    FAILED: {failure}", flush=True)
    print(f"\n{chain.tables()}")
    verdict = "all of it worked" if failures == 0 else f"{failures} steps FAILED"
    print(f"{verdict}, in {time.monotonic() - started:.0f} s; nothing is left behind")
    return 1 if failures else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):  # all ends with this process, whatever it was at
        sys.exit(main())
    os._exit(130)
