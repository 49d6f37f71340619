"""The market of two peers with every judge of money looking on, and either side a cheat where a test wants one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from protocol.effects import Effect, JobDone, StoreClaimed, StoreClosing, StoreMark, StoreVoucher
from protocol.events import DEADLINE, EngineStarted, Event, RestorePayer, RestoreProvider
from protocol.ids import LeaseId
from protocol.ledger import Entry, available
from protocol.sim.checkers import Checker, Crashed, Ending, Seen
from protocol.sim.claim_checkers import CLAIMED_S, lease_checkers
from protocol.sim.lease_checkers import job_checkers
from protocol.sim.money_checkers import LedgerChanged, money_checkers
from tests.helpers_machines import now
from tests.helpers_paid import PROMPT_TOKENS, Market, Side

#: What says something of one side alone, and so nothing where that is the cheat.
OF_ASKERS = frozenset({"I6", "Stored", "Delivered", "Spent", "PaidInFull"})
OF_PROVIDERS = frozenset({"I5", "Prepaid", "CoSigned", "OneAtATime", "Redeemable", "AllClaimed", "Closed"})
_TEXT = re.compile(r"[0-9.]+ s: (\w+): (?:(I\d+): )?")


def all_judges() -> list[Checker]:
    """One of each that knows something of money."""
    return [*money_checkers(), *job_checkers(), *lease_checkers()]


def name_of(violation: str) -> str:
    """The invariant that does not hold, by its number; or the judge who says so, where it has none."""
    match = _TEXT.match(violation)
    assert match is not None, violation
    return match[2] or match[1]


class WatchedMarket(Market):
    """Test double. `tampers` is given each effect of a side and says what is done instead."""

    def __init__(self, *, deposit_uusd: int = 10_000_000, **options: Any) -> None:
        self.judges = all_judges()
        #: What is not asked of whoever cheats.
        self.unjudged: frozenset[str] = frozenset()
        self._lives = {"asker": 0, "provider": 0}
        self.prompt_tokens = PROMPT_TOKENS
        self.tampers: Callable[[Side, Effect], Effect] = lambda side, effect: effect
        super().__init__(deposit_uusd=0, **options)
        self.bank.on_entry = self._on_entry
        self.bank.deposit(self.asker.node, deposit_uusd, self.wall_ms)

    def feed(self, side: Side, event: Event) -> None:
        if isinstance(event, EngineStarted):
            event = EngineStarted(event.run, self.prompt_tokens)
        self._show(side, event)
        for effect in side.peer.handle(event, now(self.at_s)):
            done = self.tampers(side, effect)
            self._show(side, done)
            side.effects.append(done)
            self._perform(side, done)

    def _show(self, side: Side, item: object) -> None:
        seen = Seen(self.at_s, 0 if side.name == "asker" else 1, side.node, self._lives[side.name], item)
        for judge in self.judges:
            if callback := judge.interests().get(type(item)):
                callback(seen)

    def _on_entry(self, entry: Entry, at_ms: int) -> None:
        seen = Seen(self.at_s, -1, self.bank.node, 0, LedgerChanged(entry, at_ms))
        for judge in self.judges:
            if callback := judge.interests().get(LedgerChanged):
                callback(seen)

    def _restart(self, side: Side, other: Side) -> None:
        self._show(side, Crashed())
        self._lives[side.name] += 1
        super()._restart(side, other)

    def crash_asker(self) -> None:
        """It starts again with what its disk has."""
        marks: dict[LeaseId, StoreMark] = {effect.lease: effect for effect in self.asker.all(StoreMark)}
        self.restart_asker()
        for mark in marks.values():
            self.feed(self.asker, RestorePayer(mark.request, mark.signed, mark.mark_uusd, mark.voucher))
        self.step()

    def crash_provider(self, *, forgets: int = 0) -> None:
        """It starts again with what its disk has; the last so many vouchers were not written yet."""
        stored = self.provider.all(StoreVoucher)
        kept: dict[LeaseId, StoreVoucher] = {effect.lease: effect for effect in stored[: len(stored) - forgets]}
        claimed: dict[LeaseId, StoreClaimed] = {effect.lease: effect for effect in self.provider.all(StoreClaimed)}
        closing = {effect.lease for effect in self.provider.all(StoreClosing)}
        self.restart_provider()
        for lease, effect in kept.items():
            done = claimed.get(lease)
            claimed_uusd = done.claimed_uusd if done is not None else 0
            is_closed = done is not None and done.is_closed
            restored = RestoreProvider(
                effect.signed,
                effect.voucher,
                effect.receipt,
                claimed_uusd,
                is_closing=lease in closing,
                is_closed=is_closed,
            )
            self.feed(self.provider, restored)
        self.step()

    def violations(self) -> list[str]:
        """What the judges have found when everything had the time to come to rest."""
        self.wait(CLAIMED_S + 300)
        self._show(self.asker, DEADLINE)
        ending = Ending([], 0, 0, bank=self.bank, wall_ms=self.wall_ms)
        for judge in self.judges:
            judge.finish(ending)
        found = [violation for judge in self.judges for violation in judge.violations]
        return [each for each in found if name_of(each) not in self.unjudged]

    def unsettled(self) -> list[str]:
        """Between honest people whose messages arrive, what was delivered is credited in the end, to the unit."""
        owed_uusd = sum(done.receipt.owed_uusd for done in self.asker.all(JobDone))
        credited_uusd = self.bank.book.balance(available(self.provider.node))
        text = f"{self.at_s:.3f} s: Settled: {credited_uusd} of {owed_uusd} micro-USD arrived"
        return [text] if credited_uusd != owed_uusd else []
