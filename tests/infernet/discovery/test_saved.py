"""infernet/discovery/saved.py: whom a node remembers, in which order it tells, and what a broken store costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from infernet.discovery import saved as module
from infernet.discovery.saved import SavedPeers
from infernet.store import Store
from protocol import constants as c
from protocol.envelope import SigningKey, sign_record
from protocol.events import LearnAddresses, LearnRecord
from protocol.records import Heartbeat, Signed
from tests.helpers_discovery import RecordingDriver, wait_for
from tests.helpers_records import NOW_MS, heartbeat, signing_key

pytestmark = pytest.mark.anyio

ADDRESS = "/ip4/203.0.113.7/tcp/46337"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "node.sqlite3")
    yield opened
    opened.close()


def record_of(key: SigningKey, address: str = ADDRESS) -> tuple[Heartbeat, Signed]:
    learnt = heartbeat(node=key.node, addresses=(address,))
    return learnt, sign_record(learnt, key)


def told(driver: RecordingDriver) -> list[bytes]:
    return [event.peer for event in driver.addresses()]


async def test_those_who_were_reached_are_told_at_once_and_the_others_when_that_was_of_no_use(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARD_OF_DELAY_S", 0.05)
    reached, heard_of = signing_key("reached"), signing_key("heard of")
    earlier = SavedPeers(store, lambda: NOW_MS)
    earlier.learn(*record_of(reached))
    earlier.learn(*record_of(heard_of))
    earlier.reached(reached.node, "/ip4/203.0.113.8/tcp/1")
    await earlier.save()
    driver = RecordingDriver()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(SavedPeers(store, lambda: NOW_MS + 60_000).run, driver.finds())
        await wait_for(lambda: len(driver.events) >= 2)
        assert driver.events[:2] == [
            LearnAddresses(reached.node, ("/ip4/203.0.113.8/tcp/1", ADDRESS)),
            LearnRecord(record_of(reached)[1]),
        ]
        await wait_for(lambda: len(driver.events) == 4)
        assert told(driver) == [reached.node, heard_of.node]
        nursery.cancel_scope.cancel()


async def test_a_record_that_must_have_expired_is_not_told(store: Store) -> None:
    key = signing_key("reached")
    earlier = SavedPeers(store, lambda: NOW_MS)
    earlier.learn(*record_of(key))
    earlier.reached(key.node, None)
    await earlier.save()
    driver = RecordingDriver()
    async with trio.open_nursery() as nursery:
        later = SavedPeers(store, lambda: NOW_MS + c.HEARTBEAT_LIFETIME_MS_MAX)
        nursery.start_soon(later.run, driver.finds())
        await wait_for(lambda: driver.events)
        nursery.cancel_scope.cancel()
    assert driver.records() == []
    assert told(driver) == [key.node]


async def test_what_is_learnt_is_written_now_and_then(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAVE_S", 0.01)
    peers = SavedPeers(store, lambda: NOW_MS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peers.run, RecordingDriver().finds())
        peers.learn(*record_of(signing_key("one")))
        await wait_for(lambda: len(store.peers()) == 1)
        peers.learn(*record_of(signing_key("two")))
        await wait_for(lambda: len(store.peers()) == 2)
        nursery.cancel_scope.cancel()


async def test_a_store_that_cannot_be_written_loses_nothing_that_it_can_take_later(
    store: Store, tmp_path: Path
) -> None:
    key = signing_key("one")
    closed = Store(tmp_path / "other.sqlite3")
    closed.close()
    peers = SavedPeers(closed, lambda: NOW_MS)
    peers.learn(*record_of(key))
    peers.reached(key.node, ADDRESS)
    await peers.save()
    peers._store = store
    await peers.save()
    (saved,) = store.peers()
    assert (saved.node, saved.reached_at_ms) == (key.node, NOW_MS)


async def test_a_stranger_with_many_keys_does_not_grow_what_waits_to_be_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNSAVED_MAX", 10)
    peers = SavedPeers(store, lambda: NOW_MS)
    for number in range(50):
        key = signing_key(f"{number}")
        peers.learn(*record_of(key))
        peers.reached(key.node, ADDRESS)
    await peers.save()
    assert {peer.node for peer in store.peers()} == {signing_key(f"{number}").node for number in range(40, 50)}
