"""The ledger among dishonest people: after every step all invariants hold, each seen by a checker of its own."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from protocol import constants as c
from protocol.book import Book
from protocol.ids import LeaseId
from protocol.ledger import AMOUNT_MAX, FEE, Entry, available
from tests.helpers_ledger import CLIENT, PROVIDER, RELAY, carried_out, claim, deposit, open_lease
from tests.helpers_ledger_checkers import NAMES
from tests.helpers_ledger_signed import SignedWorld, signed_histories
from tests.helpers_ledger_world import DAY, NOW_MS, histories, name_of

HISTORY_STEPS = 160
NIGHTLY_STEPS = 16_000_000
NIGHTLY_SEEDS = 32

INDICES = st.integers(0, 63)
SUMS = st.one_of(st.integers(0, 400), st.integers(0, 2_000_000), st.sampled_from([AMOUNT_MAX, AMOUNT_MAX - 1]))
SIGNED_SUMS = st.one_of(st.integers(0, 3_000), st.sampled_from([AMOUNT_MAX + 1, c.INTEGER_MAX]))
DAYS = st.sampled_from([DAY, DAY + 1])


class LedgerMachine(RuleBasedStateMachine):
    """Everybody does anything, with real signatures; the world lets its checkers look after each step."""

    @initialize(fee_bps=st.sampled_from([0, 1, 100, 3_000, 8_000]))
    def start(self, fee_bps: int) -> None:
        self.world = SignedWorld(fee_bps=fee_bps)
        for client in range(2):
            self.world.deposit(client, 5_000)

    @rule(client=INDICES, credit_uusd=SUMS, is_held=st.booleans())
    def deposit(self, client: int, credit_uusd: int, is_held: bool) -> None:  # hypothesis draws it
        self.world.deposit(client, credit_uusd, is_held=is_held)

    @rule(index=INDICES, more_uusd=st.integers(0, 1))
    def report_a_payment_again(self, index: int, more_uusd: int) -> None:
        self.world.report_again(index, more_uusd)

    @rule(index=INDICES, client=st.integers(-1, 2), more_uusd=st.integers(0, 1))
    def release(self, index: int, client: int, more_uusd: int) -> None:
        self.world.release(index, client, more_uusd)

    @rule(
        people=st.tuples(INDICES, INDICES, st.sampled_from([None, 0, 1])),
        relay_bps=st.integers(0, 2_000),
        cap_uusd=st.one_of(st.integers(1, 3_000), st.integers(1, c.LEASE_CAP_UUSD_MAX)),
        serve_s=st.integers(1, 90),
        day=st.one_of(st.none(), DAYS),
    )
    def ask(
        self, people: tuple[int, int, int | None], relay_bps: int, cap_uusd: int, serve_s: int, day: int | None
    ) -> None:
        self.world.ask(*people, relay_bps, cap_uusd, serve_s, day)

    @rule(index=INDICES, paid_uusd=SIGNED_SUMS, is_final=st.booleans())
    def claim(self, index: int, paid_uusd: int, is_final: bool) -> None:  # hypothesis draws it
        self.world.claim(index, paid_uusd, is_final=is_final)

    @rule(index=INDICES, thief=INDICES, paid_uusd=SIGNED_SUMS, is_final=st.booleans())
    def steal(self, index: int, thief: int, paid_uusd: int, is_final: bool) -> None:  # hypothesis draws it
        self.world.steal(index, thief, paid_uusd, is_final=is_final)

    @rule(index=INDICES, kind=INDICES)
    def forge(self, index: int, kind: int) -> None:
        self.world.forge_claim(index, kind)
        self.world.forge_request(index, kind)

    @rule(index=INDICES)
    def repeat(self, index: int) -> None:
        self.world.repeat(index)

    @rule(index=INDICES)
    def expire(self, index: int) -> None:
        self.world.expire(index)

    @rule(ms=st.sampled_from([1, 30_000, 60_000, 120_000]))
    def wait(self, ms: int) -> None:
        self.world.wait(ms)

    @rule(ms=st.sampled_from([1, 30_000, 200_000]))
    def away(self, ms: int) -> None:
        self.world.away(ms)

    @rule(owner=INDICES, amount_uusd=SUMS)
    def order_payout(self, owner: int, amount_uusd: int) -> None:
        self.world.order_payout(owner, amount_uusd)

    @rule(index=INDICES, units=SUMS)
    def settle(self, index: int, units: int) -> None:
        self.world.settle(index, units)

    @rule(index=INDICES)
    def give_back(self, index: int) -> None:
        self.world.give_back(index)

    @rule(day=DAYS, amount_uusd=st.integers(0, 10_000), is_over=st.booleans())
    def public_chat(self, day: int, amount_uusd: int, is_over: bool) -> None:  # hypothesis draws it
        if is_over:
            self.world.sweep(day)
        else:
            self.world.budget(day, amount_uusd)

    @rule(index=INDICES, value=INDICES)
    def nonsense(self, index: int, value: int) -> None:
        self.world.nonsense(index, value)


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(settings.default, stateful_step_count=60)
TestLedger.pytestmark = [pytest.mark.slow]


@pytest.mark.slow
def test_no_history_breaks_an_invariant() -> None:
    assert histories(seed=1, count=250, steps=HISTORY_STEPS) >= 250 * HISTORY_STEPS


@pytest.mark.slow
def test_no_history_with_real_signatures_breaks_an_invariant() -> None:
    assert signed_histories(seed=1, count=10, steps=HISTORY_STEPS) >= 10 * HISTORY_STEPS


def test_every_invariant_of_the_ledger_has_its_checker() -> None:
    assert {"I1", "I2", "I3", "I4", "I7", "I8", "I9", "I10", "I11", "I12"} <= set(NAMES)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1_000, 1_000 + NIGHTLY_SEEDS))
def test_no_history_among_a_hundred_thousand_breaks_an_invariant(seed: int) -> None:
    steps = NIGHTLY_STEPS // NIGHTLY_SEEDS
    assert histories(seed, steps // HISTORY_STEPS, HISTORY_STEPS) >= steps


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(10))
def test_no_long_history_with_real_signatures_breaks_an_invariant(seed: int) -> None:
    assert signed_histories(seed, 10, 1_000) >= 10_000


# ---------------------------------------------------------------- one dollar, fifty providers

PROVIDERS = [name_of("racing provider", number) for number in range(50)]


def race(seed: int) -> int:
    """One dollar is locked at as many of fifty providers as will take it, in any order; what they can claim in all."""
    dice = random.Random(f"race {seed}")
    book = Book()
    carried_out(book.command(deposit(credit_uusd=1_000_000), NOW_MS))
    share_uusd = dice.choice((1_000_000, 400_000, 20_000, 20_001))
    is_cut = dice.random() < 0.5
    leases = []
    for number, provider in enumerate(PROVIDERS):
        command = open_lease(
            lease=LeaseId(name_of("raced", seed, number)),
            provider=provider,
            cap_uusd=dice.choice((share_uusd, dice.randrange(1, 1_000_000))),
            relay=RELAY.node if is_cut else None,
            relay_bps=dice.randrange(2_000) if is_cut else 0,
            fee_bps=dice.choice((0, 100)),
        )
        leases += [command, command] if dice.random() < 0.3 else [command]
    dice.shuffle(leases)
    # Everybody holds a voucher for more than there is, and claims it at once or when all leases are out.
    claims = []
    for command in leases:
        book.command(command, NOW_MS)
        voucher = claim(c.INTEGER_MAX, lease=command.lease, provider=command.provider)
        if dice.random() < 0.5:
            claims.append(voucher)
        else:
            book.command(voucher, NOW_MS)
    dice.shuffle(claims)
    for voucher in claims:
        book.command(voucher, NOW_MS)
    claimed_uusd = sum(book.balance(available(key)) for key in (*PROVIDERS, RELAY.node)) + book.balance(FEE)
    assert claimed_uusd == sum(lease.claimed_uusd for lease in book.leases.values())
    assert book.balance(available(CLIENT.node)) >= 0
    return claimed_uusd


def test_one_dollar_raced_at_fifty_providers_is_one_dollar() -> None:
    sums = [race(seed) for seed in range(40)]
    assert max(sums) <= 1_000_000
    assert max(sums) > 900_000, "some of them must have taken nearly everything"


@pytest.mark.nightly
def test_one_dollar_raced_at_fifty_providers_a_thousand_times_is_one_dollar() -> None:
    assert all(race(seed) <= 1_000_000 for seed in range(1_000))


def test_a_lease_that_lost_the_race_is_worth_nothing() -> None:
    book = Book()
    book.command(deposit(credit_uusd=10), NOW_MS)
    assert isinstance(book.command(open_lease(cap_uusd=10), NOW_MS), Entry)
    lost = LeaseId(name_of("lost"))
    book.command(open_lease(lease=lost, cap_uusd=10), NOW_MS)
    book.command(claim(10, lease=lost), NOW_MS)
    assert book.balance(available(PROVIDER.node)) == 0
