"""What earlier runs learnt of providers, and what this run learns for the next one."""

from __future__ import annotations

from typing import Final

import structlog
import trio

from infernet.store import Store, StoreError
from protocol.reputation import Reputation, SavedExperience

log = structlog.get_logger(__name__)

# A crash forgets the jobs of this long; what they taught is learnt again.
SAVE_S: Final = 30.0


class KeptExperience:
    """Reads the store when it is made, then writes to it now and then."""

    def __init__(self, store: Store, reputation: Reputation) -> None:
        """Raises StoreError."""
        self._store = store
        self._reputation = reputation
        self._unsaved: list[SavedExperience] = []
        reputation.restore(store.experience())

    async def run(self) -> None:
        """Save until cancelled."""
        while True:
            await trio.sleep(SAVE_S)
            await self.save()

    async def save(self) -> None:
        """Write what was learnt since the last time, in a thread; what cannot be written is tried again."""
        newer = self._reputation.take_changed()
        known = {(each.provider, each.model) for each in newer}
        self._unsaved = [each for each in self._unsaved if (each.provider, each.model) not in known] + newer
        if not self._unsaved:
            return
        try:
            await trio.to_thread.run_sync(self._store.save_experience, list(self._unsaved))
        except StoreError as error:
            log.warning("store.failed", reason=str(error))
            return
        self._unsaved = []
