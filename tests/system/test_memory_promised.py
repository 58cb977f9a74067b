"""Memory is looked at before it is promised, and an apply over which a broker dies is not given to the next one."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ringway.control.client import Client
from ringway.control.errors import ControlError
from ringway.control.messages import Applied, Apply, Cause, Planned, PlanRequest, Show, Shown
from tests.support.broker_process import BrokerProcess, run_ringway, short_directory
from tests.support.fabrics import FABRIC

LARGEST = 16 << 30  # bytes of slots in one link
REFUSAL = r"need \d+\.\d MiB of memory, and \d+\.\d MiB can be had now: .* are kept back.*; nothing has been changed"


@pytest.fixture
def runtime() -> Iterator[Path]:
    with short_directory() as path:
        yield path / "run"


def more_than_the_host_has() -> str:
    count = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // LARGEST + 1
    text = FABRIC + '[limits]\nlink_bytes = "1 TiB"\nvm_bytes = "4096 TiB"\n'
    for n in range(count):
        text += f'[vm.v{n}.port]\na.kind = "local"\nb.kind = "local"\n'
        text += f'[link.l{n}]\nends = ["v{n}.a", "v{n}.b"]\nqueues = 16\nslots = 32768\nslot_payload = 16384\n'
    return text


def test_a_fabric_that_wants_more_memory_than_there_is_is_refused_and_nothing_is_changed(runtime: Path) -> None:
    text = more_than_the_host_has()
    with BrokerProcess(runtime) as broker, Client(runtime) as client:
        broker.apply()
        before = broker.show().links
        for request, expected in ((Apply(name="f", text=text), Applied), (PlanRequest(name="f", text=text), Planned)):
            with pytest.raises(ControlError, match=REFUSAL) as caught:
                client.call(request, expected, 20)
            assert caught.value.cause is Cause.LIMIT
        assert broker.show().links == before


def test_check_says_what_this_host_has_and_whether_that_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "fabric.toml"
    path.write_text(FABRIC)
    checked = run_ringway("check", str(path))
    assert re.search(r"^memory: \d+\.\d MiB for all links; here \d+\.\d MiB can be had", checked.stdout, re.MULTILINE)
    assert "note:" not in checked.stdout
    path.write_text(more_than_the_host_has())
    checked = run_ringway("check", str(path))
    assert checked.returncode == 0, checked.stderr  # the file is good; it is this host that is too small
    assert re.search(r"^note: a broker here would refuse it now: the links to be made", checked.stdout, re.MULTILINE)


def test_an_apply_over_which_the_broker_dies_is_not_given_to_the_next_one(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = threading.Event()
    put = Client._put

    def put_and_tell(client: Client, payload: bytes) -> None:
        put(client, payload)
        sent.set()

    with BrokerProcess(runtime) as broker, ThreadPoolExecutor(1) as thread, Client(runtime) as client:
        client.call(Show(), Shown)
        broker.process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(Client, "_put", put_and_tell)
        asked = thread.submit(client.call, Apply(name="fabric.toml", text=FABRIC), Applied, 30)
        assert sent.wait(20)
        broker.restart(signal.SIGKILL)
        with pytest.raises(ControlError, match=r"died over the apply.*ringway show.*ringway plan.*again") as caught:
            asked.result()
        assert caught.value.cause is Cause.NO_BROKER
        assert broker.show().links == []
        assert client.call(Apply(name="fabric.toml", text=FABRIC), Applied, 20).made == ["one"]


def test_an_apply_goes_to_the_broker_that_is_there_whatever_became_of_the_one_before(runtime: Path) -> None:
    with BrokerProcess(runtime) as broker, Client(runtime) as client:
        client.call(Show(), Shown)
        broker.restart(signal.SIGKILL)
        assert client.call(Apply(name="fabric.toml", text=FABRIC), Applied, 20).made == ["one"]
