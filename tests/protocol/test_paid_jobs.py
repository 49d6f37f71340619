"""A paid job from lease to claim: two real peers, a real ledger."""

from __future__ import annotations

from protocol.effects import SendClaim
from protocol.ledger import available
from tests.helpers_paid import PROMPT_TOKENS, Market

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
