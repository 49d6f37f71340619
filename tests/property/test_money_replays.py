"""Every signed message about money, again: as it was, elsewhere, as another kind, on another lease, by somebody else.

None of it changes anything. Bar M11 is a million of them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from protocol.claims import claim_command, open_claim, open_lease_request
from protocol.effects import RequestLease, SendClaim
from protocol.envelope import SigningKey, open_record, sign_record
from protocol.errors import RemoteProtocolError
from protocol.events import ClaimAnswered, ClaimFailed, LeaseDenied, LeaseGranted
from protocol.ledger import Lease, Refused
from protocol.money_records import (
    ClaimAckRecord,
    ClaimRecord,
    CloseRecord,
    ComplaintRecord,
    LeaseRecord,
    LeaseRequestRecord,
    LedgerHeadRecord,
    VoucherRecord,
)
from protocol.purse import LEASE_UUSD, Purse
from protocol.records import Record, Signed
from protocol.sim.bank import Bank
from tests.helpers_machines import now
from tests.helpers_records import NOW_MS, order, signing_key
from tests.protocol.test_leases import PRICED

KINDS: tuple[type[Record], ...] = (
    LeaseRequestRecord,
    LeaseRecord,
    VoucherRecord,
    ClaimRecord,
    ClaimAckRecord,
    CloseRecord,
    ComplaintRecord,
    LedgerHeadRecord,
)
CLIENTS, PROVIDERS = 5, 4


@dataclass
class Recorded:
    """What somebody in the middle has kept of a busy day."""

    bank: Bank
    requests: list[RequestLease] = field(default_factory=list)
    claims: list[SendClaim] = field(default_factory=list)
    vouchers: list[Signed] = field(default_factory=list)
    others: list[tuple[type[Record], Signed]] = field(default_factory=list)
    providers: list[SigningKey] = field(default_factory=list)


def busy_day(seed: int) -> Recorded:
    """Leases, vouchers and claims; every third lease is closed by its provider."""
    rng = random.Random(seed)
    bank = Bank(signing_key("bank"))
    day = Recorded(bank, providers=[signing_key(f"provider {number}") for number in range(PROVIDERS)])
    for number in range(CLIENTS):
        client = signing_key(f"client {number}")
        bank.deposit(client.node, 1_000_000, NOW_MS)
        purse = Purse(client, random.Random(number))
        purse.coordinator = bank.node
        for at, provider in enumerate(day.providers):
            (effect,) = purse.request(order().job, provider.node, PRICED, 1_000, now())
            assert isinstance(effect, RequestLease)
            answer = bank.open_lease(effect, NOW_MS)
            assert isinstance(answer, LeaseGranted)
            purse.on_granted(answer, now())
            side = purse.sides()[-1]
            side.mark_uusd = LEASE_UUSD
            day.requests.append(effect)
            day.others.append((LeaseRecord, answer.signed))
            totals = sorted(rng.sample(range(1, LEASE_UUSD), 4))
            for total in totals:
                voucher = side.pay(order(asker=side.signer.node), total, 1, 1, bytes(32))
                assert voucher is not None
                day.vouchers.append(voucher)
                is_final = int((number + at) % 3 == 0 and total == totals[-1])
                claim = claim_of(provider, side.record, voucher, is_final)
                day.claims.append(SendClaim(side.record.lease, bank.node, claim))
                answered = bank.claim(day.claims[-1], NOW_MS)
                assert isinstance(answered, ClaimAnswered)
                day.others.append((ClaimAckRecord, answered.acknowledgement))
    return day


def claim_of(provider: SigningKey, lease: LeaseRecord | Lease, voucher: Signed, is_final: int = 0) -> Signed:
    return sign_record(ClaimRecord(1, provider.node, lease.lease, voucher, None, is_final, NOW_MS, ()), provider)


class Thief:
    """Tries one thing after another with what was recorded."""

    def __init__(self, day: Recorded, seed: int) -> None:
        self.day = day
        self.rng = random.Random(seed)
        self.elsewhere = Bank(signing_key("another bank"))
        self.tried: Counter[str] = Counter()
        self.ways: tuple[Callable[[], None], ...] = (
            *(self.again, self.after_a_restart, self.at_another_coordinator, self.as_another_kind),
            *(self.on_another_lease, self.by_another_provider, self.damaged),
        )

    def run(self, count: int) -> None:
        for _ in range(count):
            way = self.rng.choice(self.ways)
            way()
            self.tried[way.__name__] += 1

    def again(self) -> None:
        """The same message once more."""
        self._ask(self.day.bank)

    def after_a_restart(self) -> None:
        """The same at a coordinator that was started anew from what it had on disk."""
        if self.tried["after_a_restart"] % 1_000 == 0:
            self.day.bank = self.day.bank.copy()
        self._ask(self.day.bank)

    def _ask(self, bank: Bank) -> None:
        if self.rng.random() < 0.3:
            request = self.rng.choice(self.day.requests)
            answer = bank.open_lease(request, NOW_MS)
            assert isinstance(answer, LeaseGranted)
            assert (LeaseRecord, answer.signed) in self.day.others
        else:
            assert isinstance(bank.claim(self.rng.choice(self.day.claims), NOW_MS), ClaimAnswered)

    def at_another_coordinator(self) -> None:
        """The same somewhere else."""
        if self.rng.random() < 0.5:
            assert isinstance(self.elsewhere.open_lease(self.rng.choice(self.day.requests), NOW_MS), LeaseDenied)
        else:
            assert isinstance(self.elsewhere.claim(self.rng.choice(self.day.claims), NOW_MS), ClaimFailed)

    def as_another_kind(self) -> None:
        """A signature of one kind under the name of another."""
        kind, signed = self.rng.choice(
            [
                (LeaseRequestRecord, self.rng.choice(self.day.requests).signed),
                (ClaimRecord, self.rng.choice(self.day.claims).claim),
                (VoucherRecord, self.rng.choice(self.day.vouchers)),
                self.rng.choice(self.day.others),
            ]
        )
        other = self.rng.choice([each for each in KINDS if each is not kind])
        with pytest.raises(RemoteProtocolError):
            open_record(signed, other)

    def on_another_lease(self) -> None:
        """A voucher of one lease for another one of the same provider."""
        claim = open_claim(self.rng.choice(self.day.claims).claim)
        lease = self.rng.choice(list(self.day.bank.book.leases.values()))
        if lease.lease == claim.lease or claim.voucher is None:
            return
        provider = next(key for key in self.day.providers if key.node == lease.provider)
        forged = open_claim(claim_of(provider, lease, claim.voucher))
        with pytest.raises(RemoteProtocolError):
            claim_command(forged, lease)

    def by_another_provider(self) -> None:
        """A voucher in the hands of somebody who is not named."""
        claim = open_claim(self.rng.choice(self.day.claims).claim)
        lease = self.day.bank.book.leases[claim.lease]
        thief = self.rng.choice([key for key in self.day.providers if key.node != claim.provider])
        assert claim.voucher is not None
        stolen = claim_command(open_claim(claim_of(thief, lease, claim.voucher, 1)), lease)
        assert isinstance(self.day.bank.command(stolen, NOW_MS), Refused)

    def damaged(self) -> None:
        """One bit of it is another one."""
        signed = self.rng.choice([self.rng.choice(self.day.requests).signed, self.rng.choice(self.day.claims).claim])
        body = bytearray(signed.body)
        body[self.rng.randrange(len(body))] ^= 1 << self.rng.randrange(8)
        broken = Signed(bytes(body), signed.signature)
        for take in (
            open_claim,
            lambda each: open_lease_request(each, self.day.bank.node, self.day.bank.terms, NOW_MS),
        ):
            with pytest.raises(RemoteProtocolError):
                take(broken)


def replay(count: int, seed: int) -> Counter[str]:
    day = busy_day(seed)
    before = (day.bank.book.head, dict(day.bank.book.accounts))
    thief = Thief(day, seed)
    thief.run(count)
    assert (day.bank.book.head, dict(day.bank.book.accounts)) == before
    assert thief.elsewhere.book.entries == []
    return thief.tried


def test_nothing_that_was_signed_works_twice_or_elsewhere() -> None:
    tried = replay(2_000, 1)
    assert len(tried) == 7


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(10))
def test_a_million_replays(seed: int) -> None:
    replay(100_000, seed)
