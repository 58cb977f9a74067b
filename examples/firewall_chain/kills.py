"""Steps of the demo that kill (SIGKILL) under traffic: the broker, and an end of two links."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

from chain import HERE, Chain, ping
from namespaces import start
from traffic import SERVER, expect

_KILLS = 5


def broker_killed(chain: Chain) -> Iterator[str]:
    """the broker killed again and again under full traffic: no frame is lost, and the next one has the same links"""
    before, lost_before = _identities(chain), _losses(chain)
    # A window that fits into any of the rings: so none is ever full, and whatever is missing would be the kills' doing.
    load = start("iperf3", "-c", SERVER, "-t", "3", "-w", "200K", namespace="client")
    pings = start("ping", "-n", "-q", "-i", "0.01", "-c", "250", SERVER, namespace="client")
    back = []
    for _ in range(_KILLS):
        chain.broker.kill()
        chain.broker.wait()
        started = time.monotonic()
        chain.start_broker()
        expect(_identities(chain) == before, "the new broker shows other links, or other ends")
        back.append(time.monotonic() - started)
    expect(load.wait(30) == 0, "the traffic was disturbed")
    expect(pings.wait(30) == 0 and pings.stdout is not None, "the pings were disturbed")
    summary = next(line for line in pings.stdout if "received" in line).strip() if pings.stdout else ""
    expect(" 0% packet loss" in summary, summary)
    lost = _losses(chain) - lost_before
    expect(not lost, f"frames were lost: {dict(lost)}")
    chain.apply_text((HERE / "fabric.toml").read_text())
    yield f"killed {_KILLS} times beside iperf3 and ping: {summary.partition(', time')[0]}; no ring has dropped a frame"
    yield f"each new broker had the links, with the ends that hold them, after {max(back) * 1000:.0f} ms at most"


def firewall_killed(chain: Chain) -> Iterator[str]:
    """the firewall's agent killed under traffic: the next one goes on in the same memory, and what was lost is named"""
    ids, lost_before = [link["link_id"] for link in chain.show()["links"]], _losses(chain)
    load = start("iperf3", "-c", SERVER, "-t", "3", namespace="client")
    time.sleep(0.5)  # traffic has to be under way
    chain.agents["firewall"].kill()
    chain.agents.pop("firewall").wait()
    chain.start_agent("firewall")
    received, summary = ping(SERVER)
    expect(received == 5, summary)
    expect(load.wait(30) == 0, "iperf3 did not go on")
    expect([link["link_id"] for link in chain.show()["links"]] == ids, "the links were recreated")
    chain.quiet_books()
    lost = _losses(chain) - lost_before
    expect(not lost["full"], f"{lost['full']} frames were dropped as 'full': the firewall did not wait for the server")
    yield f"the links are the same ones; iperf3 went on; {lost['restart']} frames were lost, booked as 'restart'"


def _identities(chain: Chain) -> list[tuple[object, ...]]:
    """Which links there are, and the incarnation of each end."""
    ends = [(link["link_id"], end) for link in chain.show()["links"] for end in link["ends"]]
    return [(link_id, end["vm"], end["pid"], end["incarnation"], end["held"]) for link_id, end in ends]


def _losses(chain: Chain) -> Counter[str]:
    """Frames by the cause of their drop, over all rings."""
    found: Counter[str] = Counter()
    for link in chain.show()["links"]:
        for ring in link["rings"]:
            found.update(ring["drops_produced"])
            found.update(ring["drops_consumed"])
    return found
