"""`./run soak`: kills ends of links at moments that a seed draws, and checks that nothing else suffers."""

import argparse
import os
import secrets
import signal
import sys
import time
from pathlib import Path

from tools.soak.run import Soak
from tools.soak.stage import SoakError


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("a whole number, 1 at least")
    return number


def prepare_namespace() -> bool:
    """Is there a network namespace of our own, for a tap? Then its kernel is to send nothing by itself."""
    if os.environ.get("RINGWAY_SANDBOX") != "1" or not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return False
    for name in ("all", "default"):
        setting = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
        if setting.exists():
            setting.write_text("1")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run soak", description=__doc__)
    parser.add_argument("--seed", type=int, help="repeats what another run drew; else one is drawn, and printed")
    parser.add_argument("--kills", type=_at_least_one, default=100, help="how many (100)")
    parser.add_argument("--seconds", type=_at_least_one, help="end after so long, though there were fewer kills")
    chosen = parser.parse_args()
    seed = secrets.randbelow(1 << 32) if chosen.seed is None else chosen.seed
    tap = prepare_namespace()
    if not tap:
        print("soak: no namespaces of our own here, or no /dev/net/tun: going on without a tap", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("soak: told to end"))  # everything it has started is ended first
    started = time.monotonic()
    soak = Soak(seed, tap, chosen.kills, lambda text: print(f"soak: {text}", flush=True))
    try:
        soak.run(chosen.seconds)
    except SoakError as error:
        print(f"soak: FAILED: {error}", file=sys.stderr)
        return 1
    print(
        f"soak: seed {seed}: {soak.kills} kills in {time.monotonic() - started:.0f} s, {soak.frames} frames arrived, "
        f"{soak.restarts} counted as lost in restarts; nothing stalled, came twice, or is left over"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
