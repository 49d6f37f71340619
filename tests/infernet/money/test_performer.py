"""infernet/money/performer.py: what the peer decides about money is done, and what comes of it is told to the peer."""

from __future__ import annotations

import base64
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs

from infernet.coordinator_client import CoordinatorRefused, RequestSigner
from infernet.driver import EVENTS_PER_TURN, Driver, wall_ms
from infernet.money.client import MoneyClient
from infernet.money.performer import Money, close_of
from infernet.money.store import MoneyStore
from infernet.store import StoreError
from protocol import codec
from protocol import events as e
from protocol.constants import CLAIMS_MAX
from protocol.effects import Equivocation, RequestLease, SendClaim
from protocol.envelope import open_record, sign_record
from protocol.errors import LocalProtocolError
from protocol.link import ClaimAnswer, ClaimRefusal
from protocol.money_records import CloseRecord, Credited, LeaseRecord, LeaseRequestRecord
from protocol.peer import Peer
from protocol.records import Signed
from tests.helpers_claims import acknowledged
from tests.helpers_machines import ALONE, sealer_of
from tests.helpers_money_server import MoneyServer, Refusal, money_server
from tests.helpers_money_store import (
    BANK,
    acknowledgement,
    lease,
    lease_of,
    mark,
    paid,
    request_of,
)
from tests.helpers_records import ASKER, PROVIDER

pytestmark = pytest.mark.anyio


class Watched(Driver):
    """The real driver, which also writes down what it is told."""

    def __init__(self, peer: Peer, money: dict[str, Money]) -> None:
        self.told: list[e.Event] = []
        super().__init__(peer, engine=None, observe=lambda effect: money["it"].perform(effect))  # type: ignore[arg-type]

    def post(self, event: e.Event) -> None:
        self.told.append(event)
        super().post(event)

    def of(self, kind: type[Any]) -> list[Any]:
        """What it was told of this kind."""
        return [event for event in self.told if isinstance(event, kind)]


class Link:
    """Double of the link: it stands or it does not, and keeps what is sent over it."""

    def __init__(self) -> None:
        self.money: Money | None = None
        self.stands = True
        self.sent: dict[int, tuple[Signed, ...]] = {}

    def claim(self, number: int, claims: tuple[Signed, ...]) -> bool:
        if self.stands:
            self.sent[number] = claims
        return self.stands


class Bench:
    """A node's money with a server that does what it is told."""

    def __init__(self, path: Path, server: MoneyServer, key: Any = PROVIDER) -> None:
        self.server = server
        self.store = MoneyStore(path / "money.sqlite3")
        self.changes = 0
        money: dict[str, Money] = {}
        # The peer's clock is the machine's: its leases must not be old.
        peer = Peer(ALONE, key, sealer_of("x"), random.Random(1), e.Now(trio.current_time(), wall_ms()))
        self.driver = Watched(peer, money)
        client = MoneyClient(server.url, RequestSigner(key, BANK.node, wall_ms), lambda: {"role": "provider"})
        self.money = money["it"] = Money(self.store, BANK.node, client, self.driver, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    async def until(self, condition: Any) -> None:
        for _ in range(4000):
            if condition():
                return
            await trio.sleep(0.005)
        raise AssertionError("waited in vain")


@asynccontextmanager
async def bench(path: Path, key: Any = PROVIDER, prepare: Any = None, **changes: Any) -> AsyncIterator[Bench]:
    async with money_server(**changes) as server:
        made = Bench(path, server, key)
        if prepare is not None:
            made.store.apply(prepare)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.driver.run)
            await made.money.restore()
            await nursery.start(made.money.run)
            yield made
            nursery.cancel_scope.cancel()
        made.store.close()


def fresh(number: int = 1, **changes: Any) -> Signed:
    """A lease that is served now."""
    at_ms = wall_ms()
    times = {"issued_at_ms": at_ms, "serve_until_ms": at_ms + 3_600_000, "claim_by_ms": at_ms + 7_200_000}
    return lease(number, **times | changes)


def given(amount: int, number: int = 1) -> Any:
    """What the store of a provider has of such a lease."""
    return structs.replace(paid(amount, number), signed=fresh(number))


def request() -> RequestLease:
    record = LeaseRequestRecord(
        1, BANK.node, request_of(1), ASKER.node, ASKER.payer(request_of(1)).node, PROVIDER.node, None, 0, 50_000,
        "tiny-135m", bytes(32), 1, 1, 0, 3600, wall_ms(), (),
    )  # fmt: skip
    return RequestLease(request_of(1), BANK.node, sign_record(record, ASKER))


# ---------------------------------------------------------------- leases


async def test_a_lease_is_asked_for_and_the_peer_gets_it(tmp_path: Path) -> None:
    async with bench(tmp_path, ASKER, answers={"leases/open": lease()}) as b:
        b.money.perform(request())
        await b.until(lambda: b.driver.of(e.LeaseGranted))
        assert b.driver.of(e.LeaseGranted) == [e.LeaseGranted(request_of(1), lease())]


async def test_too_little_money_is_final_and_said_in_the_coordinators_words(tmp_path: Path) -> None:
    refusal = Refusal(402, "there is $0.01 and $0.05 is wanted", "insufficient_funds")
    async with bench(tmp_path, ASKER, answers={"leases/open": refusal}) as b:
        b.money.perform(request())
        await b.until(lambda: b.driver.of(e.LeaseDenied))
        (denied,) = b.driver.of(e.LeaseDenied)
        assert denied.is_final
        assert "there is $0.01" in denied.text
        assert len(b.server.to("leases/open")) == 1


async def test_while_the_coordinator_is_busy_the_same_request_is_made_again(tmp_path: Path) -> None:
    answers = iter([Refusal(503, code="busy"), Refusal(500), lease()])
    async with bench(tmp_path, ASKER, answers={"leases/open": lambda _: next(answers)}) as b:
        b.money.perform(request())
        await b.until(lambda: b.driver.of(e.LeaseGranted))
        asked = b.server.to("leases/open")
        assert len({each.body for each in asked}) == 1, "asked twice, it is granted once"
        assert len(asked) == 3


# ---------------------------------------------------------------- claims


def claim(number: int = 1) -> SendClaim:
    return SendClaim(lease_of(number), BANK.node, acknowledgement(1, number))


async def test_a_claim_goes_over_the_link_where_one_stands(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        link = Link()
        b.money.use_link(link)  # type: ignore[arg-type]
        b.money.perform(claim())
        await b.until(lambda: link.sent)
        assert list(link.sent.values()) == [(claim().claim,)]
        (number,) = link.sent
        b.money.on_claim_answer(ClaimAnswer(number + 7, acknowledgement(5), ()))
        assert b.driver.of(e.ClaimAnswered) == [], "an answer to nothing that was asked"
        b.money.on_claim_answer(ClaimAnswer(number, acknowledgement(90), ()))
        assert b.driver.of(e.ClaimAnswered) == [e.ClaimAnswered(lease_of(1), acknowledgement(90))]
        assert b.server.to("claims") == []


REFUSED_FOR_GOOD = [("lease_closed", True), ("wrong_provider", True)]
REFUSED_FOR_NOW = [(code, False) for code in ("unknown_lease", "bad_signature", "conflict", "bad_record", "busy", "")]


@pytest.mark.parametrize(("code", "final"), REFUSED_FOR_GOOD + REFUSED_FOR_NOW)
async def test_a_refusal_over_the_link_is_final_by_its_code(tmp_path: Path, code: str, final: bool) -> None:
    async with bench(tmp_path) as b:
        link = Link()
        b.money.use_link(link)  # type: ignore[arg-type]
        b.money.perform(claim())
        await b.until(lambda: link.sent)
        b.money.on_claim_answer(ClaimAnswer(next(iter(link.sent)), None, (ClaimRefusal(0, code, "because\nof it"),)))
        (failed,) = b.driver.of(e.ClaimFailed)
        assert (failed.is_final, "\n" in failed.text) == (final, False)


@pytest.mark.parametrize(("code", "final"), REFUSED_FOR_GOOD + REFUSED_FOR_NOW)
async def test_a_refusal_over_http_is_final_by_its_code(tmp_path: Path, code: str, final: bool) -> None:
    async with bench(tmp_path, answers={"claims": Refusal(409, code=code)}) as b:
        b.money.perform(claim())
        await b.until(lambda: b.driver.of(e.ClaimFailed))
        (failed,) = b.driver.of(e.ClaimFailed)
        assert failed.is_final is final


async def test_claims_on_a_link_that_is_lost_are_open_again_and_the_next_goes_over_http(tmp_path: Path) -> None:
    async with bench(tmp_path, answers={"claims": acknowledgement(90)}) as b:
        link = Link()
        b.money.use_link(link)  # type: ignore[arg-type]
        b.money.perform(claim(1))
        b.money.perform(claim(2))
        await b.until(lambda: link.sent)
        link.stands = False
        b.money.on_link(is_up=False)
        assert [(event.lease, event.is_final) for event in b.driver.of(e.ClaimFailed)] == [
            (lease_of(1), False),
            (lease_of(2), False),
        ]
        b.money.perform(claim(1))
        await b.until(lambda: b.driver.of(e.ClaimAnswered))
        assert b.server.to("claims")[0].signed == claim(1).claim


async def test_a_claim_for_another_coordinator_is_not_sent_to_this_one(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.money.perform(SendClaim(lease_of(1), ASKER.node, acknowledgement(1)))
        (failed,) = b.driver.of(e.ClaimFailed)
        assert not failed.is_final
        assert b.server.asked == []


async def test_what_was_left_open_is_redeemed_after_a_restart_and_counted_once(tmp_path: Path) -> None:
    answers = {"claims": acknowledgement(90), "leases/list": []}
    async with bench(tmp_path, prepare=[given(90)], answers=answers) as b:
        status = b.money.status()
        assert (status["earned_uusd"], status["unclaimed_uusd"], status["leases_given"]) == (0, 90, 1)
        assert b.money.claim_now() == {"leases": 1, "unclaimed_uusd": 90}
        await b.until(lambda: b.money.status()["earned_uusd"] == 90)
        assert b.money.status()["unclaimed_uusd"] == 0
        assert b.money.claim_now() == {"leases": 0, "unclaimed_uusd": 0}
        assert len(b.server.to("claims")) == 1
    store = MoneyStore(tmp_path / "money.sqlite3")
    assert store.totals().earned_uusd == 90
    store.close()


async def test_what_another_coordinator_owes_is_shown_and_not_claimed_here(tmp_path: Path) -> None:
    at_ms = wall_ms()
    record = codec.decode_record(lease(1).body, LeaseRecord)
    elsewhere = structs.replace(record, coordinator=ASKER.node, serve_until_ms=at_ms, claim_by_ms=at_ms)
    kept = structs.replace(paid(70), signed=sign_record(elsewhere, ASKER))
    async with bench(tmp_path, prepare=[kept, given(5, 2)]) as b:
        status = b.money.status()
        assert (status["unclaimed_elsewhere_uusd"], status["unclaimed_uusd"], status["leases_given"]) == (70, 5, 1)


# ---------------------------------------------------------------- who wants the rest back


def wish(number: int = 1, **changes: Any) -> Signed:
    key = ASKER.payer(request_of(number))
    fields = {"payer": key.node, "paid_uusd": 90, "closed_at_ms": wall_ms(), "extensions": ()} | changes
    return sign_record(CloseRecord(version=1, lease=lease_of(number), **fields), key)


def row(signed: Signed) -> dict[str, Any]:
    return {"close_wish": base64.b64encode(codec.encode_value(signed)).decode()}


async def test_the_wish_of_a_payer_is_found_in_the_list_and_carried_out(tmp_path: Path) -> None:
    rows = [{"close_wish": None}, {"close_wish": "nonsense"}, row(wish(7)), row(wish())]
    answers = {"leases/list": rows, "claims": acknowledgement(90, is_closed=True)}
    async with bench(tmp_path, prepare=[given(90)], answers=answers) as b:
        await b.until(lambda: b.driver.of(e.CloseLease))
        assert b.driver.of(e.CloseLease) == [e.CloseLease(lease_of(1))]
        await b.until(lambda: b.money.status()["leases_given"] == 0)
        assert b.server.to("leases/list")[0].fields == {"role": "provider", "open": True, "limit": 100}


async def test_a_wish_that_is_not_the_payers_is_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path, prepare=[given(90)], answers={"leases/list": []}) as b:
        stranger = CloseRecord(1, lease_of(1), ASKER.node, 90, wall_ms(), ())
        b.money.on_closing(sign_record(stranger, ASKER))
        b.money.on_closing(Signed(wish().body, bytes(64)))
        assert b.driver.of(e.CloseLease) == []
        b.money.on_closing(wish())
        assert b.driver.of(e.CloseLease) == [e.CloseLease(lease_of(1))]


# ---------------------------------------------------------------- leases of ours


def ours(number: int = 1) -> Any:
    return structs.replace(mark(300, number, 90), signed=fresh(number))


async def test_a_lease_of_ours_is_given_back_and_not_taken_up_again(tmp_path: Path) -> None:
    async with bench(tmp_path, ASKER, prepare=[ours(1), ours(2)], answers={"close": {"state": "open"}}) as b:
        assert b.money.status()["leases_held"] == 2
        assert await b.money.close_leases(lease_of(1)) == [{"state": "open"}]
        (asked,) = b.server.to("close")
        closed = codec.decode_record(asked.signed.body, CloseRecord)
        assert (closed.lease, closed.paid_uusd) == (lease_of(1), 90)
        with pytest.raises(LocalProtocolError, match="no such lease"):
            await b.money.close_leases(lease_of(3))
        assert [event.request for event in b.store.restore_payers()] == [request_of(2)]
        assert len(await b.money.close_leases(None)) == 2, "the coordinator may not have heard of the first"


def elsewhere(number: int) -> Any:
    """A lease of ours that another coordinator holds: we used to have that one."""
    record = structs.replace(codec.decode_record(fresh(number).body, LeaseRecord), coordinator=ASKER.node)
    return structs.replace(mark(300, number, 90), signed=sign_record(record, ASKER))


def of_another_key(number: int) -> Any:
    """A lease of another node, whose store was copied here or whose key was this node's before."""
    record = structs.replace(codec.decode_record(fresh(number).body, LeaseRecord), payer=PROVIDER.payer(b"x" * 16).node)
    return structs.replace(mark(300, number, None), signed=sign_record(record, BANK))


async def test_leases_of_another_key_or_coordinator_are_left_alone(tmp_path: Path) -> None:
    prepared = [elsewhere(1), of_another_key(2), ours(3)]
    async with bench(tmp_path, ASKER, prepare=prepared, answers={"close": {"state": "open"}}) as b:
        assert {side.record.lease for side in b.driver.peer.purse.sides()} == {lease_of(1), lease_of(3)}
        with pytest.raises(LocalProtocolError, match="another coordinator"):
            await b.money.close_leases(lease_of(1))
        with pytest.raises(LocalProtocolError, match="no such lease"):
            await b.money.close_leases(lease_of(2))
        assert b.server.to("close") == []
        assert len(await b.money.close_leases(None)) == 1
        (asked,) = b.server.to("close")
        assert codec.decode_record(asked.signed.body, CloseRecord).lease == lease_of(3)
        status = b.money.status()
        assert (status["leases_held"], status["held_uusd"]) == (2, 100_000), "what is locked elsewhere is ours as well"
        kept = {kept.lease: kept for kept in b.store.payer_leases()}
        assert {lease for lease, each in kept.items() if each.is_closing} == {lease_of(3)}
        assert kept[lease_of(2)].signed == prepared[1].signed


async def test_a_lease_that_the_coordinator_does_not_know_keeps_no_other_from_coming_back(
    tmp_path: Path,
) -> None:
    def answer(asked: Any) -> Any:
        closed = codec.decode_record(asked.signed.body, CloseRecord)
        return Refusal(404, "no such lease", "unknown_lease") if closed.lease == lease_of(1) else {"state": "open"}

    async with bench(tmp_path, ASKER, prepare=[ours(1), ours(2)], answers={"close": answer}) as b:
        assert await b.money.close_leases(None) == [{"state": "open"}]
        assert len(b.server.to("close")) == 2
        with pytest.raises(CoordinatorRefused, match="no such lease"):
            await b.money.close_leases(lease_of(1))


async def test_a_close_is_signed_by_the_payer_of_the_lease(tmp_path: Path) -> None:
    async with bench(tmp_path, ASKER, prepare=[ours()]) as b:
        (side,) = b.driver.peer.purse.sides()
        assert open_record(close_of(side, 5), CloseRecord).payer == ASKER.payer(request_of(1)).node


# ---------------------------------------------------------------- trouble


async def test_while_nothing_can_be_written_nothing_is_signed_and_no_lease_is_asked_for(tmp_path: Path) -> None:
    async with bench(tmp_path, ASKER) as b:
        apply = b.store.apply
        b.store.apply = _full  # type: ignore[method-assign]
        b.money.perform(mark(300))
        await b.until(lambda: b.changes == 1)
        assert b.money.trouble == b.money.status()["trouble"] == "the disk is full"
        assert b.driver.of(e.MarkStored) == []
        with pytest.raises(LocalProtocolError, match="the disk is full"):
            b.money.check_spending()
        b.money.perform(request())
        (denied,) = b.driver.of(e.LeaseDenied)
        assert (denied.is_final, b.server.asked) == (False, [])
        b.store.apply = apply  # type: ignore[method-assign]
        await b.until(lambda: b.driver.of(e.MarkStored))
        assert (b.money.trouble, b.changes) == ("", 2)
        b.money.check_spending()


def _full(_writes: object) -> None:
    raise StoreError("the disk is full")


async def test_a_coordinator_with_two_ledgers_is_trusted_no_more_and_the_proof_is_kept(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.money.perform(Equivocation(BANK.node, 7, lease(1), lease(2)))
        assert "two different ledgers" in b.money.trouble
        assert b.changes == 1
        await b.until(lambda: b.store.proof_against(BANK.node))


async def test_a_coordinator_with_two_ledgers_is_not_trusted_after_a_restart_either(tmp_path: Path) -> None:
    proof = Equivocation(BANK.node, 7, lease(1), lease(2))
    async with bench(tmp_path) as b:
        b.money.perform(proof)
        await b.until(lambda: b.store.proofs())
    async with bench(tmp_path) as b:
        assert "two different ledgers (entry 7)" in b.money.status()["trouble"]
        with pytest.raises(LocalProtocolError, match="two different ledgers"):
            b.money.check_spending()
        b.money.perform(request())
        (denied,) = b.driver.of(e.LeaseDenied)
        assert (denied.is_final, b.server.to("leases/open")) == (False, [])
        assert b.store.proofs() == [proof]


async def test_a_proof_against_another_coordinator_is_none_against_ours(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.store.keep_proof(Equivocation(ASKER.node, 7, lease(1), lease(2)))
    async with bench(tmp_path) as b:
        assert b.money.trouble == ""


async def test_the_last_claim_leaves_when_the_disk_knows_that_it_is_the_last(tmp_path: Path) -> None:
    kept: list[bool] = []

    def answer(_asked: object) -> Signed:
        kept.extend(event.is_closing for event in b.store.restore_providers(BANK.node, 0))
        return acknowledgement(90, is_closed=True)

    answers = {"claims": answer, "list": []}
    async with bench(tmp_path, prepare=[given(90)], answers=answers) as b:
        apply, b.store.apply = b.store.apply, _full  # type: ignore[method-assign]
        b.driver.command(e.CloseLease(lease_of(1)))
        await b.until(lambda: b.money.trouble)
        assert b.server.to("claims") == []
        b.store.apply = apply  # type: ignore[method-assign]
        await b.until(lambda: b.money.status()["earned_uusd"] == 90)
        assert kept == [True]
        assert len(b.server.to("claims")) == 1


async def test_the_end_of_a_node_waits_for_last_claims(tmp_path: Path) -> None:
    answers = {"claims": acknowledgement(90, is_closed=True), "list": []}
    async with bench(tmp_path, prepare=[given(90)], answers=answers) as b:
        b.driver.command(e.CloseLease(lease_of(1)))
        with trio.fail_after(20):
            await b.money.settle()
        assert b.store.totals().earned_uusd == 90
        assert len(b.server.to("claims")) == 1


async def test_at_the_end_what_can_be_redeemed_is_and_all_is_on_disk(tmp_path: Path) -> None:
    async with bench(tmp_path, prepare=[given(90)], answers={"claims": acknowledgement(90), "list": []}) as b:
        with trio.fail_after(20):
            await b.money.settle()
        assert b.store.totals().earned_uusd == 90


async def test_the_end_of_a_node_waits_until_all_answers_are_taken_that_have_come(tmp_path: Path) -> None:
    numbers = range(1, CLAIMS_MAX + 1)
    async with bench(tmp_path, prepare=[given(90, number) for number in numbers], answers={"list": []}) as b:
        link = Link()
        b.money.use_link(link)  # type: ignore[arg-type]

        async def answer() -> None:
            await b.until(lambda: link.sent)
            # So many events lie before the answers that the driver takes turns, and looks at what is waited for.
            for _ in range(20 * EVENTS_PER_TURN):
                b.driver.post(e.ClaimFailed(lease_of(1000), "of no lease that there is", False))
            words = [Credited(lease_of(number), 90, 0, number, bytes(32), 1) for number in numbers]
            b.money.on_claim_answer(ClaimAnswer(next(iter(link.sent)), acknowledged(BANK, *words), ()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            with trio.fail_after(20):
                await b.money.settle()
        assert b.store.totals().earned_uusd == 90 * len(numbers)
