"""What a simulated machine has for its money: a disk, and a line to the coordinator.

The disk outlives crashes, but for what was not written yet: marks take a moment, vouchers wait for each other as on a
real node. The line is slow, and dead while the coordinator is away.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from protocol.effects import RequestLease, SendClaim, StoreClaimed, StoreClosing, StoreMark, StoreVoucher
from protocol.events import (
    ClaimFailed,
    ClosingStored,
    Event,
    LeaseDenied,
    MarkStored,
    RestorePayer,
    RestoreProvider,
    UseCoordinator,
)
from protocol.ids import LeaseId
from protocol.sim.bank import Bank
from protocol.sim.schedule import Schedule

FLUSH_S: Final = 0.25
DISK_S: Final = (0.002, 0.02)
LINE_S: Final = (0.01, 0.15)
TIMEOUT_S: Final = 5.0

MoneyEffect = RequestLease | StoreMark | StoreVoucher | SendClaim | StoreClaimed | StoreClosing
MONEY_EFFECTS: Final = (RequestLease, StoreMark, StoreVoucher, SendClaim, StoreClaimed, StoreClosing)


@dataclass(slots=True)
class Disk:
    """What is on it."""

    payers: dict[LeaseId, StoreMark] = field(default_factory=dict)
    providers: dict[LeaseId, StoreVoucher] = field(default_factory=dict)
    claimed: dict[LeaseId, StoreClaimed] = field(default_factory=dict)
    closing: set[LeaseId] = field(default_factory=set)


class Desk:
    """One machine's. `receive` feeds its peer, which may be down by then; `wall_ms` is the coordinator's clock."""

    def __init__(
        self,
        bank: Bank,
        schedule: Schedule,
        rng: random.Random,
        receive: Callable[[Event], None],
        wall_ms: Callable[[], int],
    ) -> None:
        self._bank = bank
        self._schedule = schedule
        self._rng = rng
        self._receive = receive
        self._wall_ms = wall_ms
        self._life = 0
        self._unwritten: dict[LeaseId, StoreVoucher] = {}
        self.disk = Disk()

    def start(self) -> None:
        """The machine is up: tell its peer whose money it has, and what it had before."""
        self._receive(UseCoordinator(self._bank.node))
        for mark in list(self.disk.payers.values()):
            self._receive(RestorePayer(mark.request, mark.signed, mark.mark_uusd, mark.voucher))
        for lease, kept in list(self.disk.providers.items()):
            claimed = self.disk.claimed.get(lease)
            self._receive(
                RestoreProvider(
                    kept.signed,
                    kept.voucher,
                    kept.receipt,
                    claimed.claimed_uusd if claimed is not None else 0,
                    is_closing=lease in self.disk.closing,
                    is_closed=claimed is not None and claimed.is_closed,
                )
            )

    def crash(self) -> None:
        """What was not written is lost, and what was under way is nobody's."""
        self._life += 1
        self._unwritten.clear()

    def perform(self, effect: MoneyEffect) -> None:
        """Do it, in its time."""
        match effect:
            case RequestLease() | SendClaim():
                # There and back; what arrives while the coordinator is away is lost.
                there_s = self._schedule.now_s + self._rng.uniform(*LINE_S)
                self._schedule.at(there_s, partial(self._at_bank, self._life, effect))
            case StoreMark():
                self._soon(self._rng.uniform(*DISK_S), partial(self._mark, effect))
            case StoreVoucher():
                if not self._unwritten:
                    self._soon(FLUSH_S, self._flush)
                self._unwritten[effect.lease] = effect
            case StoreClaimed():
                self.disk.claimed[effect.lease] = effect
            case StoreClosing():
                self._soon(self._rng.uniform(*DISK_S), partial(self._close, effect))

    def _soon(self, delay_s: float, action: Callable[[], None]) -> None:
        self._schedule.at(self._schedule.now_s + delay_s, partial(self._if_alive, self._life, action))

    def _if_alive(self, life: int, action: Callable[[], None]) -> None:
        if life == self._life:
            action()

    def _mark(self, effect: StoreMark) -> None:
        self.disk.payers[effect.lease] = effect
        self._receive(MarkStored(effect.lease, effect.mark_uusd))

    def _close(self, effect: StoreClosing) -> None:
        # It takes along the vouchers that wait.
        self._flush()
        self.disk.closing.add(effect.lease)
        self._receive(ClosingStored(effect.lease, effect.paid_uusd))

    def _flush(self) -> None:
        self.disk.providers.update(self._unwritten)
        self._unwritten.clear()

    def _at_bank(self, life: int, effect: RequestLease | SendClaim) -> None:
        """The coordinator acts, whether or not the asker lives to hear of it."""
        if self._bank.is_away:
            lost = (
                LeaseDenied(effect.request, "the coordinator does not answer", is_final=False)
                if isinstance(effect, RequestLease)
                else ClaimFailed(effect.lease, "the coordinator does not answer", is_final=False)
            )
            self._schedule.at(
                self._schedule.now_s + TIMEOUT_S, partial(self._if_alive, life, partial(self._receive, lost))
            )
            return
        now_ms = self._wall_ms()
        answer = (
            self._bank.open_lease(effect, now_ms)
            if isinstance(effect, RequestLease)
            else self._bank.claim(effect, now_ms)
        )
        back_s = self._schedule.now_s + self._rng.uniform(*LINE_S)
        self._schedule.at(back_s, partial(self._if_alive, life, partial(self._receive, answer)))
