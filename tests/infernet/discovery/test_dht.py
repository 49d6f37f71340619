"""infernet/discovery/dht.py: the process is started, told what to publish, asked, watched, and started again.

With doubles of the process that do what a script says; the real one is tried in test_dht_worker.py.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from msgspec.structs import replace

from infernet.discovery import dht as module
from infernet.discovery.dht import Dht, DhtSettings
from infernet.discovery.dht_records import encode_heartbeat, model_key
from infernet.store import Store
from protocol.announcing import EXTENSION_DHT
from protocol.envelope import sign_record
from protocol.events import LearnAddresses
from protocol.ids import peer_id
from protocol.records import Availability, Signed
from tests.helpers_dht import scripted
from tests.helpers_discovery import RecordingDriver, wait_for
from tests.helpers_records import ASKER, OFFER, PROVIDER, heartbeat

pytestmark = pytest.mark.anyio

HOME = f"/ip4/203.0.113.7/tcp/46337/p2p/{peer_id(PROVIDER.node)}"
SETTINGS = DhtSettings(("0.0.0.0",), 46338, ("/ip4/203.0.113.9/tcp/1/p2p/x",), allow_private=False)
# Says back, as its addresses, what it was told last; so a test sees what the process got.
ECHO = """
for command in commands():
    match command:
        case Begin():
            hosts, peers = ",".join(command.announced_hosts), ",".join(command.peers)
            say(Begun((f"begin {hosts} {command.port} {peers}"[:250],)))
        case Publish():
            say(Begun((f"publish {len(command.keys)} {','.join(command.addresses)}"[:250],)))
        case Search():
            say(Begun((f"search {command.key.hex()}",)))
        case Meet():
            say(Begun((f"meet {command.peers[0]}"[:250],)))
        case Ping():
            say(Pong(command.number, ()))
"""


class Bench:
    """A source with a double of its process, and what came of it."""

    def __init__(self, dht: Dht, driver: RecordingDriver) -> None:
        self.dht = dht
        self.driver = driver
        self.told: list[str] = []

    async def heard(self, start: str) -> str:
        """Wait until the process has got a command; how it tells of it."""
        with trio.fail_after(60):
            while True:
                for text in self.told:
                    if text.startswith(start):
                        return text
                await trio.sleep(0.01)


@asynccontextmanager
async def bench(script: str = ECHO, **changes: Any) -> AsyncIterator[Bench]:
    """A running source."""
    driver = RecordingDriver()
    found: Bench | None = None

    def changed() -> None:
        if found is not None:
            found.told += found.dht.addresses

    fields: dict[str, Any] = {"advertised": lambda: [HOME], "store": None} | changes
    dht = Dht(
        SETTINGS,
        fields["advertised"],
        fields["store"],
        random.Random(1),
        changed=changed,
        command=scripted(script),
    )
    found = Bench(dht, driver)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dht.run, driver.finds())
        yield found
        nursery.cancel_scope.cancel()


def record(**changes: Any) -> Signed:
    return sign_record(heartbeat(**{"models": (OFFER,), "addresses": (HOME,)} | changes), PROVIDER)


async def test_it_begins_where_the_node_is_reached_and_with_the_peers_it_was_given() -> None:
    async with bench() as b:
        assert await b.heard("begin") == "begin 203.0.113.7 46338 /ip4/203.0.113.9/tcp/1/p2p/x"
        assert b.dht.status()["restarts"] == 0


async def test_a_node_that_publishes_no_address_publishes_nothing() -> None:
    async with bench(advertised=list) as b:
        assert await b.heard("begin") == "begin  46338 /ip4/203.0.113.9/tcp/1/p2p/x"
        b.dht.offer(record())
        b.dht.search("tiny-135m")
        await b.heard("search")
        assert not any(text.startswith("publish") for text in b.told)


async def test_what_the_node_offers_is_published_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_S", 0.01)
    monkeypatch.setattr(module, "PUBLISH_PAUSE_S", 0.0)
    async with bench() as b:
        b.dht.offer(record())
        assert await b.heard("publish") == f"publish 1 {HOME}"
        b.dht.offer(record(availability=Availability.OFFLINE))
        assert await b.heard("publish 0") == "publish 0 "


async def test_nothing_is_published_twice_in_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench() as b:
        await b.heard("begin")
        for name in ("a", "b", "c"):
            b.dht.offer(record(name=name))
        other = record(models=(OFFER, replace(OFFER, name="other")))
        b.dht.offer(other)
        b.dht.search("end")
        await b.heard("search")
        assert [text for text in b.told if text.startswith("publish")] == [f"publish 1 {HOME}"]
        monkeypatch.setattr(module, "PUBLISH_PAUSE_S", 0.0)
        b.dht.offer(other)
        assert await b.heard("publish 2") == f"publish 2 {HOME}"


async def test_a_model_is_looked_up_once_in_a_while() -> None:
    async with bench() as b:
        b.dht.search("too early")
        await b.heard("begin")
        for _ in range(5):
            b.dht.search("tiny-135m")
        b.dht.search("other")
        await b.heard(f"search {model_key('other').hex()}")
        searches = [text for text in b.told if text.startswith("search")]
        assert searches == [f"search {model_key(name).hex()}" for name in ("tiny-135m", "other")]


async def test_what_is_found_reaches_the_peer_and_what_is_no_record_does_not() -> None:
    signed = record()
    script = f"""
for command in commands():
    if isinstance(command, Search):
        node = bytes.fromhex("{PROVIDER.node.hex()}")
        say(Found(node, ("{HOME}", "/ip4/1.2.3.4/tcp/1/p2p/somebody-else"), None), Found(node, (), b"no record"))
        say(Found(node, (), bytes.fromhex("{encode_heartbeat(signed).hex()}")))
    elif isinstance(command, Begin):
        say(Begun(()))
"""
    async with bench(script) as b:
        await wait_for(lambda: b.dht.status()["pid"])
        b.dht.search("tiny-135m")
        await wait_for(lambda: len(b.driver.events) == 2)
        assert b.driver.events[0] == LearnAddresses(PROVIDER.node, (HOME,))
        assert [event.record for event in b.driver.records()] == [signed]


async def test_other_nodes_in_the_dht_are_met_once() -> None:
    place = f"/ip4/203.0.113.8/tcp/46338/p2p/{peer_id(ASKER.node)}"
    known = heartbeat(addresses=("/ip4/203.0.113.8/tcp/46337",), extensions=((EXTENSION_DHT, place.encode()),))
    async with bench() as b:
        await b.heard("begin")
        b.dht.meet(heartbeat())
        b.dht.meet(known)
        b.dht.meet(known)
        assert await b.heard("meet") == f"meet {place}"
        b.dht.search("end")
        await b.heard("search")
        assert len([text for text in b.told if text.startswith("meet")]) == 1


async def test_peers_are_remembered_for_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_S", 0.01)
    store = Store(tmp_path / "node.sqlite3")
    script = """
for command in commands():
    if isinstance(command, Ping):
        say(Pong(command.number, ("/ip4/203.0.113.5/tcp/1/p2p/y",)))
"""
    async with bench(script, store=store):
        await wait_for(lambda: store.get("dht_peers"))
    async with bench(store=store) as b:
        assert (await b.heard("begin")).endswith(" /ip4/203.0.113.9/tcp/1/p2p/x,/ip4/203.0.113.5/tcp/1/p2p/y")
    store.put("dht_peers", b"{broken")
    async with bench(store=store) as b:
        assert (await b.heard("begin")).endswith(" /ip4/203.0.113.9/tcp/1/p2p/x")
    store.close()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sys.exit(3)", "it exited with status 3"),
        ("sys.stderr.write('noise\\ndht process: MemoryError\\n'); sys.stderr.flush(); os._exit(1)", "(MemoryError)"),
        ("sys.stderr.write('dht process: \\x1b[2J evil\\n'); sys.stderr.flush(); os._exit(1)", "status 1"),
        ("os.write(1, b'\\xff' * 100)\nos.read(0, 1)\nimport time\ntime.sleep(60)", "it broke its contract"),
        ("os.kill(os.getpid(), 9)", "it was ended by signal 9"),
    ],
)
async def test_a_process_that_ends_is_started_again_and_the_reason_is_told(
    script: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTART_S_MIN", 0.01)
    with structlog.testing.capture_logs() as log:
        async with bench(script) as b:
            await wait_for(lambda: b.dht.restarts >= 3)
        assert any(reason in line["reason"] for line in _ends(log))
        assert "evil" not in str(_ends(log))


async def test_a_process_that_stands_still_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PONG_TIMEOUT_S", 0.2), ("BEGIN_TIMEOUT_S", 0.3), ("PING_S", 0.05), ("RESTART_S_MIN", 0.01)):
        monkeypatch.setattr(module, name, value)
    with structlog.testing.capture_logs() as log:
        async with bench("import time\ntime.sleep(600)") as b:
            await wait_for(lambda: b.dht.restarts >= 2)
        assert _ends(log)[0]["reason"] == "it did not answer for 0.2 s"


async def test_when_the_node_is_reached_elsewhere_it_begins_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PING_S", 0.01), ("STABLE_S", 0.0), ("RESTART_S_MIN", 0.01)):
        monkeypatch.setattr(module, name, value)
    reached: list[str] = []
    with structlog.testing.capture_logs() as log:
        async with bench(advertised=lambda: list(reached)) as b:
            await b.heard("begin  46338")
            reached.append(HOME)
            assert await b.heard("begin 203.0.113.7 46338")
        assert _ends(log)[0]["reason"] == "this node is reached at other addresses now"


async def test_what_was_published_is_published_again_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTART_S_MIN", 0.01)
    async with bench() as b:
        b.dht.offer(record())
        await b.heard("publish")
        b.told.clear()
        pid = b.dht.status()["pid"]
        assert isinstance(pid, int)
        os.kill(pid, signal.SIGKILL)
        assert await b.heard("begin")
        assert await b.heard("publish") == f"publish 1 {HOME}"
        assert b.dht.restarts == 1


async def test_a_command_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTART_S_MIN", 0.01)
    dht = Dht(SETTINGS, list, None, random.Random(1), changed=lambda: None, command=["/nonexistent/program"])
    with structlog.testing.capture_logs() as log:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dht.run, RecordingDriver().finds())
            await wait_for(lambda: dht.restarts >= 2)
            nursery.cancel_scope.cancel()
        assert "it cannot be started (no such file or directory)" in _ends(log)[0]["reason"]


def _ends(log: Sequence[Any]) -> list[Any]:
    return [line for line in log if line["event"] == "dht.ended"]
