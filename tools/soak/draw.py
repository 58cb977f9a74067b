"""What a seed draws: the fabric, its traffic, and what is done to whom in each step. Nothing here depends on time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tools.soak.frames import LEN_MIN, Stream
from tools.soak.pace import Death, DeathMoment, Pace
from tools.soak.wire import INTERFACE

# (slots, payload) by the largest frame that follows: the two links of a forward pair have to carry the same.
_GEOMETRIES = {
    8192: ((64, 256), (64, 256)),
    65536: ((64, 2048), (128, 1024), (256, 512), (512, 256)),
    65664: ((1024, 2048), (512, 512), (256, 2048)),
}
# After a time; when an application has moved so many frames, to the frame; when a ring got about so many more; while
# a forwarder holds frames that are in neither ring.
Moment = Literal["time", "death", "frames", "between"]

_TAP_FRAME_MAX, _IP_FRAME_MAX = 1514, 14 + 65535  # bytes
_LENGTHS = 64  # how many different ones follow each other

CHAIN_OUT, CHAIN_BACK, DIRECT_OUT, DIRECT_BACK, WIRE_OUT, WIRE_BACK, HUB_CLIENT, HUB_SERVER, HUB_GUEST = range(9)
_OVER_TAP = (WIRE_OUT, WIRE_BACK)

# The ports of a bridge. Each sends to the next one, and now and then to everybody; a frame for one whom the bridge does
# not know yet comes to both others, too.
HUB = {"client": HUB_CLIENT, "server": HUB_SERVER, "guest": HUB_GUEST}
_HUB_NEXT = {HUB_CLIENT: HUB_SERVER, HUB_SERVER: HUB_GUEST, HUB_GUEST: HUB_CLIENT}


@dataclass(frozen=True)
class Link:
    name: str
    ends: tuple[str, str]  # VM.port
    queues: int
    slots: int
    payload: int

    def text(self) -> str:
        ends = ", ".join(f'"{end}"' for end in self.ends)
        sizes = f"queues = {self.queues}\nslots = {self.slots}\nslot_payload = {self.payload}"
        return f"[link.{self.name}]\nends = [{ends}]\n{sizes}\n"


@dataclass(frozen=True)
class Setup:
    links: tuple[Link, ...]
    lengths: tuple[tuple[int, ...], ...]  # by direction, those over a tap too where there is none
    dropping: dict[str, bool]  # by application
    agent_options: dict[str, tuple[str, ...]]  # by agent
    connections: int  # that the firewall remembers
    tap: bool

    @property
    def directions(self) -> tuple[int, ...]:
        return tuple(at for at in range(9) if self.tap or at not in _OVER_TAP)

    def stream(self, direction: int) -> Stream:
        lengths = self.lengths[direction]
        if direction in _HUB_NEXT:
            return Stream(direction, lengths, 0x10 + direction, 0x10 + _HUB_NEXT[direction], broadcasts=True)
        return Stream(direction, lengths, denied=direction in (CHAIN_OUT, CHAIN_BACK))

    def fabric(self) -> str:
        locals_ = ["client.port.chain", "client.port.direct", "server.port.chain", "server.port.direct"]
        locals_ += ["firewall.port.inside", "firewall.port.outside", *(["client.port.wire"] if self.tap else [])]
        locals_ += [end for host in HUB for end in (f"{host}.port.hub", f"bridge.port.{host}")]
        parts = [f'[vm.{port}]\nkind = "local"\n' for port in locals_]
        if self.tap:
            parts.append(f'[vm.edge.port.net]\nkind = "tap"\ninterface = "{INTERFACE}"\nmtu = 1500\n')
        parts.append(
            '[vm.firewall.stack]\nforward = [["inside", "outside"]]\ndefault = "allow"\n'
            f"connections = {self.connections}\n"
            '[[vm.firewall.stack.rule]]\nname = "known"\naction = "deny"\nprotocol = "udp"\ndestination_port = 81\n'
        )
        names = ", ".join(f'"{host}"' for host in HUB)
        parts.append(f'[vm.bridge.stack]\nmode = "bridge"\nbridge.ports = [{names}]\ndefault = "allow"\n')
        return "".join([*parts, *(link.text() for link in self.links)])

    def __str__(self) -> str:
        links = "; ".join(f"{link.name}: {link.queues} x {link.slots} x {link.payload} B" for link in self.links)
        dropping = ", ".join(vm for vm, drops in self.dropping.items() if drops) or "nobody"
        options = ", ".join(f"{vm} {' '.join(words)}" for vm, words in self.agent_options.items() if words) or "none"
        return f"{links}; options: {options}; connections: {self.connections}; drops what has no room: {dropping}"


@dataclass(frozen=True)
class Step:
    """`after`: seconds, or frames more of a direction. With the pace `stopped`, all ends sleep when it happens."""

    number: int
    victims: tuple[str, ...]
    fault: Literal["kill", "pause"]
    pace: Pace
    moment: Moment
    after: float
    death: Death | None
    direction: int
    attempts: tuple[float, ...]  # starts that are cut short by another kill, after that part of the usual time
    away: float  # seconds until the victims are started again, or go on
    quiet: bool  # look at the books when all flows again

    def __str__(self) -> str:
        when = {
            "time": f"after {self.after * 1000:.0f} ms",
            "frames": f"after {self.after:.0f} frames of direction {self.direction}",
            "death": str(self.death),
            "between": "between its rings",
        }[self.moment]
        again = "".join(f", again {part:.2f} of the usual time into its start" for part in self.attempts)
        whom = f"{self.fault} {'+'.join(self.victims)} {when}{again}"
        return f"step {self.number}: {whom}, {self.pace}, away for {self.away * 1000:.0f} ms"


def draw_setup(seed: int, tap: bool) -> Setup:
    drawn = random.Random(f"setup {seed}")

    def link(name: str, first: str, second: str, frame_max: int) -> Link:
        slots, payload = drawn.choice(_GEOMETRIES[frame_max])
        return Link(name, (first, second), drawn.choice((1, 2)), slots, payload)

    chain, direct, wire, hub = (drawn.choice(tuple(_GEOMETRIES)) for _ in range(4))
    links = [
        link("inside", "client.chain", "firewall.inside", chain),
        link("outside", "firewall.outside", "server.chain", chain),
        link("direct", "client.direct", "server.direct", direct),
        *(link(f"hub-{host}", f"{host}.hub", f"bridge.{host}", hub) for host in HUB),
    ]
    if tap:
        links.append(link("wire", "client.wire", "edge.net", wire))
    longest = (chain, chain, direct, direct, _TAP_FRAME_MAX, _TAP_FRAME_MAX, hub, hub, hub)
    return Setup(
        links=tuple(links),
        lengths=tuple(_lengths(drawn, min(most, _IP_FRAME_MAX)) for most in longest),
        dropping={vm: drawn.random() < 0.3 for vm in ("client", "server", "guest")},
        agent_options={vm: _options(drawn) for vm in ("firewall", "edge", "bridge")},
        connections=drawn.choice((0, 0, 4096)),
        tap=tap,
    )


def _lengths(drawn: random.Random, most: int) -> tuple[int, ...]:
    """Mostly short ones; some go over several slots, and now and then one is as long as can be."""
    ranges = ((LEN_MIN, 256), (LEN_MIN, min(most, 4000)), (most, most))
    weights = (90, 9, 1) if drawn.random() < 0.7 else (50, 48, 2)
    return tuple(drawn.randint(*bounds) for bounds in drawn.choices(ranges, weights, k=_LENGTHS))


def _options(drawn: random.Random) -> tuple[str, ...]:
    spin = ("--spin-us", str(drawn.choice((20, 500)))) if drawn.random() < 0.3 else ()
    return (*spin, "--loops", "1") if drawn.random() < 0.3 else spin


_SINGLE = {"client": 5, "firewall": 6, "bridge": 6, "server": 4, "edge": 4, "guest": 2, "broker": 2, "keeper": 1}
_PAIRS: tuple[tuple[str, ...], ...] = (
    ("client", "firewall"),
    ("firewall", "server"),
    ("client", "server"),
    ("client", "edge"),
    ("broker", "firewall"),
    ("broker", "client"),
    ("client", "firewall", "server"),
    ("bridge", "guest"),
    ("broker", "bridge"),
    ("client", "bridge", "server"),
)
_PACES: tuple[Pace, ...] = ("fast", "fast", "fast", "slow", "slow", "stopped")
_SENDS = {
    "client": (CHAIN_OUT, DIRECT_OUT, WIRE_OUT, HUB_CLIENT),
    "server": (CHAIN_BACK, DIRECT_BACK, HUB_SERVER),
    "guest": (HUB_GUEST,),
}
_TAKES = {
    "client": (CHAIN_BACK, DIRECT_BACK, WIRE_BACK, HUB_GUEST),
    "server": (CHAIN_OUT, DIRECT_OUT, HUB_CLIENT),
    "guest": (HUB_SERVER,),
}
_CARRIES = {
    "firewall": (CHAIN_OUT, CHAIN_BACK),
    "bridge": (HUB_CLIENT, HUB_SERVER, HUB_GUEST),
    "edge": _OVER_TAP,
    "broker": (DIRECT_OUT,),
}


def draw_steps(seed: int, tap: bool) -> Iterator[Step]:
    """Without end."""
    drawn = random.Random(f"steps {seed}")
    number = 0
    while True:
        number += 1
        yield _draw_step(drawn, number, tap)


def _draw_step(drawn: random.Random, number: int, tap: bool) -> Step:
    singles = {vm: weight for vm, weight in _SINGLE.items() if tap or vm != "edge"}
    if drawn.random() < 0.2:
        victims: tuple[str, ...] = drawn.choice([pair for pair in _PAIRS if tap or "edge" not in pair])
    else:
        victims = tuple(drawn.choices(tuple(singles), tuple(singles.values())))
    fault: Literal["kill", "pause"] = "pause" if drawn.random() < 0.1 and victims != ("keeper",) else "kill"
    pace: Pace = drawn.choice(_PACES)
    moment, after, death, direction = _draw_moment(drawn, victims, fault, pace, tap)
    attempts = [drawn.uniform(0.0, 1.1) for _ in range(drawn.choice((1, 1, 2, 3)))] if drawn.random() < 0.25 else []
    return Step(
        number=number,
        victims=victims,
        fault=fault,
        pace=pace,
        moment=moment,
        after=after,
        death=death,
        direction=direction,
        attempts=tuple(attempts) if fault == "kill" and "keeper" not in victims else (),
        away=drawn.uniform(0.1, 0.6) if fault == "pause" else drawn.choice((0.0, drawn.uniform(0.0, 0.3))),
        quiet=drawn.random() < 0.35,
    )


def _draw_moment(
    drawn: random.Random, victims: tuple[str, ...], fault: str, pace: Pace, tap: bool
) -> tuple[Moment, float, Death | None, int]:
    vm = victims[0]
    kind = drawn.random()
    if kind > 0.6 or pace == "stopped":
        return "time", drawn.uniform(0.0, 0.15), None, 0
    if fault == "kill" and kind < 0.45 and vm in ("firewall", "bridge"):
        return "between", 0.0, None, 0
    if fault == "kill" and len(victims) == 1 and vm in _SENDS:
        moments: tuple[DeathMoment, ...] = ("sent", "taken", "logged")
        moment = drawn.choice(moments)
        among = _SENDS[vm] if moment == "sent" else _TAKES[vm]
        direction = drawn.choice([at for at in among if tap or at not in _OVER_TAP])
        return "death", 0.0, Death(direction, moment, drawn.randint(1, 2000)), direction
    if vm in _CARRIES:
        return "frames", float(drawn.randint(1, 4000)), None, drawn.choice(_CARRIES[vm])
    return "time", drawn.uniform(0.0, 0.15), None, 0
