"""infernet/money/client.py: what comes back from a coordinator about money, and what of it is final."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from infernet.coordinator_client import CoordinatorError, CoordinatorRefused, CoordinatorUnreachable, RequestSigner
from infernet.driver import wall_ms
from infernet.money.client import FINAL_CLAIM_CODES, FINAL_CODES, MoneyClient, is_final, read_signed
from tests.helpers_money_server import BANK, MoneyServer, Refusal, money_server
from tests.helpers_money_store import acknowledgement, lease
from tests.helpers_records import ASKER

pytestmark = pytest.mark.anyio


def client_of(url: str) -> MoneyClient:
    return MoneyClient(url, RequestSigner(ASKER, BANK.node, wall_ms), lambda: {"role": "client"})


@asynccontextmanager
async def talking(**changes: Any) -> AsyncIterator[tuple[MoneyServer, MoneyClient]]:
    async with money_server(**changes) as server:
        client = client_of(server.url)
        try:
            yield server, client
        finally:
            await client.aclose()


async def test_records_go_as_they_are_signed_and_come_back_as_they_were() -> None:
    async with talking() as (server, client):
        server.answers = {"leases/open": lease(), "claims": acknowledgement(9), "close": {"state": "open"}}
        assert await client.open_lease(lease(2)) == lease()
        assert await client.claim(lease(3)) == acknowledgement(9)
        assert await client.close_lease(lease(4)) == {"state": "open"}
        assert [asked.signed for asked in server.asked] == [lease(2), lease(3), lease(4)]
        assert {asked.sender for asked in server.asked} == {ASKER.node}


@pytest.mark.parametrize("ahead_ms", [-7_200_000, -61_000, 0, 61_000, 7_200_000])
async def test_a_clock_that_is_wrong_keeps_nobody_from_the_money(ahead_ms: int) -> None:
    async with talking(ahead_ms=ahead_ms) as (server, client):
        server.answers = {"wallet": {"available_uusd": 5}}
        assert await client.ask("wallet", {}) == {"available_uusd": 5}
        assert server.refused_envelopes == bool(ahead_ms)


async def test_a_time_that_is_not_the_coordinators_is_not_believed() -> None:
    async with talking(ahead_ms=7_200_000, key=ASKER) as (_, client):
        with pytest.raises(CoordinatorRefused, match="refused this node's signature") as raised:
            await client.ask("wallet", {})
        assert not is_final(raised.value)


async def test_a_request_that_was_overtaken_is_signed_again() -> None:
    async with talking() as (server, client):
        server.answers = {"wallet": {}}
        server.window.accept(client._signer._counter + 1)
        assert await client.ask("wallet", {}) == {}
        assert server.refused_envelopes == 1


async def test_a_node_that_is_not_known_registers_and_asks_again() -> None:
    async with talking(is_registered=False) as (server, client):
        server.answers = {"wallet": {"available_uusd": 5}}
        assert await client.ask("wallet", {}) == {"available_uusd": 5}
        assert [asked.target.rpartition("/")[2] for asked in server.asked] == ["wallet", "register", "wallet"]
        assert server.asked[1].fields == {"role": "client"}


@pytest.mark.parametrize(
    ("refusal", "final"),
    [
        (Refusal(402, code="insufficient_funds"), True),
        (Refusal(403, code="wrong_provider"), True),
        (Refusal(404, code="unknown_lease"), True),
        (Refusal(409, code="lease_closed"), True),
        (Refusal(400, code="bad_record"), True),
        (Refusal(400, code="stale"), False),
        (Refusal(401, code="auth_version"), False),
        (Refusal(404), False),
        (Refusal(404, code="something_new"), False),
        (Refusal(408), False),
        (Refusal(429, code="too_many_leases"), False),
        (Refusal(500), False),
        (Refusal(503, code="ledger_stopped"), False),
        (Refusal(503, code="lease_closed"), False),
    ],
    ids=lambda value: f"{value.status}-{value.code}" if isinstance(value, Refusal) else None,
)
async def test_only_what_the_coordinator_itself_says_for_good_is_final(refusal: Refusal, final: bool) -> None:
    async with talking(answers={"claims": refusal}) as (_, client):
        with pytest.raises(CoordinatorRefused) as raised:
            await client.claim(lease())
        assert is_final(raised.value) is final


@pytest.mark.parametrize("code", sorted(FINAL_CODES | {"something_new", ""}))
async def test_a_claim_is_refused_for_good_where_its_lease_is_closed_or_another_provider_s(code: str) -> None:
    async with talking(answers={"claims": Refusal(409, code=code)}) as (_, client):
        with pytest.raises(CoordinatorRefused) as raised:
            await client.claim(lease())
        assert is_final(raised.value, FINAL_CLAIM_CODES) is (code in ("lease_closed", "wrong_provider"))


@pytest.mark.parametrize("answer", [b"", b"<html>", b"\x93\x01\x02\x03", b"\xc1" * 100])
async def test_an_answer_that_is_no_record_is_an_error_and_not_final(answer: bytes) -> None:
    async with talking(answers={"claims": answer}) as (_, client):
        with pytest.raises(CoordinatorError) as raised:
            await client.claim(lease())
        assert not is_final(raised.value)


@pytest.mark.parametrize("answer", [b"[]", b"{}", b"null", b"[" * 100_000])
async def test_an_answer_without_data_is_an_error(answer: bytes) -> None:
    async with talking(answers={"wallet": answer}) as (_, client):
        with pytest.raises(CoordinatorError):
            await client.ask("wallet", {})


async def test_nobody_there_is_not_final() -> None:
    async with money_server() as server:
        url = server.url
    client = client_of(url)
    with pytest.raises(CoordinatorUnreachable) as raised:
        await client.claim(lease())
    assert not is_final(raised.value)
    await client.aclose()


@pytest.mark.parametrize("word", [None, 5, "", "====", "not base64", "AAAA", "é"])
def test_what_is_no_record_in_json_is_none(word: object) -> None:
    assert read_signed(word) is None


async def test_what_a_registration_says_follows_from_the_node_and_not_from_whoever_asks() -> None:
    async with talking() as (server, client):
        await client.ask("register", {"status": "offline", "role": "provider", "address": "203.0.113.7"})
        (registered,) = server.to("/register")
    assert registered.fields == {"status": "offline", "address": "203.0.113.7", "role": "client"}
