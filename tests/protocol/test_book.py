"""The ledger in memory: it carries out what the rules decide, and keeps the chain."""

from __future__ import annotations

import msgpack

from protocol.book import Book
from protocol.ids import LeaseId
from protocol.ledger import (
    GENESIS_HEAD,
    Entry,
    ExpireLease,
    MoneyRefusal,
    Resume,
    SettlePayout,
    available,
    digest,
    next_head,
)
from tests.helpers_ledger import (
    CLIENT,
    DEPOSIT_UUSD,
    INTENT,
    LEASE,
    book_with,
    claim,
    deposit,
    open_lease,
    order_payout,
    refuses,
    says_nothing_new,
)
from tests.helpers_records import NOW_MS

HISTORY = (
    deposit(),
    open_lease(),
    claim(700),
    Resume(5),
    claim(900, is_final=1),
    order_payout(),
    SettlePayout(INTENT, "USDC-base", 998),
)


def test_a_new_ledger_is_empty() -> None:
    book = Book()
    assert (book.head, book.entries, book.downtime_ms) == (GENESIS_HEAD, [], 0)
    assert book.balance("nobody") == 0
    assert book.lease(LEASE) is None
    assert book.payout(INTENT) is None
    assert book.recorded("nothing") is None


def test_asking_for_a_balance_makes_no_account() -> None:
    book = Book()
    book.balance("nobody")
    assert "nobody" not in book.accounts


def test_two_ledgers_share_nothing() -> None:
    book_with(deposit())
    assert Book().balance(available(CLIENT.node)) == 0


def test_an_entry_is_carried_out_in_full() -> None:
    book = book_with(*HISTORY)
    assert book.balance(available(CLIENT.node)) == DEPOSIT_UUSD - 900 - 1_000
    lease, payout = book.lease(LEASE), book.payout(INTENT)
    assert lease is not None
    assert (lease.claimed_uusd, lease.is_closed) == (900, True)
    assert payout is not None
    assert payout.is_resolved
    assert book.recorded("deposit:payment-1") == digest(deposit())
    assert book.recorded(f"lease:{LEASE.hex()}") == digest(open_lease())
    assert book.downtime_ms == 5


def test_the_verdict_is_what_was_carried_out() -> None:
    verdict = Book().command(Resume(5), NOW_MS)
    assert verdict == Entry(Resume(5), (), downtime_ms=5)


def test_entries_are_numbered_from_one_and_dated() -> None:
    book = Book()
    book.command(deposit(), NOW_MS)
    book.command(open_lease(), NOW_MS + 1)
    assert [msgpack.unpackb(body)[:3] for body in book.entries] == [[1, 1, NOW_MS], [1, 2, NOW_MS + 1]]


def test_the_head_can_be_computed_from_the_entries() -> None:
    book = book_with(*HISTORY)
    head = GENESIS_HEAD
    for body in book.entries:
        head = next_head(head, body)
    assert head == book.head
    assert len(book.entries) == len(HISTORY)


def test_the_same_commands_at_the_same_times_make_the_same_ledger() -> None:
    assert book_with(*HISTORY).head == book_with(*HISTORY).head
    assert book_with(*HISTORY).head != book_with(*HISTORY, at_ms=NOW_MS + 1).head


def test_what_is_refused_or_known_leaves_no_trace() -> None:
    book = book_with(*HISTORY)
    refuses(book, open_lease(lease=LeaseId(bytes(32)), cap_uusd=DEPOSIT_UUSD), MoneyRefusal.INSUFFICIENT)
    says_nothing_new(book, claim(900))
    says_nothing_new(book, ExpireLease(LEASE), 2 * NOW_MS)
