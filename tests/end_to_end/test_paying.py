"""Paid answers between real processes: what is shown, what the ledger says, and what survives kills and outages."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from protocol.formats.amounts import format_usd
from protocol.purse import LEASE_UUSD
from tests.helpers_cli import Outcome
from tests.helpers_paying import DEPOSIT_UUSD, PRICE_IN_UUSD, PRICE_OUT_UUSD, PayingMarket, paying_market
from tests.helpers_processes import wait_until

pytestmark = pytest.mark.slow

QUESTION = "one two three four five"
ANSWER_TOKENS = 60
COST_UUSD = 5 * PRICE_IN_UUSD + ANSWER_TOKENS * PRICE_OUT_UUSD


@pytest.fixture(scope="module")
def market() -> Iterator[PayingMarket]:
    """One for all tests: each begins with what the ones before it have paid, and leaves everybody running."""
    with paying_market("--answer-tokens", str(ANSWER_TOKENS), "--tokens-per-s", "60") as market:
        yield market


def ask(market: PayingMarket, *words: str) -> Outcome:
    return market.asker.run("chat", "--pay", "0.01", "--max-tokens", "100", *words, QUESTION)


def until_claimed(market: PayingMarket, uusd: int) -> None:
    provider = market.provider
    wait_until(lambda: market.claimed_uusd(provider.node) >= uusd, "the coordinator has credited it")
    wait_until(lambda: provider.money()["earned_uusd"] >= uusd, "the provider knows that it has")


def agree(market: PayingMarket, earned_uusd: int) -> None:
    """What both wallets show is what the coordinator's database has, to the unit."""
    asker, provider = (node.run("wallet", "--json").json for node in (market.asker, market.provider))
    assert provider["available_uusd"] == market.balance(market.provider.node) == earned_uusd
    assert (provider["earned_uusd"], provider["unclaimed_uusd"]) == (earned_uusd, 0)
    assert provider["earned_uusd"] == market.provider.money()["earned_uusd"]
    assert asker["available_uusd"] == market.balance(market.asker.node)
    assert asker["locked_uusd"] == market.locked_uusd()
    assert asker["spent_uusd"] == earned_uusd
    assert asker["available_uusd"] + asker["locked_uusd"] + asker["spent_uusd"] == DEPOSIT_UUSD


def earned_so_far(market: PayingMarket) -> int:
    return market.balance(market.provider.node)


def test_a_paid_answer_costs_what_it_says_and_its_provider_gets_it(market: PayingMarket) -> None:
    free = market.asker.run("chat", "--json", QUESTION)
    assert free.code == 1, "without --pay nothing is paid"
    assert market.locked_uusd() == 0
    told = ask(market, "--verbose")
    assert told.code == 0, told.err
    assert len(told.out.split()) == ANSWER_TOKENS
    assert f"cost $0.{COST_UUSD:06}" in told.complaint
    assert f"{format_usd(LEASE_UUSD)} is locked for" in told.err
    vouchers = [line for line in told.err.splitlines() if "voucher" in line]
    assert len(vouchers) > 2
    assert all(f"of {format_usd(LEASE_UUSD)}]" in line for line in vouchers)
    until_claimed(market, COST_UUSD)
    agree(market, COST_UUSD)
    second = ask(market, "--json")
    assert (second.code, second.json["paid_uusd"]) == (0, COST_UUSD)
    assert second.json["served"][0]["paid_uusd"] == COST_UUSD
    until_claimed(market, 2 * COST_UUSD)
    agree(market, 2 * COST_UUSD)
    assert market.locked_uusd() == LEASE_UUSD - 2 * COST_UUSD, "the same lease has paid both"
    assert f"${2 * COST_UUSD / 1_000_000:.6f}".rstrip("0") in market.provider.run("status").out
    [lease] = market.asker.run("wallet", "leases", "--json").json["held"]
    closed = market.asker.run("wallet", "close", lease["lease"], "--json")
    assert closed.code == 0, closed.err
    wait_until(lambda: market.locked_uusd() == 0, "its provider has given up the rest")
    assert market.balance(market.asker.node) == DEPOSIT_UUSD - 2 * COST_UUSD


@pytest.mark.parametrize("goes", [pytest.param("before", marks=pytest.mark.nightly), "during"])
def test_without_the_coordinator_a_job_is_done_and_redeemed_when_it_is_back(market: PayingMarket, goes: str) -> None:
    first = ask(market, "--json")
    assert first.code == 0, first.err
    wait_until(lambda: market.provider.money()["unclaimed_uusd"] == 0, "all of it is redeemed")
    before = earned_so_far(market)
    outcomes: list[Outcome] = []
    asking = threading.Thread(target=lambda: outcomes.append(ask(market, "--json")))
    if goes == "before":
        market.coordinator.kill()
    asking.start()
    wait_until(lambda: market.provider.status()["jobs_running"], "the second job runs")
    if goes == "during":
        market.coordinator.kill()
    asking.join()
    assert (outcomes[0].code, outcomes[0].json.get("paid_uusd")) == (0, COST_UUSD), outcomes[0].err
    wait_until(lambda: market.provider.money()["unclaimed_uusd"] == COST_UUSD, "it is vouched for")
    wait_until(lambda: market.provider.money()["last_error"], "a claim was tried in vain")
    market.coordinator.start()
    until_claimed(market, before + COST_UUSD)
    agree(market, before + COST_UUSD)


def test_a_provider_killed_after_its_answer_redeems_it_when_it_is_back(market: PayingMarket) -> None:
    before, claims = earned_so_far(market), market.claims()
    told = ask(market, "--json")
    assert told.code == 0, told.err
    # The best voucher is on disk a quarter of a second later, and the claim would go out after five.
    wait_until(lambda: market.provider.money()["waiting_for_disk"] == 0, "the voucher is on disk")
    assert market.provider.money()["unclaimed_uusd"] == COST_UUSD
    market.provider.kill()
    assert market.claims() == claims
    shown = market.provider.run("wallet", "--json").json
    assert (shown["earned_uusd"], shown["unclaimed_uusd"], shown["unclaimed_leases"]) == (before, COST_UUSD, 1)
    # On another port: the last test, because the asker is told of the first one only.
    market.provider.start()
    until_claimed(market, before + COST_UUSD)
    agree(market, before + COST_UUSD)
