"""What a new broker makes of what the one before it has left: the journal, and what the keeper holds."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from ringway.broker.config.checks import parse_config
from ringway.broker.config.text import FabricError
from ringway.broker.end import End
from ringway.broker.fabric import Fabric
from ringway.broker.handover_server import listen
from ringway.broker.journal import Journal, journal_path
from ringway.broker.keeper_entries import HANDOVER, Found, KeeperEntries, close_all, end_key, link_key
from ringway.broker.links import Resources
from ringway.control.errors import ControlError
from ringway.control.messages import Cause


def adopt_fabric(journal: Journal, fabric: Fabric, runtime: Path) -> None:
    """Make the fabric the journal's. ControlError (RUNTIME) for a text that this release does not accept."""
    if not journal.text:
        return
    try:
        fabric.adopt(parse_config(journal.text, journal.name), journal.links)
    except FabricError as error:
        message = (
            f"the journal {journal_path(runtime)} holds a fabric that this release does not take ({error}): remove it, "
            "start the broker and apply a fabric; links in use go on between their ends until then"
        )
        raise ControlError(Cause.RUNTIME, message) from None


def adopt_links(found: Found, fabric: Fabric, resources: Resources, keeping: KeeperEntries) -> list[str]:
    """Take over the memory and bells of the fabric's links, and drop others. The names of links that have none."""
    lost = []
    for name, link in fabric.links.items():
        descriptors = found.links.pop(link.link_id, None)
        if descriptors is None or not resources.adopt(link.link_id, link.config, descriptors):
            link.lost = True
            lost.append(name)
    for link_id, descriptors in found.links.items():  # of an apply that did not come to its end
        close_all(descriptors)
        keeping.drop(link_key(link_id))
    return lost


def adopt_ends(found: Found, fabric: Fabric, keeping: KeeperEntries, take_over: Callable[[End], None]) -> None:
    """Say of each end what is known; `take_over` gets all of them that are still the fabric's."""
    by_id = {link.link_id: link for link in fabric.links.values() if not link.lost}
    for (link_id, side), (kept, descriptors) in found.ends.items():
        link = by_id.get(link_id)
        if link is None:
            close_all(descriptors)
            keeping.drop(end_key(link_id, side))
        else:
            take_over(fabric.adopt_end(link, side, kept, descriptors))


def adopt_handover(found: Found, path: Path, keeping: KeeperEntries) -> socket.socket:
    """The socket that agents connect to: the one that they wait at already, if it can still be reached by its path."""
    reachable = False
    with contextlib.suppress(OSError):
        reachable = stat.S_ISSOCK(os.lstat(path).st_mode)
    if reachable and len(found.handover) == 1:
        listener = socket.socket(fileno=found.handover[0])
    else:
        close_all(found.handover)
        path.unlink(missing_ok=True)
        listener = listen(path)
    keeping.put(HANDOVER, b"", [listener.fileno()])
    return listener
