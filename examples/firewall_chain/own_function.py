"""A step of the demo: a packet function of one's own is built, put into the firewall, and changed under traffic."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from chain import FUNCTIONS, HERE, RINGWAY, Chain
from namespaces import run, start
from traffic import SERVER, expect

_SOURCE = HERE.parent / "functions" / "mark.c"
_PORT = 4000
_USE = '\n[[vm.firewall.stack.function]]\nname = "mark"\noptions = {{ port = {}, dscp = {} }}\n'
# What arrives says its DSCP: the upper six bits of the TOS byte (ip(7), IP_RECVTOS).
_LISTEN = (
    "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); s.setsockopt(0, socket.IP_RECVTOS, 1)\n"
    "s.bind(('', int(sys.argv[1]))); print('up', flush=True)\n"
    "while True: print(s.recvmsg(64, 64)[1][0][2][0] >> 2, flush=True)"
)
_SEND = "import socket, sys; socket.socket(type=socket.SOCK_DGRAM).sendto(b'?', (sys.argv[1], int(sys.argv[2])))"


def marked(chain: Chain) -> Iterator[str]:
    """a packet function of one's own, built and put into the firewall while traffic flows"""
    listener = start(sys.executable, "-c", _LISTEN, str(_PORT), namespace="server")
    assert listener.stdout is not None
    listener.stdout.readline()

    def arrives_with() -> int:
        run(sys.executable, "-c", _SEND, SERVER, str(_PORT), namespace="client")
        assert listener.stdout is not None
        return int(listener.stdout.readline())

    expect(arrives_with() == 0, "it was marked before")
    headers = run(*RINGWAY, "headers").stdout.strip()
    FUNCTIONS.mkdir(mode=0o755)
    target = str(FUNCTIONS / "mark.so")
    run("cc", "-shared", "-fPIC", "-O2", f"-I{headers}", "-o", target, str(_SOURCE))
    yield f"built: cc -shared -fPIC -O2 -I$(ringway headers) -o mark.so {_SOURCE.name}"
    text = (HERE / "fabric.toml").read_text()
    load = start("iperf3", "-c", SERVER, "-t", "2", namespace="client")
    for dscp in (46, 34):
        chain.apply_text(text + _USE.format(_PORT, dscp))
        found = arrives_with()
        expect(found == dscp, f"a frame arrived with DSCP {found}, and not {dscp}")
    expect(load.wait(30) == 0, "the traffic was disturbed")
    counted = chain.function_counters("mark")
    expect(counted["marked"] == 2 and counted["not_mine"] > 0, f"it counted {counted}")
    yield f"two frames arrived with DSCP 46 and, once its option was changed, 34; it counted {counted}"
    yield "iperf3 beside it was not disturbed"
