"""A process in a network namespace of its own that makes veth pairs: the kernel's way to join two ends.

A line on its input is a number of pairs; each is made, brought up at both ends, and removed again when a first frame
has passed. It prints the times from the request to the frame's arrival, in ns, on one line.
"""

from __future__ import annotations

import socket
import sys
import time

from pyroute2 import IPRoute

ENDS = ("end-a", "end-b")
ETHERTYPE = 0x88B5  # IEEE 802, for experiments: nothing else in the namespace speaks it
PATIENCE_S = 10.0
AGAIN_S = 0.0002  # a new pair loses frames without a word until the kernel has noticed that both ends are up
BROADCAST, SENDER = b"\xff" * 6, b"\x02\0\0\0\0\x01"
FRAME = BROADCAST + SENDER + ETHERTYPE.to_bytes(2, "big") + b"the first frame".ljust(50, b".")


def _endpoint(interface: str) -> socket.socket:
    endpoint = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    endpoint.bind((interface, ETHERTYPE))
    endpoint.settimeout(AGAIN_S)
    return endpoint


def _exchange(sender: socket.socket, receiver: socket.socket) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        sender.send(FRAME)
        try:
            if receiver.recv(2048) == FRAME:
                return
        except TimeoutError:
            continue
        sys.exit("another frame came than was sent")
    sys.exit(f"no frame came through in {PATIENCE_S:.0f} s")


def _first_frame_ns(netlink: IPRoute) -> int:
    begun = time.monotonic_ns()
    netlink.link("add", ifname=ENDS[0], kind="veth", peer={"ifname": ENDS[1]})
    for name in ENDS:
        netlink.link("set", index=socket.if_nametoindex(name), state="up")
    with _endpoint(ENDS[0]) as sender, _endpoint(ENDS[1]) as receiver:
        _exchange(sender, receiver)
        taken = time.monotonic_ns() - begun
    netlink.link("del", index=socket.if_nametoindex(ENDS[0]))
    return taken


def main() -> None:
    with IPRoute() as netlink:
        print("ready", flush=True)
        for line in sys.stdin:
            print(*(_first_frame_ns(netlink) for _ in range(int(line))), flush=True)


if __name__ == "__main__":
    main()
