"""Histories of leases in which somebody cheats, something is lost or somebody crashes: whatever happens, honest code
gives the judges of money nothing to find.

Each takes a source of randomness and lives through one market, or one small simulated world.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from protocol.codec import decode_record, encode_message
from protocol.effects import Effect, RequestLease, Send
from protocol.envelope import sign_record
from protocol.errors import Refusal
from protocol.events import ClaimAnswered, ClaimNow, CloseLease, EngineFailed, PeerDisconnected, SetOffer, StopAsking
from protocol.ids import LeaseId
from protocol.jobs import cost_bound_uusd, prompt_tokens_bound
from protocol.messages import Chunk, JobAccept, Voucher
from protocol.money_records import Credited, VoucherRecord
from protocol.purse import LEASE_SERVE_S
from protocol.records import JobAcceptRecord
from protocol.sim.reading import sent
from protocol.sim.scenario import Crash, Faults, Happening, Money, Outage, Scenario, Workload
from protocol.sim.simulation import Simulation
from tests.helpers_claims import acknowledged
from tests.helpers_machines import chat, offer
from tests.helpers_paid import PRICED, Market, Side
from tests.helpers_records import signing_key
from tests.helpers_watched_market import OF_ASKERS, OF_PROVIDERS, WatchedMarket, all_judges

DEAR = replace(PRICED, price_out_uusd=300_000_000)
SPEND_UUSD = 1_000_000

#: Whoever may speak: the judges without a number by their names, and `Settled`, which is of the market itself.
NAMES = (
    *("I1", "I2", "I3", "I4", "I5", "I6", "I7", "I10", "I11", "I12"),
    *("Stored", "Delivered", "Spent", "Prepaid", "PaidInFull", "CoSigned"),
    *("Granted", "OneAtATime", "FreshKeys", "Redeemable", "AllClaimed", "Closed", "Settled"),
)

History = Callable[[random.Random], list[str]]


def market_of(dice: random.Random) -> WatchedMarket:
    """Answers of some length, at some price."""
    market = WatchedMarket(priced=dice.choice((PRICED, PRICED, DEAR)))
    market.words = dice.randint(9, 40)
    market.tokens_per_word = dice.choice((1, 1, 3))
    return market


def ask(market: Market, number: int, **changes: Any) -> Any:
    return market.ask(number, spend_uusd=SPEND_UUSD, **changes)


def least_uusd(market: Market) -> int:
    """What a job may cost at least, so that it is ordered."""
    order = chat(output_tokens_max=100)
    return cost_bound_uusd(market.offer.models[0], prompt_tokens_bound(order.request), order.output_tokens_max)


def several_jobs(dice: random.Random) -> list[str]:
    """One after another, at the same provider."""
    market = market_of(dice)
    for number in range(1, dice.randint(3, 6)):
        ask(market, number)
        market.wait(dice.choice((0, 1, 10)))
    return market.violations() + market.unsettled()


def vouchers_stop(dice: random.Random) -> list[str]:
    """The asker takes and does not pay, in its first job or in a later one."""
    market = market_of(dice)
    honest_jobs = dice.randint(0, 3)
    for number in range(1, honest_jobs + 1):
        ask(market, number)
    market.loses, market.loses_after = Voucher, dice.randint(0, 3)
    ask(market, honest_jobs + 1)
    market.wait(12)
    market.loses = None
    ask(market, honest_jobs + 2)
    return market.violations()


def nothing_is_paid(dice: random.Random) -> list[str]:
    """No voucher comes at all, or the prompt is paid in part."""
    market = market_of(dice)
    if dice.random() < 0.5:
        market.loses = Voucher
    else:
        market.tampers = tampering(market, lambda record: replace(record, paid_uusd=min(record.paid_uusd, 9)))
    ask(market, 1)
    market.wait(12)
    return market.violations()


def disk_is_slow(dice: random.Random) -> list[str]:
    """Marks are stored late, or never."""
    market = market_of(dice)
    market.stores_at_once = False
    ask(market, 1)
    market.wait(dice.uniform(0, 12))
    if dice.random() < 0.7:
        for mark in market.held_marks:
            market.feed(market.asker, mark)
        market.step()
    return market.violations()


def job_stops(dice: random.Random) -> list[str]:
    """The engine fails, or the user has enough."""
    market = market_of(dice)
    market.pauses_after = dice.randint(1, market.words)
    order = ask(market, 1)
    if dice.random() < 0.5:
        for run in list(market.runs):
            market.feed(market.provider, EngineFailed(run, Refusal.ENGINE_FAILED, "it broke"))
    else:
        market.feed(market.asker, StopAsking(order.job))
    market.step()
    market.wait(10)
    market.pauses_after = None
    ask(market, 2)
    return market.violations()


def somebody_crashes(dice: random.Random) -> list[str]:
    """One of them, or both, in a job or between two."""
    market = market_of(dice)
    ask(market, 1)
    market.pauses_after = dice.choice((None, 5, 20))
    ask(market, 2)
    market.pauses_after = None
    market.wait(dice.choice((0, 0.3, 30)))
    if dice.random() < 0.5:
        market.crash_provider(forgets=0)
    if dice.random() < 0.7:
        market.crash_asker()
    market.wait(dice.choice((0, 30)))
    ask(market, 3)
    return market.violations()


def coordinator_is_away(dice: random.Random) -> list[str]:
    """For as long as some jobs, or for hours."""
    market = market_of(dice)
    ask(market, 1)
    market.bank.is_away = True
    ask(market, 2)
    away_s = dice.choice((20, 600, 3 * 60 * 60))
    market.wait(away_s)
    market.bank.resume(away_s * 1000, market.wall_ms)
    market.bank.expire(market.wall_ms)
    return market.violations() + market.unsettled()


def time_is_up(dice: random.Random) -> list[str]:
    """The coordinator closes what it may, when a lease is served no more and its provider may still claim."""
    market = market_of(dice)
    ask(market, 1)
    market.wait(LEASE_SERVE_S + dice.choice((-60, 1)))
    market.bank.expire(market.wall_ms)
    return market.violations()


def coordinator_lies(dice: random.Random) -> list[str]:
    """It says once that it has credited nothing, and that the lease is closed; or it says nothing."""
    market = market_of(dice)
    bank, claim = market.bank, market.bank.claim
    lies = [dice.random() < 0.6]

    def answer(effect: Any, now_ms: int) -> Any:
        if not lies:
            return claim(effect, now_ms)
        is_lie = lies.pop()
        if not is_lie:
            return ClaimAnswered(LeaseId(bytes(32)), effect.claim)
        lie = Credited(effect.lease, 0, 1, len(bank.book.entries), bank.book.head, now_ms)
        return ClaimAnswered(effect.lease, acknowledged(bank.key, lie))

    bank.claim = answer  # type: ignore[method-assign]  # a coordinator that does what it likes
    ask(market, 1)
    market.wait(30)
    return market.violations()


def payer_has_enough(dice: random.Random) -> list[str]:
    """It wants the rest of its lease back: between jobs, or in the middle of one."""
    market = market_of(dice)
    ask(market, 1)
    if dice.random() < 0.5:
        market.pauses_after = 5
        ask(market, 2)
    given = market.provider.peer.till.sides()
    if not given:
        return market.violations()  # it was not to be had at that price
    lease = LeaseId(given[0].record.lease)
    market.feed(market.provider, CloseLease(lease))
    market.step()
    market.feed(market.provider, ClaimNow())
    market.step()
    for run in list(market.runs) if market.pauses_after is not None else []:
        market.pauses_after = None
        market._write(market.provider, run)  # from the start, which the counts make plain
    market.step()
    market.wait(20)
    for side in market.asker.peer.purse.sides():
        side.is_closing = False  # a cheat: it orders under it all the same
    if dice.random() < 0.5:
        market.crash_provider()
    ask(market, 3)
    return market.violations()


def crash_in_the_last_claim(dice: random.Random) -> list[str]:
    """The coordinator has closed a lease, and the provider has not heard that."""
    market = market_of(dice)
    ask(market, 1)
    given = market.provider.peer.till.sides()
    if not given:
        return market.violations()  # it was not to be had at that price
    lease = LeaseId(given[0].record.lease)
    market.feed(market.provider, CloseLease(lease))
    market.crash_provider()
    ask(market, 2)
    return market.violations()


def two_jobs_at_once(dice: random.Random) -> list[str]:
    """The asker is a cheat and orders under a lease that is in use."""
    market = market_of(dice)
    market.pauses_after = dice.randint(1, 8)
    ask(market, 1)
    market.unjudged = OF_ASKERS
    for side in market.asker.peer.purse.sides():
        side.job = None
    ask(market, 2)
    market.wait(5)
    return market.violations()


def tampering(
    market: WatchedMarket, change: Callable[[VoucherRecord], VoucherRecord]
) -> Callable[[Side, Effect], Effect]:
    """The asker is a cheat: it signs something else than it should."""
    market.unjudged = OF_ASKERS

    def tamper(side: Side, effect: Effect) -> Effect:
        message = sent(effect.data, Voucher) if isinstance(effect, Send) and side is market.asker else None
        if message is None or not isinstance(effect, Send):
            return effect
        record = decode_record(message.voucher.body, VoucherRecord)
        requests = {signing_key("asker").payer(asked.request).node: asked for asked in market.asker.all(RequestLease)}
        key = signing_key("asker").payer(requests[record.payer].request)
        return replace(effect, data=encode_message(Voucher(sign_record(change(record), key))))

    return tamper


def worthless(dice: random.Random, change: Callable[[VoucherRecord], VoucherRecord]) -> list[str]:
    """From some voucher on the asker signs what is worth nothing."""
    market = market_of(dice)
    after = dice.randint(0, 2)
    market.tampers = tampering(market, lambda record: change(record) if record.sequence > after else record)
    ask(market, 1)
    market.wait(12)
    ask(market, 2)
    return market.violations()


def vouchers_of_another_lease(dice: random.Random) -> list[str]:
    """They pay somebody else."""
    return worthless(dice, lambda record: replace(record, lease=LeaseId(bytes(32))))


def vouchers_above_the_cap(dice: random.Random) -> list[str]:
    """Nobody has locked so much."""
    return worthless(dice, lambda record: replace(record, paid_uusd=10**9))


def vouchers_fall(dice: random.Random) -> list[str]:
    """The last one states less than those before."""
    market = market_of(dice)
    highest = [0]

    def change(record: VoucherRecord) -> VoucherRecord:
        if record.paid_uusd <= highest[0] or record.sequence < 3:
            highest[0] = max(highest[0], record.paid_uusd)
            return record
        return replace(record, paid_uusd=highest[0] - 1)

    market.tampers = tampering(market, change)
    ask(market, 1)
    market.wait(12)
    return market.violations()


def answer_is_denied(dice: random.Random) -> list[str]:
    """A voucher in the middle is for another answer than came."""
    market = WatchedMarket(priced=PRICED)
    market.words = 40
    number = dice.randint(2, 4)
    market.tampers = tampering(
        market, lambda record: replace(record, running_hash=bytes(32)) if record.sequence == number else record
    )
    ask(market, 1)
    market.wait(12)
    return market.violations()


def tokens_are_denied(dice: random.Random) -> list[str]:
    """A voucher in the middle has the hash of what came, and another number of tokens."""
    market = WatchedMarket(priced=PRICED)
    market.words = 40
    number, more = dice.randint(2, 4), dice.choice((-1, 1, 1_000))
    market.tampers = tampering(
        market,
        lambda record: (
            replace(record, output_tokens=record.output_tokens + more) if record.sequence == number else record
        ),
    )
    ask(market, 1)
    market.wait(12)
    return market.violations()


def jobs_are_broken_off(dice: random.Random) -> list[str]:
    """The asker takes one window of each job, breaks off, and orders the next one under the same lease."""
    market = market_of(dice)
    market.unjudged = OF_ASKERS
    for number in range(1, 4):
        market.loses, market.loses_after = Voucher, dice.randint(1, 3)
        ask(market, number)
        market.feed(market.asker, PeerDisconnected(market.provider.node))
        market.feed(market.provider, PeerDisconnected(market.asker.node))
        market.waiting.clear()
        market.loses = None
        for side in market.asker.peer.purse.sides():
            side.is_closing = False
        market.meet()
        market.wait(dice.choice((0, 20)))
    return market.violations()


def vouchers_come_out_of_order(dice: random.Random) -> list[str]:
    """They overtake each other on their way."""
    market = market_of(dice)
    ask(market, 1)
    market.delays = Voucher
    ask(market, 2)
    for _ in range(60):
        if not market.delayed:
            break
        if len(market.delayed) > 1 and dice.random() < 0.7:
            market.delayed.rotate(1)
        market.release()
    market.wait(12)
    return market.violations()


def chunks_are_late(dice: random.Random) -> list[str]:
    """The asker is paid for nothing that is still on its way."""
    market = market_of(dice)
    market.delays = Chunk
    ask(market, 1)
    for _ in range(dice.randint(0, 60)):
        if market.delayed:
            market.release()
    market.wait(dice.choice((0, 12)))
    return market.violations()


def lying(market: WatchedMarket, **changes: int) -> Callable[[Side, Effect], Effect]:
    """The provider is a cheat: it accepts on other terms than it should."""
    market.unjudged = OF_PROVIDERS

    def tamper(side: Side, effect: Effect) -> Effect:
        message = sent(effect.data, JobAccept) if isinstance(effect, Send) and side is market.provider else None
        if message is None or not isinstance(effect, Send):
            return effect
        record = replace(decode_record(message.acceptance.body, JobAcceptRecord), **changes)
        signed = sign_record(record, signing_key("provider"))
        return replace(effect, data=encode_message(replace(message, acceptance=signed)))

    return tamper


def more_was_paid_before(dice: random.Random) -> list[str]:
    """So says the provider."""
    market = market_of(dice)
    for number in range(dice.randint(0, 1)):
        ask(market, 2 + number)
    market.tampers = lying(market, paid_before_uusd=300)
    ask(market, 1)
    market.wait(12)
    return market.violations()


def prompt_is_longer(dice: random.Random) -> list[str]:
    """The provider counts more tokens than there can be."""
    market = market_of(dice)
    market.tampers = lying(market, prompt_tokens=2_000, prefill_uusd=2_000)
    market.ask(1, spend_uusd=least_uusd(market) + dice.randint(0, 30))
    market.wait(12)
    return market.violations()


def prompt_for_nothing(dice: random.Random) -> list[str]:
    """The provider takes the price of the prompt and breaks, time and again."""
    market = market_of(dice)
    market.prompt_tokens = dice.randint(400, 500)
    market.pauses_after = 0
    market.ask(1, spend_uusd=least_uusd(market) + dice.randint(0, 30))
    for _ in range(6):
        for run in list(market.runs):
            market.feed(market.provider, EngineFailed(run, Refusal.ENGINE_FAILED, "it broke"))
        market.runs.clear()
        market.step()
        market.wait(3)
    return market.violations()


def changed(dice: random.Random, *, is_heard: bool, has_new_weights: bool = False) -> list[str]:
    """Under a lease from before."""
    market = market_of(dice)
    ask(market, 1)
    priced = market.offer.models[0]
    rise = replace(priced, price_out_uusd=priced.price_out_uusd * 2)
    fall = replace(priced, price_out_uusd=priced.price_out_uusd // 2)
    weights = replace(priced, fingerprint=bytes(31) + b"2")
    other = weights if has_new_weights else dice.choice((rise, fall))
    market.offer = offer(models=(other,), coordinators=(market.bank.node,))
    market.feed(market.provider, SetOffer(market.offer))
    if is_heard:
        market.meet()
    ask(market, 2)
    market.wait(12)
    return market.violations()


def offer_changes(dice: random.Random) -> list[str]:
    """The price rises or falls, and the asker hears of it."""
    return changed(dice, is_heard=True)


def weights_change(dice: random.Random) -> list[str]:
    """Others are served under the same name, and the asker hears of it."""
    return changed(dice, is_heard=True, has_new_weights=True)


def offer_changes_unheard(dice: random.Random) -> list[str]:
    """The same, and the asker has not heard of it yet."""
    return changed(dice, is_heard=False)


def coordinator_is_left(dice: random.Random) -> list[str]:
    """The provider takes no leases of this coordinator any more; the asker has not heard of it."""
    market = market_of(dice)
    if dice.random() < 0.5:
        ask(market, 1)
    market.offer = offer(models=market.offer.models, coordinators=(signing_key("another bank").node,))
    market.feed(market.provider, SetOffer(market.offer))
    ask(market, 2)
    market.wait(12)
    return market.violations()


def world(dice: random.Random) -> list[str]:
    """A few peers, crashes, outages, and cheats on both sides."""
    peers, providers = dice.randint(5, 8), dice.randint(2, 3)
    happenings: list[Happening] = []
    for _ in range(dice.randint(1, 3)):
        at_s = dice.uniform(3, 10)
        if dice.random() < 0.4:
            happenings.append(Outage(at_s, dice.uniform(1, 8)))
        else:
            is_silent = dice.random() < 0.5
            happenings.append(Crash(at_s, dice.randrange(peers), dice.uniform(0.5, 4), is_silent=is_silent))
    scenario = Scenario(
        seed=dice.randrange(1_000_000),
        peers=peers,
        providers=providers,
        happenings=tuple(happenings),
        faults=Faults(replay=dice.choice((0.0, 0.3))),
        workload=Workload(jobs=16, jobs_per_s=2.0, cancel_share=0.1),
        money=Money(price_out_uusd=dice.choice((1_500_000, 40_000_000)), cheating_askers=0.2, cheating_providers=0.1),
    )
    simulation = Simulation(scenario, all_judges())
    simulation.run(14)
    simulation.heal()
    simulation.settle(300)
    simulation.run(simulation.now_s + 950)
    try:
        simulation.finish()
    except Exception:
        if not simulation.violations():
            raise
    return simulation.violations()


HISTORIES: tuple[History, ...] = (
    *(several_jobs, vouchers_stop, nothing_is_paid, disk_is_slow, job_stops),
    *(
        somebody_crashes,
        coordinator_is_away,
        coordinator_lies,
        payer_has_enough,
        crash_in_the_last_claim,
        two_jobs_at_once,
    ),
    *(vouchers_of_another_lease, vouchers_above_the_cap, vouchers_fall, vouchers_come_out_of_order),
    *(
        answer_is_denied,
        tokens_are_denied,
        jobs_are_broken_off,
        chunks_are_late,
        more_was_paid_before,
        prompt_is_longer,
        prompt_for_nothing,
    ),
    *(offer_changes, offer_changes_unheard, weights_change, coordinator_is_left, time_is_up),
)
