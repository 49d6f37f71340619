"""Money over real HTTP: leases, claims, closes, complaints, wallets, and every way in which somebody gets nothing."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coordinator.core import settlement
from coordinator.store import leases, wallet
from protocol import codec
from protocol.envelope import open_record, sign_request
from protocol.ids import LeaseId
from protocol.ledger import available
from protocol.money_records import Credited, LeaseRecord, LedgerHeadRecord
from protocol.records import Signed
from tests.helpers_claims import credited_in
from tests.helpers_coordinator import NodeClient, Served, WallClock, make_key, serving
from tests.helpers_money import Market, balance, read_signed, refused, sign_claim, sign_voucher

pytestmark = pytest.mark.anyio

HOUR_MS = 3_600_000


async def head_of(served: Served) -> bytes:
    async with served.app.core.database.reader() as reader:
        rows = await reader.execute_fetchall("SELECT head FROM entries ORDER BY number DESC LIMIT 1")
    return bytes(next(iter(rows))[0])


# ---------------------------------------------------------------- leases


async def test_a_lease_locks_its_cap_and_says_what_was_agreed(served: Served) -> None:
    market = await Market.opened(served)
    request = market.request(cap_uusd=250_000, price_out_uusd=7)
    lease = open_record(read_signed(await market.ask_for(request)), LeaseRecord)
    assert (lease.coordinator, lease.provider) == (served.key.node, market.provider.key.node)
    assert (lease.cap_uusd, lease.price_out_uusd) == (250_000, 7)
    assert lease.claim_by_ms > lease.serve_until_ms > served.clock()
    assert await balance(served, available(market.client.key.node)) == 750_000
    assert await balance(served, f"lease:{lease.lease.hex()}") == 250_000


async def test_the_same_request_gets_the_same_bytes_also_when_it_is_old(tmp_path: Path, clock: WallClock) -> None:
    async with serving(tmp_path, clock) as served:
        market = await Market.opened(served)
        request = market.request()
        first = read_signed(await market.ask_for(request))
        assert read_signed(await market.ask_for(request)) == first
    clock.offset_ms += HOUR_MS
    async with serving(tmp_path, clock) as served:
        again = market.moved(served)
        assert read_signed(await again.ask_for(request)) == first
        assert await balance(served, available(market.client.key.node)) == 900_000


async def test_another_request_under_the_same_number_is_a_conflict(served: Served) -> None:
    market = await Market.opened(served)
    read_signed(await market.ask_for(market.request(request=b"n" * 16)))
    answer = await market.ask_for(market.request(request=b"n" * 16, cap_uusd=1))
    assert refused(answer) == (409, "conflict")
    assert await balance(served, available(market.client.key.node)) == 900_000


async def test_fifty_leases_of_one_deposit_lock_it_once(served: Served) -> None:
    market = await Market.opened(served, 1_000_000)
    answers = await asyncio.gather(*(market.ask_for(market.request(cap_uusd=300_000)) for _ in range(50)))
    codes = [200 if answer.status_code == 200 else refused(answer) for answer in answers]
    assert codes.count(200) == 3
    assert codes.count((402, "insufficient_funds")) == 47
    assert await balance(served, available(market.client.key.node)) == 100_000


def other_coordinator(market: Market) -> Signed:
    return market.request(coordinator=make_key(5).node)


def old(market: Market) -> Signed:
    return market.request(created_at_ms=market.served.clock() - 61_000)


def payer_is_client(market: Market) -> Signed:
    return market.request(market.client.key)


def relay_too_dear(market: Market) -> Signed:
    return market.request(relay=make_key(6).node, relay_bps=2001)


def cut_without_relay(market: Market) -> Signed:
    return market.request(relay_bps=1)


def forged(market: Market) -> Signed:
    signed = market.request()
    return Signed(signed.body, secrets.token_bytes(64))


def not_a_request(market: Market) -> Signed:
    return market.complaint_of(LeaseId(bytes(32)), market.client.key)


@pytest.mark.parametrize(
    ("request_of", "expected"),
    [
        (other_coordinator, (403, "bad_signature")),
        (old, (400, "stale")),
        (payer_is_client, (400, "bad_record")),
        (relay_too_dear, (400, "bad_record")),
        (cut_without_relay, (400, "bad_record")),
        (forged, (403, "bad_signature")),
        (not_a_request, (400, "bad_record")),
    ],
)
async def test_a_bad_request_for_a_lease_is_refused(
    served: Served, request_of: Callable[[Market], Signed], expected: tuple[int, str]
) -> None:
    market = await Market.opened(served)
    head = await head_of(served)
    assert refused(await market.ask_for(request_of(market))) == expected
    assert await head_of(served) == head


async def test_nobody_opens_a_lease_with_the_money_of_another(served: Served) -> None:
    market = await Market.opened(served)
    answer = await market.ask_for(market.request(), sender=market.provider)
    assert refused(answer) == (403, "wrong_sender")


async def test_a_lease_is_shown_to_its_client_alone_also_by_its_request(served: Served) -> None:
    market = await Market.opened(served)
    request = market.request()
    read_signed(await market.ask_for(request))
    assert refused(await market.ask_for(request, sender=market.provider)) == (403, "wrong_sender")


async def test_a_client_has_a_bounded_number_of_open_leases(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settlement, "OPEN_LEASES_PER_CLIENT_MAX", 2)
    market = await Market.opened(served)
    first, _ = await market.lease(), await market.lease()
    assert refused(await market.ask_for(market.request())) == (429, "too_many_leases")
    await market.claim(first, None, is_final=1)
    await market.lease()


# ---------------------------------------------------------------- claims


async def test_an_envelope_around_a_claim_is_used_once_and_is_of_a_registered_key(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    data = codec.encode_value(market.claim_of(lease, 5))
    target = "/api/v1/node/claims"
    headers = {"X-Infernet-Auth": market.provider.header(target, data), "content-type": "application/msgpack"}
    assert (await served.http.post(target, content=data, headers=headers)).status_code == 200
    assert refused(await served.http.post(target, content=data, headers=headers)) == (401, "unauthenticated")
    assert (await market.provider.post("remove", {"role": "provider"})).json()["data"]["deleted"] is True
    assert refused(await market.send(market.claim_of(lease, 9))) == (404, "not_registered")
    assert await balance(served, available(market.provider.key.node)) == 5


async def test_a_claim_credits_what_is_new_and_a_final_one_returns_the_rest(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    provider, client = available(market.provider.key.node), available(market.client.key.node)
    first = await market.claim(lease, 30_000)
    assert (first.claimed_uusd, first.is_closed, await balance(served, provider)) == (30_000, 0, 30_000)
    assert (await market.claim(lease, 50_000)).claimed_uusd == 50_000
    assert await balance(served, provider) == 50_000
    last = await market.claim(lease, None, is_final=1)
    assert (last.claimed_uusd, last.is_closed, last.head) == (50_000, 1, await head_of(served))
    assert await balance(served, client) == 950_000


async def test_a_claim_for_more_than_the_cap_gets_the_cap(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    assert (await market.claim(lease, 2**60)).claimed_uusd == 100_000
    assert await balance(served, available(market.provider.key.node)) == 100_000


async def test_fee_and_relay_take_their_cuts_of_the_running_total(tmp_path: Path) -> None:
    async with serving(tmp_path, fee_bps=100) as served:
        market, relay = await Market.opened(served), NodeClient(served)
        await relay.register()
        lease = await market.lease(relay=relay.key.node, relay_bps=1000)
        for paid in range(1, 1000, 7):
            await market.claim(lease, paid)
        wallet = (await market.provider.post("wallet", {})).json()["data"]
        assert await balance(served, "fee") == wallet["fees_uusd"] == 995 * 100 // 10_000
        assert wallet["earned_uusd"] == wallet["available_uusd"] == 995 - 9 - 99
        assert (await relay.post("wallet", {})).json()["data"]["relayed_uusd"] == 99


async def test_a_repeated_claim_gets_the_same_answer_and_nothing_more(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    claim = market.claim_of(lease, 30_000)
    first = credited_in(read_signed(await market.send(claim)))
    await market.lease()  # other entries have come since
    served.clock.offset_ms += 1000
    assert credited_in(read_signed(await market.send(claim))) == first
    lower = await market.claim(lease, 20_000)
    assert lower == first
    assert await balance(served, available(market.provider.key.node)) == 30_000


BadClaim = Callable[[Market, LeaseId], Signed]
BAD_CLAIMS: dict[str, tuple[BadClaim, tuple[int, str]]] = {
    "unknown lease": (
        lambda m, _: sign_claim(m.provider.key, LeaseId(b"x" * 32), None, m.served.clock()),
        (404, "unknown_lease"),
    ),
    "forged claim": (
        lambda m, lease: Signed(m.claim_of(lease, 5).body, secrets.token_bytes(64)),
        (403, "bad_signature"),
    ),
    "forged voucher": (
        lambda m, lease: sign_claim(
            m.provider.key,
            lease,
            Signed(sign_voucher(m.payers[lease], lease, 5).body, bytes(64)),
            m.served.clock(),
        ),
        (403, "bad_signature"),
    ),
    "voucher of another payer": (
        lambda m, lease: sign_claim(m.provider.key, lease, sign_voucher(make_key(), lease, 5), m.served.clock()),
        (403, "bad_signature"),
    ),
    "voucher for another lease": (
        lambda m, lease: sign_claim(
            m.provider.key, lease, sign_voucher(m.payers[lease], LeaseId(b"y" * 32), 5), m.served.clock()
        ),
        (403, "bad_signature"),
    ),
    "voucher as claim": (lambda m, lease: sign_voucher(m.payers[lease], lease, 5), (400, "bad_record")),
    "claim of somebody else": (
        lambda m, lease: sign_claim(m.client.key, lease, sign_voucher(m.payers[lease], lease, 5), m.served.clock()),
        (403, "wrong_sender"),
    ),
}


@pytest.mark.parametrize("name", BAD_CLAIMS)
async def test_a_bad_claim_moves_nothing(served: Served, name: str) -> None:
    claim_of, expected = BAD_CLAIMS[name]
    market = await Market.opened(served)
    lease = await market.lease()
    head = await head_of(served)
    assert refused(await market.send(claim_of(market, lease))) == expected
    assert await head_of(served) == head


async def test_a_provider_that_the_lease_does_not_name_gets_nothing(served: Served) -> None:
    market = await Market.opened(served)
    lease, thief = await market.lease(), NodeClient(served)
    await thief.register()
    stolen = sign_claim(thief.key, lease, sign_voucher(market.payers[lease], lease, 5), served.clock())
    assert refused(await market.send(stolen, sender=thief)) == (403, "wrong_provider")
    assert refused(await market.send(market.claim_of(lease, 5), sender=thief)) == (403, "wrong_sender")


async def test_a_claim_after_the_end_is_refused_unless_it_says_nothing_new(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    last = await market.claim(lease, 10, is_final=1)
    assert refused(await market.send(market.claim_of(lease, 11))) == (409, "lease_closed")
    assert await market.claim(lease, 10) == last


async def test_an_expired_lease_returns_to_its_client_and_can_be_claimed_no_more(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    await market.claim(lease, 10)
    upkeep = served.app.core.settlement_upkeep
    end_ms = (await market.row(lease)).claim_by_ms
    while served.clock() <= end_ms:  # in steps that are no outage
        await upkeep.tick()
        assert not (await market.row(lease)).is_closed
        served.clock.offset_ms += 14_000
    await upkeep.tick()
    assert (await market.row(lease)).is_closed
    assert await balance(served, available(market.client.key.node)) == 1_000_000 - 10
    assert refused(await market.send(market.claim_of(lease, 11))) == (409, "lease_closed")


# ---------------------------------------------------------------- closes, complaints


async def test_a_wish_to_close_is_shown_to_the_provider_and_moves_nothing(served: Served) -> None:
    market = await Market.opened(served)
    lease, head = await market.lease(), await head_of(served)
    wish = codec.encode_value(market.close_of(lease))
    for _ in range(2):
        answer = await market.client.post("leases/close", wish, "application/msgpack")
        assert answer.json()["data"]["state"] == "open"
    listed = (await market.provider.post("leases/list", {"role": "provider"})).json()["data"]
    assert base64.b64decode(listed[0]["close_wish"]) == wish
    assert await head_of(served) == head
    mine = (await market.client.post("leases/list", {"role": "client"})).json()["data"]
    assert [(each["lease"], each["cap_uusd"], each["claimed_uusd"]) for each in mine] == [(lease.hex(), 100_000, 0)]
    await market.claim(lease, None, is_final=1)
    assert (await market.client.post("leases/list", {"role": "client"})).json()["data"] == []
    closed = (await market.client.post("leases/list", {"role": "client", "open": False})).json()["data"]
    assert [each["state"] for each in closed] == ["closed"]


async def test_only_the_payer_closes_and_only_its_client_brings_it(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    kind = "application/vnd.infernet.close"
    forged_wish = codec.encode_value(market.close_of(lease, make_key()))
    assert refused(await market.client.post("leases/close", forged_wish, kind)) == (403, "bad_signature")
    good = codec.encode_value(market.close_of(lease))
    assert refused(await market.provider.post("leases/close", good, kind)) == (404, "unknown_lease")
    assert (await market.provider.post("leases/list", {"role": "provider"})).json()["data"][0]["close_wish"] is None


async def test_both_sides_of_a_lease_complain_and_nobody_else(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    kind = "application/vnd.infernet.complaint"

    async def complain(sender: NodeClient, complainant: Any, attempt: int = 1) -> Any:
        return await sender.post(
            "complaints", codec.encode_value(market.complaint_of(lease, complainant, attempt)), kind
        )

    for _ in range(2):
        assert (await complain(market.provider, market.provider.key)).json() == {"data": {"recorded": True}}
    assert (await complain(market.client, market.payers[lease])).status_code == 200
    assert refused(await complain(market.client, market.client.key)) == (404, "unknown_lease")
    assert refused(await complain(market.provider, market.payers[lease])) == (404, "unknown_lease")
    async with served.app.core.database.reader() as reader:
        rows = await reader.execute_fetchall("SELECT count(*) FROM complaints")
    assert next(iter(rows))[0] == 2
    for attempt in range(2, 65):
        assert (await complain(market.provider, market.provider.key, attempt)).status_code == 200
    assert refused(await complain(market.provider, market.provider.key, 65)) == (429, "too_many_complaints")


# ---------------------------------------------------------------- wallet and head


async def test_wallet_and_history_say_what_happened(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    await market.claim(lease, 30_000)
    mine = (await market.client.post("wallet", {})).json()["data"]
    assert mine == {
        "available_uusd": 900_000,
        "locked_uusd": 70_000,
        "spent_uusd": 30_000,
        "earned_uusd": 0,
        "fees_uusd": 0,
        "relayed_uusd": 0,
        "payout_pending_uusd": 0,
        "withdrawn_uusd": 0,
    }
    history = (await market.client.post("wallet/history", {})).json()["data"]
    assert [(row["kind"], row["amount_uusd"]) for row in history] == [("open-lease", -100_000), ("deposit", 1_000_000)]
    assert history[0]["lease"] == lease.hex()
    older = (await market.client.post("wallet/history", {"before": history[0]["entry"], "limit": 1})).json()["data"]
    assert older == history[1:]
    theirs = (await market.provider.post("wallet/history", {})).json()["data"]
    assert [(row["kind"], row["amount_uusd"]) for row in theirs] == [("claim", 30_000)]


async def test_a_wallet_is_of_one_moment_and_its_reader_is_free_again(served: Served) -> None:
    market = await Market.opened(served)
    await market.lease()

    class Interrupted:
        """A reader between whose questions a lease is opened."""

        def __init__(self, reader: Any) -> None:
            self._reader = reader

        async def execute(self, statement: str) -> Any:
            return await self._reader.execute(statement)

        async def execute_fetchall(self, *words: Any) -> Any:
            rows = await self._reader.execute_fetchall(*words)
            await market.lease()
            return rows

    async with served.app.core.database.reader() as reader:
        found = await wallet.read(Interrupted(reader), market.client.key.node)  # type: ignore[arg-type]  # a double
        assert (found.available_uusd, found.locked_uusd) == (900_000, 100_000)
        later = await wallet.read(reader, market.client.key.node)
        assert (later.available_uusd, later.locked_uusd) == (400_000, 600_000)
        with pytest.raises(AttributeError):
            await wallet.read(reader, None)  # type: ignore[arg-type]  # fails in the middle
        assert not reader.in_transaction


async def test_the_signed_head_is_what_the_ledger_hashes_to(served: Served) -> None:
    market = await Market.opened(served)
    await market.lease()
    await served.app.core.settlement_upkeep.sign_head()
    answer = (await served.http.get("/api/v1/ledger/head")).json()
    signed = codec.decode_struct(base64.b64decode(answer["record"]), Signed, codec.CONTROL_LIMITS)
    record = open_record(signed, LedgerHeadRecord)
    assert (record.coordinator, record.head) == (served.key.node, await head_of(served))
    assert (answer["entry"], answer["head"]) == (record.entry, record.head.hex())


async def test_who_has_complained_much_keeps_nobody_else_from_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "COMPLAINTS_PER_SIDE_MAX", 2)
    market = await Market.opened(served)
    lease = await market.lease()
    kind, payer = "application/vnd.infernet.complaint", market.payers[lease]
    mine = [codec.encode_value(market.complaint_of(lease, payer, attempt)) for attempt in (1, 2, 3)]
    for body in mine[:2]:
        assert (await market.client.post("complaints", body, kind)).status_code == 200
    assert refused(await market.client.post("complaints", mine[2], kind)) == (429, "too_many_complaints")
    theirs = codec.encode_value(market.complaint_of(lease, market.provider.key))
    assert (await market.provider.post("complaints", theirs, kind)).status_code == 200
    # Whoever has lost the answer gets it again.
    for body in mine[:2]:
        assert (await market.client.post("complaints", body, kind)).status_code == 200


# ---------------------------------------------------------------- who may ask at all

ROUTES: dict[str, Callable[[Market], tuple[bytes | dict[str, Any], str]]] = {
    "leases/open": lambda m: (codec.encode_value(m.request()), "application/msgpack"),
    "claims": lambda m: (codec.encode_value(m.request()), "application/msgpack"),
    "leases/close": lambda m: (codec.encode_value(m.request()), "application/msgpack"),
    "complaints": lambda m: (codec.encode_value(m.request()), "application/msgpack"),
    "leases/list": lambda _: ({"role": "client"}, "application/json"),
    "wallet": lambda _: ({}, "application/json"),
    "wallet/history": lambda _: ({}, "application/json"),
}


@pytest.mark.parametrize("route", ROUTES)
async def test_r8_an_envelope_without_an_audience_moves_no_money(served: Served, route: str) -> None:
    market = await Market.opened(served)
    old_client = NodeClient(served, market.client.key, version=1)
    assert refused(await old_client.post(route, *ROUTES[route](market))) == (401, "auth_version")


@pytest.mark.parametrize("route", ["leases/open", "wallet"])
async def test_r8_an_envelope_for_another_coordinator_moves_no_money(served: Served, route: str) -> None:
    market = await Market.opened(served)
    body, kind = ROUTES[route](market)
    data = body if isinstance(body, bytes) else b"{}"
    target, other = f"/api/v1/node/{route}", make_key(5).node
    header = sign_request(market.client.key, other, "POST", target, data, served.clock(), 2**60, 1)
    headers = {"X-Infernet-Auth": header, "content-type": kind}
    assert refused(await served.http.post(target, content=data, headers=headers)) == (401, "unauthenticated")


async def test_r7_a_used_envelope_opens_no_second_lease(tmp_path: Path, clock: WallClock) -> None:
    async with serving(tmp_path, clock) as served:
        market = await Market.opened(served)
        data = codec.encode_value(market.request())
        target = "/api/v1/node/leases/open"
        headers = {"X-Infernet-Auth": market.client.header(target, data), "content-type": "application/msgpack"}
        assert (await served.http.post(target, content=data, headers=headers)).status_code == 200
        assert (await served.http.post(target, content=data, headers=headers)).status_code == 401
    async with serving(tmp_path, clock) as served:
        assert (await served.http.post(target, content=data, headers=headers)).status_code == 401


@pytest.mark.parametrize("route", ROUTES)
async def test_a_key_that_is_not_registered_is_told_so_and_leaves_nothing(served: Served, route: str) -> None:
    market = await Market.opened(served)
    stranger = NodeClient(served)
    market.client = stranger
    if route in ("leases/open", "leases/list", "wallet", "wallet/history"):
        assert refused(await stranger.post(route, *ROUTES[route](market))) == (404, "not_registered")
    async with served.app.core.database.reader() as reader:
        rows = await reader.execute_fetchall("SELECT 1 FROM replay_windows WHERE node = ?", (stranger.key.node,))
    assert not list(rows)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", ["application/msgpack", "application/json", "text/plain"])
async def test_nonsense_is_refused_with_a_code(served: Served, route: str, kind: str) -> None:
    market = await Market.opened(served)
    for body in (b"", b"\xc1", b"[]", b"\x92\xc4\x00\xc4\x00", b'{"role":1}', b'{"limit":0}', b"\xff" * 9, b"1e999"):
        status, code = refused(await market.client.post(route, body, kind))
        assert 400 <= status < 500
        assert code in ("bad_record", "bad_type", "bad_request")


@pytest.mark.parametrize("route", ["leases/list", "wallet", "wallet/history"])
async def test_a_word_that_is_not_known_is_refused_where_it_is_about_money(served: Served, route: str) -> None:
    market = await Market.opened(served)
    body, _ = ROUTES[route](market)
    assert isinstance(body, dict)
    assert refused(await market.client.post(route, {**body, "limits": 5})) == (400, "bad_request")
    assert (await market.client.post("heartbeat", {"role": "client", "limits": 5})).status_code == 200


async def test_when_the_ledger_is_stopped_only_money_stands_still(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    served.app.core.settlement.stop_because("a test says so")
    for route in ROUTES:
        answer = await market.client.post(route, *ROUTES[route](market))
        assert refused(answer) == (503, "ledger_stopped")
        assert answer.headers["Retry-After"]
    assert refused(await market.send(market.claim_of(lease, 1))) == (503, "ledger_stopped")
    assert (await market.provider.register()).status_code == 200
    assert (await served.http.get("/api/v1/ledger/head")).status_code == 200
    assert (await served.http.get("/api/health")).status_code == 200


# ---------------------------------------------------------------- exactly once


async def test_r1_a_claim_sent_a_hundred_times_at_once_settles_once(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    claim = market.claim_of(lease, 30_000, is_final=1)
    answers = await asyncio.gather(*(market.send(claim) for _ in range(100)))
    records = {credited_in(read_signed(answer), lease) for answer in answers}
    assert len(records) == 1
    assert await balance(served, available(market.provider.key.node)) == 30_000
    async with served.app.core.database.reader() as reader:
        rows = await reader.execute_fetchall("SELECT count(*) FROM entries WHERE kind = 'claim'")
    assert next(iter(rows))[0] == 1


async def test_r1_with_a_restart_between_all_steps_every_step_counts_once(tmp_path: Path, clock: WallClock) -> None:
    async with serving(tmp_path, clock) as served:
        market = await Market.opened(served)
        request = market.request()
    acknowledged: list[Credited] = []
    for _ in range(3):
        async with serving(tmp_path, clock) as served:
            market = market.moved(served)
            lease = open_record(read_signed(await market.ask_for(request)), LeaseRecord).lease
    for paid in (10, 20, 30):
        claim = market.claim_of(lease, paid, is_final=int(paid == 30))
        for _ in range(2):
            async with serving(tmp_path, clock) as served:
                market = market.moved(served)
                acknowledged.append(credited_in(read_signed(await market.send(claim))))
                await served.app.core.settlement_upkeep.check()
                assert served.app.core.settlement.stopped_because is None
                provider_uusd = await balance(served, available(market.provider.key.node))
                client_uusd = await balance(served, available(market.client.key.node))
    assert acknowledged[0::2] == acknowledged[1::2]
    assert (provider_uusd, client_uusd) == (30, 1_000_000 - 30)


async def test_r11_what_was_delivered_before_a_failure_is_paid_and_the_rest_comes_back(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    # The job broke off after 8 of 500 tokens: the last voucher that was signed is what counts.
    await market.claim(lease, 80, is_final=1)
    assert await balance(served, available(market.provider.key.node)) == 80
    assert await balance(served, available(market.client.key.node)) == 1_000_000 - 80


async def test_r2_a_provider_without_a_voucher_gets_nothing_whatever_it_says(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    assert (await market.claim(lease, None)).claimed_uusd == 0
    assert (await market.claim(lease, None, is_final=1)).claimed_uusd == 0
    assert await balance(served, available(market.provider.key.node)) == 0
    assert await balance(served, available(market.client.key.node)) == 1_000_000
