"""Writes to the money store without waiting for it: what must be on disk before it is acted on, and what soon.

Marks go to disk at once, and whoever waits for one hears of it afterwards; that a lease is given up goes there at once,
too. Vouchers wait a quarter of a second for others, and all that waits shares a transaction. For each lease only the
newest state waits, so the queue is bounded by the number of leases. A write that fails is tried again until it
succeeds; meanwhile `trouble` says why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
import trio
from msgspec.structs import replace

from infernet.money.store import MoneyStore, MoneyTotals, Rejected, Write
from infernet.store import StoreError
from protocol.effects import Equivocation, StoreClaimed, StoreClosing, StoreMark, StoreVoucher
from protocol.ids import LeaseId

# SPEC 06: It puts the best one on disk within 250 ms.
FLUSH_S: Final = 0.25
RETRY_S_MIN: Final = 0.5
RETRY_S_MAX: Final = 10.0

log = structlog.get_logger(__name__)


class MoneyWriter:
    """The queue of one store. `stored` is called with each mark, and each lease that is given up, that is on disk,
    `changed` when `trouble` changes.
    """

    def __init__(
        self, store: MoneyStore, stored: Callable[[StoreMark | StoreClosing], None], changed: Callable[[], None]
    ) -> None:
        self._store = store
        self._stored = stored
        self._changed = changed
        # By kind and lease; the kinds do not overlap, so their order does not matter but for the first voucher.
        self._marks: dict[LeaseId, StoreMark] = {}
        self._vouchers: dict[LeaseId, StoreVoucher] = {}
        self._claimed: dict[LeaseId, StoreClaimed] = {}
        self._closing: dict[LeaseId, StoreClosing] = {}
        self._first_s = 0.0
        self._news = trio.Event()
        # An older state must not come to the disk after a newer one.
        self._writing = trio.Lock()
        self._in_flight = 0
        self._proof: Equivocation | None = None
        #: What this node has earned, as far as it is on disk.
        self.totals = MoneyTotals(0, 0, 0, 0, 0)
        #: Why nothing can be written now, in one line; empty when all is well.
        self.trouble = ""

    def __len__(self) -> int:
        return len(self._marks) + len(self._vouchers) + len(self._claimed) + len(self._closing)

    @property
    def unwritten(self) -> int:
        """How much is not on disk yet, what is being written included."""
        return len(self) + self._in_flight

    def put(self, write: Write) -> None:
        """Have this written; never waits."""
        if not len(self):
            self._first_s = trio.current_time()
        if isinstance(write, StoreMark):
            self._marks[write.lease] = write
        elif isinstance(write, StoreVoucher):
            self._vouchers[write.lease] = write
        elif isinstance(write, StoreClosing):
            self._closing[write.lease] = write
        else:
            self._claimed[write.lease] = _with_word(write, self._claimed.get(write.lease))
        self._news.set()

    def keep_proof(self, proof: Equivocation) -> None:
        """Have this kept beside the rest; never waits."""
        self._proof = proof
        self._news.set()

    async def run(self) -> None:
        """Write what comes, until cancelled."""
        pause_s = RETRY_S_MIN
        while True:
            await self._wait_for_work()
            if await self._write_all():
                pause_s = RETRY_S_MIN
            else:
                await trio.sleep(pause_s)
                pause_s = min(RETRY_S_MAX, 2 * pause_s)

    async def flush(self) -> None:
        """Write what waits, once, now; also what is being written is on disk, or has failed, when this returns."""
        await self._write_all()

    async def _wait_for_work(self) -> None:
        """Until there is something urgent, or something that has waited long enough."""
        while not self._marks and not self._closing and self._proof is None:
            deadline_s = self._first_s + FLUSH_S if len(self) else float("inf")
            if deadline_s <= trio.current_time():
                return
            self._news = trio.Event()
            with trio.move_on_at(deadline_s):
                await self._news.wait()

    async def _write_all(self) -> bool:
        """Whether everything that waited is on disk now, or never will be."""
        async with self._writing:
            batch: list[Write] = [
                *self._vouchers.values(),
                *self._marks.values(),
                *self._closing.values(),
                *self._claimed.values(),
            ]
            if not batch and self._proof is None:
                return True
            self._marks, self._vouchers, self._closing, self._claimed = {}, {}, {}, {}
            self._in_flight = len(batch)
            try:
                if self._proof is not None:
                    await trio.to_thread.run_sync(self._store.keep_proof, self._proof)
                    self._proof = None
                written = await trio.to_thread.run_sync(self._apply, batch)
            except StoreError as error:
                self._put_back(batch)
                self._tell(str(error))
                return False
            finally:
                self._in_flight = 0
        self._tell("")
        for write in written:
            if isinstance(write, (StoreMark, StoreClosing)):
                self._stored(write)
        return True

    def _apply(self, batch: list[Write]) -> list[Write]:
        """Write all of it; gives what was written, which is all but what contradicts the store."""
        written = batch
        try:
            self._store.apply(batch)
        except Rejected:
            # One of them must not keep the others from the disk.
            written = [write for write in batch if self._apply_alone(write)]
        if any(isinstance(write, StoreClaimed) for write in written):
            self.totals = self._store.totals()
        return written

    def _apply_alone(self, write: Write) -> bool:
        try:
            self._store.apply([write])
        except Rejected as error:
            log.critical("money.rejected", kind=type(write).__name__, lease=write.lease.hex()[:8], reason=str(error))
            return False
        return True

    def _put_back(self, batch: list[Write]) -> None:
        """What was not written waits again, unless something newer does."""
        for write in batch:
            if isinstance(write, StoreMark):
                self._marks.setdefault(write.lease, write)
            elif isinstance(write, StoreVoucher):
                self._vouchers.setdefault(write.lease, write)
            elif isinstance(write, StoreClosing):
                self._closing.setdefault(write.lease, write)
            else:
                self._claimed[write.lease] = _with_word(self._claimed.get(write.lease, write), write)

    def _tell(self, trouble: str) -> None:
        if trouble == self.trouble:
            return
        had_trouble, self.trouble = bool(self.trouble), trouble
        if trouble:
            log.error("money.not_stored", reason=trouble, count=len(self))
        else:
            log.info("money.stored_again")
        if had_trouble != bool(trouble):
            self._changed()


def _with_word(newer: StoreClaimed, older: StoreClaimed | None) -> StoreClaimed:
    """The newer state, with the coordinator's word for the older one where it brought none."""
    if newer.acknowledgement is None and older is not None:
        return replace(newer, acknowledgement=older.acknowledgement)
    return newer
