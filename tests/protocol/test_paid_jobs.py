"""A paid job from lease to claim: two real peers, a real ledger."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.codec import decode_record
from protocol.effects import (
    ContinueEngine,
    JobDone,
    JobFailed,
    RequestLease,
    SendClaim,
    StoreClaimed,
    StoreClosing,
    StoreMark,
    StoreVoucher,
)
from protocol.errors import Refusal
from protocol.events import (
    ClaimNow,
    CloseLease,
    EngineFailed,
    PeerDisconnected,
    RestorePayer,
    RestoreProvider,
    SetOffer,
    StopAsking,
)
from protocol.jobs import cost_bound_uusd, prompt_tokens_bound
from protocol.ledger import available
from protocol.messages import Chunk, JobOpen, JobReject, Voucher
from protocol.money_records import LeaseRequestRecord, VoucherRecord
from protocol.purse import LEASE_SERVE_S, LEASE_UUSD
from protocol.records import JobOpenRecord
from protocol.routing import Exclusion
from tests.helpers_machines import chat, offer
from tests.helpers_paid import PRICED, PROMPT_TOKENS, Market

COST_UUSD = PROMPT_TOKENS + 2 * 40


def test_a_paid_job_is_answered_vouched_for_and_claimed() -> None:
    market = Market()
    market.ask()
    assert market.done.receipt.owed_uusd == COST_UUSD
    assert market.done.served[-1].paid_uusd == COST_UUSD
    assert market.text.split() == [f"word{number}" for number in range(1, 41)]
    assert market.bank.book.balance(available(market.provider.node)) == 0
    market.wait(6)
    assert market.bank.book.balance(available(market.provider.node)) == COST_UUSD
    assert len(market.provider.all(SendClaim)) == 1
    assert market.notes() == []


def test_the_provider_sees_the_payer_and_not_the_client() -> None:
    market = Market()
    market.ask()
    (opened,) = market.asker.messages(JobOpen)
    order = decode_record(opened.order.body, JobOpenRecord)
    assert order.asker != market.asker.node
    assert market.asker.node not in opened.order.body + opened.lease.body


def test_the_prompt_is_read_only_when_it_is_paid() -> None:
    market = Market()
    market.stores_at_once = False
    market.ask()
    assert market.provider.all(ContinueEngine) == []
    market.feed(market.asker, market.held_marks.pop())
    market.step()
    assert len(market.provider.all(ContinueEngine)) == 1
    assert market.done.receipt.owed_uusd == COST_UUSD


def test_nothing_is_signed_before_the_mark_is_on_disk() -> None:
    market = Market()
    market.stores_at_once = False
    market.ask()
    market.wait(5)
    assert market.asker.messages(Voucher) == []
    granted, mark = market.asker.all(StoreMark)
    assert granted.mark_uusd == 0, "a lease is kept from the moment that we have it"
    assert mark.mark_uusd >= COST_UUSD


def test_who_does_not_pay_for_the_prompt_gets_no_answer() -> None:
    market = Market()
    market.stores_at_once = False
    market.ask()
    market.wait(c.UNPAID_DEADLINE_S + 0.1)
    (failed,) = market.asker.all(JobFailed)
    assert failed.code is Refusal.UNPAID
    assert market.provider.all(ContinueEngine) == []
    assert market.provider.messages(Chunk) == []


def test_what_is_sent_ahead_of_payment_is_one_window() -> None:
    market = Market()
    market.loses = Voucher
    market.loses_after = 1
    market.ask()
    assert market.provider.messages(Chunk)[-1].output_tokens == c.WINDOW_TOKENS_MIN
    market.wait(c.UNPAID_DEADLINE_S + 1)
    (failed,) = market.asker.all(JobFailed)
    assert failed.code is Refusal.UNPAID
    market.wait(6)
    assert market.bank.book.balance(available(market.provider.node)) == PROMPT_TOKENS


def test_an_expensive_model_is_sent_ahead_in_small_pieces() -> None:
    market = Market(priced=replace(PRICED, price_out_uusd=300_000_000), deposit_uusd=100_000_000)
    market.loses = Voucher
    market.loses_after = 1
    market.ask(spend_uusd=90_000_000)
    # 300 micro-USD a token: a thousand are three of them.
    assert market.provider.messages(Chunk)[-1].output_tokens == 3


def test_vouchers_come_each_half_window_and_state_what_arrived() -> None:
    market = Market()
    market.ask()
    chunks = {chunk.number: chunk for chunk in market.provider.messages(Chunk)}
    vouchers = [decode_record(message.voucher.body, VoucherRecord) for message in market.asker.messages(Voucher)]
    assert [voucher.sequence for voucher in vouchers] == list(range(1, len(vouchers) + 1))
    assert vouchers[0].paid_uusd == PROMPT_TOKENS
    for before, after in pairwise(vouchers):
        assert before.paid_uusd <= after.paid_uusd
    for voucher in vouchers[1:]:
        assert voucher.output_tokens == chunks[voucher.chunks].output_tokens
        assert voucher.paid_uusd == chunks[voucher.chunks].owed_uusd
    receipt = market.done.receipt
    last = vouchers[-1]
    assert (last.chunks, last.running_hash, last.output_tokens) == (
        *(receipt.chunks, receipt.running_hash),
        receipt.output_tokens,
    )


def test_a_second_job_at_the_same_provider_needs_no_new_lease() -> None:
    market = Market()
    market.ask(1)
    market.bank.is_away = True
    market.ask(2)
    assert len(market.asker.all(RequestLease)) == 1
    done = market.asker.all(JobDone)
    assert [each.receipt.paid_before_uusd for each in done] == [0, COST_UUSD]
    market.bank.is_away = False
    market.wait(10)
    assert market.bank.book.balance(available(market.provider.node)) == 2 * COST_UUSD


def test_a_cancelled_job_costs_what_had_come() -> None:
    market = Market()
    market.pauses_after = 12
    ask = market.ask()
    arrived = market.provider.messages(Chunk)[-1].output_tokens
    market.feed(market.asker, StopAsking(ask.job))
    market.step()
    market.wait(10)
    assert 0 < arrived <= 12
    assert market.bank.book.balance(available(market.provider.node)) == PROMPT_TOKENS + 2 * arrived


def test_r11_a_job_that_fails_in_the_middle_is_paid_at_the_last_voucher() -> None:
    market = Market()
    market.pauses_after = 20
    market.ask()
    (run,) = market.runs
    market.feed(market.provider, EngineFailed(run, Refusal.ENGINE_FAILED, "it broke"))
    market.step()
    market.wait(10)
    arrived = market.provider.messages(Chunk)[-1].output_tokens
    assert market.bank.book.balance(available(market.provider.node)) == PROMPT_TOKENS + 2 * arrived


def test_r2_without_a_voucher_there_is_no_money() -> None:
    market = Market()
    market.loses = Voucher
    market.ask()
    market.wait(60)
    market.feed(market.provider, ClaimNow())
    market.step()
    assert market.bank.book.balance(available(market.provider.node)) == 0


def test_a_window_that_is_not_paid_is_to_be_had_once_for_each_lease() -> None:
    """Whoever breaks off each job in its window, and orders the next one: another lease each time, another lock."""
    market = Market()
    for number in (1, 2, 3):
        market.loses, market.loses_after = Voucher, 1
        market.ask(number)
        assert market.provider.messages(Chunk)[-1].output_tokens == 8
        market.feed(market.asker, PeerDisconnected(market.provider.node))
        market.feed(market.provider, PeerDisconnected(market.asker.node))
        market.loses = None
        market.meet()
        market.wait(20)
    owing = [side for side in market.provider.peer.till.sides() if side.is_in_debt]
    assert [side.owed_uusd - side.paid_uusd for side in owing] == [16, 16, 16]
    refused = [decode_record(each.order.body, JobOpenRecord).lease for each in market.asker.messages(JobOpen)]
    assert len(set(refused)) == len(market.asker.all(RequestLease)) >= 3


def test_an_answer_longer_than_its_slot_is_paid_to_the_end() -> None:
    """The engine is done at once; what it wrote goes out as vouchers come, and the slot is free meanwhile."""
    market = Market()
    market.delays = Voucher
    market.ask()
    assert market.provider.peer.statistics().jobs_running == 1
    assert market.provider.peer.statistics().jobs_waiting == 0
    assert market.asker.all(JobDone) == []
    while market.delayed:
        market.release()
    assert market.done.receipt.output_tokens == 40
    assert market.provider.peer.statistics().jobs_running == 0


def test_several_tokens_that_come_at_once_are_counted_before_their_text() -> None:
    market = Market()
    market.words, market.tokens_per_word = 3, 20
    market.ask()
    assert market.done.receipt.output_tokens == 60
    assert market.text.split() == ["word1", "word2", "word3"]
    owed = [0, *(chunk.owed_uusd - PROMPT_TOKENS for chunk in market.provider.messages(Chunk))]
    assert max(after - before for before, after in pairwise(owed)) <= 2 * c.WINDOW_TOKENS_MIN


def test_an_engine_that_hands_over_everything_at_once_is_paid_for_what_it_has_sent() -> None:
    market = Market()
    market.words, market.tokens_per_word = 1, 900
    text = "".join(f" word{number}" for number in range(500))
    market.word = lambda _: text
    market.ask(output_tokens_max=1_000)
    assert market.done.receipt.output_tokens == 900
    assert market.text == text
    assert market.notes() == []


def test_too_little_money_is_said_and_nothing_is_ordered() -> None:
    market = Market(deposit_uusd=5)
    market.ask()
    (failed,) = market.asker.all(JobFailed)
    assert failed.code is Refusal.LEASE
    assert "available" in failed.text
    assert market.asker.messages(JobOpen) == []


def test_a_lease_of_just_enough_is_asked_for_where_there_is_no_more() -> None:
    market = Market(deposit_uusd=2_000)
    market.ask()
    caps = [decode_record(effect.signed.body, LeaseRequestRecord).cap_uusd for effect in market.asker.all(RequestLease)]
    assert caps[0] > 2_000 > caps[1]
    assert market.done.receipt.owed_uusd == COST_UUSD


def test_what_could_cost_more_than_may_be_spent_is_not_ordered() -> None:
    market = Market()
    market.ask(spend_uusd=100)
    market.wait(c.SEARCH_DEADLINE_S)
    (failed,) = market.asker.all(JobFailed)
    assert failed.code is Refusal.NO_PROVIDER
    assert market.asker.all(RequestLease) == []


def test_a_second_attempt_costs_no_more_than_the_first_has_left() -> None:
    """Under a lease that is at hand, too: the provider breaks, and nobody else is there."""
    market = Market()
    market.pauses_after = 0
    most_uusd = cost_bound_uusd(PRICED, prompt_tokens_bound(chat().request), 100)
    market.ask(1, spend_uusd=most_uusd + PROMPT_TOKENS - 1)
    (run,) = market.runs
    market.feed(market.provider, EngineFailed(run, Refusal.ENGINE_FAILED, "it broke"))
    market.step()
    market.wait(2 * c.SEARCH_DEADLINE_S)
    (failed,) = market.asker.all(JobFailed)
    assert failed.code is Refusal.LEASE
    assert re.match(r"the answer may cost up to \$0\.\d+ and \$0\.\d+ may be spent: ", failed.text)
    assert len(market.asker.messages(JobOpen)) == 1


def test_whoever_is_known_and_too_dear_is_told_of() -> None:
    market = Market()
    market.ask(spend_uusd=1)
    market.wait(2 * c.SEARCH_DEADLINE_S)
    (failed,) = market.asker.all(JobFailed)
    assert failed.code is Refusal.NO_PROVIDER
    assert "at a cost of at most $0.000001 for chat jobs is known or turned up; of 1 known: the answer" in failed.text
    assert failed.text.endswith(Exclusion.TOO_DEAR.words)


def test_who_pays_nothing_asks_for_nothing_that_costs() -> None:
    market = Market()
    market.ask(spend_uusd=0)
    (opened,) = market.asker.messages(JobOpen)
    assert opened.lease is None
    assert market.done.receipt.owed_uusd == 0


def test_a_provider_that_claims_a_higher_total_before_is_left() -> None:
    market = Market()
    market.alters = lambda record: replace(record, paid_before_uusd=1)
    market.ask()
    (failed,) = market.asker.all(JobFailed)
    assert failed.code is Refusal.PROTOCOL
    assert market.asker.messages(Voucher) == []


@pytest.mark.parametrize("changes", [{"prefill_uusd": 11}, {"prompt_tokens": 2_000, "prefill_uusd": 2_000}])
def test_a_prompt_that_costs_more_than_ordered_is_not_paid(changes: dict[str, int]) -> None:
    market = Market()
    market.alters = lambda record: replace(record, **changes)
    market.ask()
    (failed,) = market.asker.all(JobFailed)
    assert failed.code is Refusal.PROTOCOL
    assert market.asker.messages(Voucher) == []


def test_a_coordinator_that_is_away_costs_the_provider_nothing() -> None:
    market = Market()
    market.ask()
    market.bank.is_away = True
    market.wait(3 * 60 * 60)
    market.bank.resume(3 * 60 * 60 * 1000, market.wall_ms)
    market.bank.expire(market.wall_ms)
    market.wait(10 * 60)
    assert market.bank.book.balance(available(market.provider.node)) == COST_UUSD


def test_the_rest_of_a_lease_comes_back_when_it_is_served_no_more() -> None:
    market = Market(deposit_uusd=1_000_000)
    market.ask()
    assert market.bank.book.balance(available(market.asker.node)) == 1_000_000 - LEASE_UUSD
    market.wait(LEASE_SERVE_S + 60)
    assert market.bank.book.balance(available(market.asker.node)) == 1_000_000 - COST_UUSD
    assert len(market.provider.peer.till) == 0


def test_a_closed_lease_serves_no_more_over_a_restart_too() -> None:
    market = Market()
    market.ask(1)
    (lease,) = market.bank.book.leases
    market.feed(market.provider, CloseLease(lease))
    market.step()
    stored = market.provider.all(StoreVoucher)[-1]
    market.restart_provider()
    restored = RestoreProvider(stored.signed, stored.voucher, stored.receipt, COST_UUSD, is_closed=True)
    market.feed(market.provider, restored)
    market.ask(2)
    assert market.provider.messages(JobReject)[-1].code == Refusal.LEASE
    assert len(market.bank.book.leases) == 2
    assert market.asker.all(JobDone)[-1].receipt.lease != lease


def test_the_rest_of_a_lease_comes_back_when_its_payer_wants_it() -> None:
    market = Market(deposit_uusd=1_000_000)
    market.ask()
    (lease,) = market.bank.book.leases
    market.feed(market.provider, CloseLease(lease))
    market.step()
    assert market.bank.book.balance(available(market.asker.node)) == 1_000_000 - COST_UUSD
    market.ask(2)
    assert len(market.bank.book.leases) == 2


def test_after_a_crash_the_asker_goes_on_from_its_own_last_voucher() -> None:
    market = Market()
    market.ask(1)
    marks = market.asker.all(StoreMark)
    before = marks[0]  # what was on disk when it crashed in the middle: a mark, and no voucher
    market.restart_asker()
    market.feed(market.asker, RestorePayer(before.request, before.signed, before.mark_uusd, before.voucher))
    market.bank.is_away = True
    market.ask(2)
    assert market.asker.all(JobDone)[-1].receipt.paid_before_uusd == COST_UUSD
    market.bank.is_away = False
    market.wait(10)
    assert market.bank.book.balance(available(market.provider.node)) == 2 * COST_UUSD


def test_what_the_provider_reminds_us_of_is_not_counted_for_the_next_job() -> None:
    market = Market()
    market.ask(1)
    before = market.asker.all(StoreMark)[0]
    market.restart_asker()
    market.feed(market.asker, RestorePayer(before.request, before.signed, before.mark_uusd, None))
    market.ask(2)
    assert market.asker.all(JobDone)[-1].served[-1].paid_uusd == COST_UUSD


def test_a_mark_that_is_too_low_after_a_crash_is_raised() -> None:
    """We had forgotten a job that cost more than all that the next one may come to."""
    market = Market(priced=replace(PRICED, price_out_uusd=300_000_000), deposit_uusd=100_000_000)
    market.ask(1, spend_uusd=90_000_000)
    before = market.asker.all(StoreMark)[0]
    market.restart_asker()
    market.feed(market.asker, RestorePayer(before.request, before.signed, before.mark_uusd, None))
    market.ask(2, spend_uusd=90_000_000, output_tokens_max=2)
    market.wait(c.UNPAID_DEADLINE_S + 1)
    assert market.asker.all(JobFailed) == []
    receipts = [done.receipt for done in market.asker.all(JobDone)]
    assert [receipt.owed_uusd for receipt in receipts] == [PROMPT_TOKENS + 300 * 40, PROMPT_TOKENS + 300 * 2]
    assert market.bank.book.balance(available(market.provider.node)) == sum(r.owed_uusd for r in receipts)


def test_after_a_crash_the_provider_claims_what_it_had_stored() -> None:
    market = Market()
    market.ask()
    stored = market.provider.all(StoreVoucher)[-1]
    market.restart_provider()
    market.feed(market.provider, RestoreProvider(stored.signed, stored.voucher, stored.receipt, 0))
    market.wait(10)
    assert market.bank.book.balance(available(market.provider.node)) == COST_UUSD


def test_a_lease_of_another_coordinator_is_not_taken() -> None:
    market = Market()
    market.feed(market.provider, SetOffer(offer(models=(PRICED,), coordinators=())))
    market.meet()
    market.ask()
    market.wait(c.SEARCH_DEADLINE_S)
    (failed,) = market.asker.all(JobFailed)
    assert failed.code is Refusal.NO_PROVIDER
    assert market.bank.book.leases == {}


def test_a_price_that_has_risen_is_not_served_under_an_old_lease() -> None:
    market = Market()
    market.ask(1)
    dearer = replace(PRICED, price_out_uusd=3_000_000)
    market.feed(market.provider, SetOffer(offer(models=(dearer,), coordinators=(market.bank.node,))))
    market.ask(2)  # the asker has not heard of it
    (failed,) = market.asker.all(JobFailed)
    assert failed.code is Refusal.PRICE


def test_a_price_that_has_risen_is_paid_with_a_new_lease() -> None:
    market = Market()
    market.ask(1)
    dearer = replace(PRICED, price_out_uusd=3_000_000)
    market.feed(market.provider, SetOffer(offer(models=(dearer,), coordinators=(market.bank.node,))))
    market.meet()
    market.ask(2)
    assert market.asker.all(JobDone)[-1].receipt.owed_uusd == PROMPT_TOKENS + 3 * 40
    assert len(market.bank.book.leases) == 2


def test_a_lease_is_not_served_after_a_crash_in_its_last_claim() -> None:
    """The coordinator has closed it, and the provider has not heard that."""
    market = Market()
    market.ask(1)
    (lease,) = market.bank.book.leases
    market.feed(market.provider, CloseLease(lease))
    stored, closing = market.provider.all(StoreVoucher)[-1], market.provider.all(StoreClosing)[-1]
    assert closing.lease == lease
    market.restart_provider()
    restored = RestoreProvider(stored.signed, stored.voucher, stored.receipt, 0, is_closing=True)
    market.feed(market.provider, restored)
    market.ask(2)
    assert market.provider.messages(JobReject)[-1].code == Refusal.LEASE
    assert market.asker.all(JobDone)[-1].receipt.lease != lease
    market.wait(10)
    assert market.provider.all(StoreClaimed)[-1].acknowledgement is not None
    assert market.bank.book.balance(available(market.provider.node)) == 2 * COST_UUSD
