"""What may happen to a ledger in one transaction: blocks of commands that belong together, seeded and endless.

Most are what a coordinator sees all day. Some are refused by the ledger, some say nothing new, and some are given up
after they have written.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from protocol.ids import LeaseId, NodeId
from protocol.ledger import (
    AnyCommand,
    Budget,
    Claim,
    Deposit,
    ExpireLease,
    OpenLease,
    OrderPayout,
    ReleaseHold,
    Resume,
    ReturnPayout,
    SettlePayout,
    SweepBudget,
)
from protocol.records import Signed
from tests.helpers_records import NOW_MS

STEP_MS: Final = 1000
SERVE_MS, CLAIM_MS = 5 * STEP_MS, 12 * STEP_MS
ASSET: Final = "USDC-base"
RECENT: Final = 8
FEE_BPS, RELAY_BPS = 250, 500


class GivenUp(Enum):
    """When a block is given up, so that nothing of it may stay."""

    NEVER = "never"
    WITHIN = "between two of its commands"
    AFTER = "when everything is written"
    REFUSED = "by the tables, which refuse a statement"


@dataclass(frozen=True, slots=True)
class Block:
    """Commands of one transaction, and when. `closes`: the payer of this lease wants no more of it."""

    number: int
    at_ms: int
    commands: tuple[AnyCommand, ...]
    given_up: GivenUp = GivenUp.NEVER
    closes: LeaseId | None = None


@dataclass(slots=True)
class _Open:
    """A lease that was asked for; nobody looks whether it was granted."""

    lease: LeaseId
    provider: NodeId
    cap_uusd: int
    paid_uusd: int = 0


def person(number: int) -> NodeId:
    """A key that signs nothing."""
    return NodeId(bytes(31) + bytes([number]))


CLIENTS: Final = tuple(person(number) for number in (1, 2, 3))
PROVIDERS: Final = tuple(person(number) for number in (11, 12, 13))
RELAY: Final = person(21)
# What everybody has before anything else happens.
OPENING: Final = tuple(
    Deposit(f"opening-{place}", key, ASSET, 5_000_000, 5_000_000, 0) for place, key in enumerate(CLIENTS)
)


@dataclass(slots=True)
class Happenings:
    """What happens from a step number on; two of them with the same seed agree."""

    rng: random.Random
    first: int = 1
    _leases: list[_Open] = field(default_factory=list)
    _payouts: list[bytes] = field(default_factory=list)
    _held: list[tuple[str, NodeId, int]] = field(default_factory=list)
    _days: list[int] = field(default_factory=list)
    _before: tuple[AnyCommand, ...] = ()

    def blocks(self) -> Iterator[Block]:
        """Endlessly, what comes next."""
        kinds: dict[Callable[[int], tuple[AnyCommand, ...]], int] = {
            self._deposits: 12,
            self._leases_wanted: 22,
            self._claims: 34,
            self._expiries: 6,
            self._away: 3,
            self._payouts_ordered: 8,
            self._payouts_resolved: 6,
            self._sponsored: 5,
            self._said_before: 4,
        }
        for number in itertools.count(self.first):
            commands = rng_choice(self.rng, kinds)(number)
            self._before = commands
            given_up = GivenUp.NEVER
            if self.rng.random() < 0.12:
                given_up = self.rng.choice((GivenUp.WITHIN, GivenUp.AFTER, GivenUp.REFUSED))
            closes = self.rng.choice(self._leases).lease if self._leases and self.rng.random() < 0.05 else None
            yield Block(number, NOW_MS + STEP_MS * number, commands, given_up, closes)

    def _deposits(self, number: int) -> tuple[AnyCommand, ...]:
        key, payment = self.rng.choice(CLIENTS), f"payment-{number}"
        credit_uusd = self.rng.randrange(1, 5_000_000)
        is_held = self.rng.random() < 0.2
        if is_held:
            self._held.append((payment, key, credit_uusd))
        deposit = Deposit(payment, key, ASSET, credit_uusd + 7, credit_uusd, int(is_held))
        if self._held and self.rng.random() < 0.4:
            return deposit, ReleaseHold(*self.rng.choice(self._held))
        return (deposit,)

    def _leases_wanted(self, number: int) -> tuple[AnyCommand, ...]:
        return tuple(self._lease_wanted(number, place) for place in range(self.rng.choice((1, 1, 2, 3))))

    def _lease_wanted(self, number: int, place: int) -> OpenLease:
        # Some want more than anybody has, and are refused.
        cap_uusd = self.rng.choice((50, 4_000, 4_000, 90_000, 90_000, 90_000, 500_000, 10**9))
        relay = self.rng.choice((None, RELAY))
        wanted = OpenLease(
            lease=LeaseId(number.to_bytes(31, "big") + bytes([place])),
            client=self.rng.choice(CLIENTS),
            day=self._days[-1] if self._days and self.rng.random() < 0.2 else None,
            payer=person(100 + place),
            provider=self.rng.choice(PROVIDERS),
            relay=relay,
            relay_bps=RELAY_BPS if relay is not None else 0,
            fee_bps=FEE_BPS,
            cap_uusd=cap_uusd,
            serve_until_ms=NOW_MS + STEP_MS * number + SERVE_MS,
            claim_by_ms=NOW_MS + STEP_MS * number + SERVE_MS + CLAIM_MS,
            request=Signed(self.rng.randbytes(200), self.rng.randbytes(64)),
        )
        self._leases.append(_Open(wanted.lease, wanted.provider, cap_uusd))
        return wanted

    def _claims(self, number: int) -> tuple[AnyCommand, ...]:
        if not self._leases:
            return self._leases_wanted(number)
        return tuple(self._claim(self.rng.choice(self._leases[-RECENT:])) for _ in range(self.rng.choice((1, 2, 4))))

    def _claim(self, lease: _Open) -> Claim:
        kind = self.rng.random()
        if kind > 0.15:
            lease.paid_uusd += self.rng.randrange(1, lease.cap_uusd // 2)
        provider = lease.provider if kind > 0.05 else RELAY
        voucher = Signed(self.rng.randbytes(120), self.rng.randbytes(64))
        return Claim(lease.lease, provider, lease.paid_uusd, int(self.rng.random() < 0.15), voucher)

    def _expiries(self, number: int) -> tuple[AnyCommand, ...]:
        if not self._leases:
            return self._deposits(number)
        # The older ones are due, the newer ones are not.
        return tuple(ExpireLease(self.rng.choice(self._leases[-4 * RECENT :]).lease) for _ in range(2))

    def _away(self, number: int) -> tuple[AnyCommand, ...]:
        return (Resume(self.rng.choice((1, STEP_MS, 3 * STEP_MS))),)

    def _payouts_ordered(self, number: int) -> tuple[AnyCommand, ...]:
        intent = number.to_bytes(16, "big")
        self._payouts.append(intent)
        key = self.rng.choice(CLIENTS + PROVIDERS)
        return (OrderPayout(intent, key, self.rng.choice((100, 2_000, 70_000, 10**9))),)

    def _payouts_resolved(self, number: int) -> tuple[AnyCommand, ...]:
        if not self._payouts:
            return self._payouts_ordered(number)
        intent = self.rng.choice(self._payouts[-RECENT:])
        return (self.rng.choice((SettlePayout(intent, ASSET, 99), ReturnPayout(intent))),)

    def _sponsored(self, number: int) -> tuple[AnyCommand, ...]:
        self._days.append(number)
        return (*(SweepBudget(day) for day in self._days[-2:-1]), Budget(number, 1_000_000))

    def _said_before(self, number: int) -> tuple[AnyCommand, ...]:
        return self._before


def rng_choice(
    rng: random.Random, weights: dict[Callable[[int], tuple[AnyCommand, ...]], int]
) -> Callable[[int], tuple[AnyCommand, ...]]:
    """One of them, by its weight."""
    return rng.choices(list(weights), list(weights.values()))[0]
