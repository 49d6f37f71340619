"""infernet/kept_experience.py: what jobs taught is there after a restart, and a disk that is full loses nothing.

On the real clock: a virtual one jumps ahead while a thread writes to the store.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from infernet import kept_experience as module
from infernet.kept_experience import KeptExperience
from infernet.store import Store, StoreError
from protocol.reputation import Reputation
from tests.helpers_records import ASKER, NOW_MS, OFFER, PROVIDER

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "node.sqlite3")
    yield store
    store.close()


def jobs_done(reputation: Reputation, count: int = 1) -> None:
    for _ in range(count):
        reputation.job_done(PROVIDER.node, OFFER.name, NOW_MS)


async def test_it_is_kept_over_a_restart(store: Store) -> None:
    reputation = Reputation(ASKER.node)
    kept = KeptExperience(store, reputation)
    jobs_done(reputation, 3)
    await kept.save()
    again = Reputation(ASKER.node)
    KeptExperience(store, again)
    assert again.account(PROVIDER.node, OFFER.name, NOW_MS) == reputation.account(PROVIDER.node, OFFER.name, NOW_MS)
    assert again.favourites(OFFER.name) == [PROVIDER.node]


async def test_it_saves_now_and_then(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reputation = Reputation(ASKER.node)
    kept = KeptExperience(store, reputation)
    saved, save = trio.Event(), kept.save

    async def save_and_say() -> None:
        await save()
        saved.set()

    monkeypatch.setattr(module, "SAVE_S", 0.01)
    monkeypatch.setattr(kept, "save", save_and_say)
    jobs_done(reputation)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kept.run)
            await saved.wait()
            nursery.cancel_scope.cancel()
    assert store.experience()[0].ok == 1


async def test_what_cannot_be_written_is_written_later(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(_experience: object) -> None:
        raise StoreError("the disk is full")

    reputation = Reputation(ASKER.node)
    kept = KeptExperience(store, reputation)
    jobs_done(reputation)
    reputation.job_failed(ASKER.node, OFFER.name, NOW_MS)
    with monkeypatch.context() as broken:
        broken.setattr(store, "save_experience", full_disk)
        await kept.save()
    assert store.experience() == []
    jobs_done(reputation)
    await kept.save()
    assert sorted((each.provider, each.ok, each.bad) for each in store.experience()) == sorted(
        [(PROVIDER.node, 2, 0), (ASKER.node, 0, 1)]
    )


async def test_nothing_learnt_is_nothing_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reputation = Reputation(ASKER.node)
    kept = KeptExperience(store, reputation)
    jobs_done(reputation)
    await kept.save()
    monkeypatch.setattr(store, "save_experience", None)
    await kept.save()
