"""specs/vectors/money-http.json, sent to a coordinator that is really served, beside a fake gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers_coordinator import WallClock
from tests.helpers_fake_gateway import fake_gateway
from tests.helpers_money import deposit, refused
from tests.helpers_payments_served import Paid, paid_serving
from tests.helpers_vectors import load

pytestmark = pytest.mark.anyio

TABLES = ("deposits", "payout_addresses", "payout_keys", "payout_intents")


async def kept_of(paid: Paid) -> list[int]:
    """What a refusal must leave alone: the client's money, and how many rows there are."""
    kept = [await paid.available()]
    async with paid.served.app.core.database.reader() as reader:
        for table in TABLES:
            rows = await reader.execute_fetchall(f"SELECT count(*) FROM {table}")
            kept += [next(iter(rows))[0]]
    return kept


async def test_what_is_answered_to_bodies_about_money(tmp_path: Path, clock: WallClock) -> None:
    last: dict[str, Any] = {}
    with fake_gateway() as fake:
        async with paid_serving(tmp_path, fake, clock, deposit_uusd_min=1_000_000) as paid:
            await deposit(paid.served, paid.client.key.node, 20_000_000)
            for vector in load("money-http"):
                paid.pass_time(1000 * vector.get("after_s", 0))
                kept = await kept_of(paid)
                answer = await paid.client.post(vector["route"], vector["body"].encode())
                comment = vector["comment"]
                if not vector["valid"]:
                    assert refused(answer) == (vector["status"], vector["code"]), comment
                    assert await kept_of(paid) == kept, comment
                    continue
                assert answer.status_code == vector["status"], (comment, answer.text)
                found = answer.json()
                for name in vector["at"]:
                    found = found[name]
                assert sorted(found) == vector["has"], comment
                if "repeats" in vector:
                    number = "invoiceId" if "invoiceId" in found else "id"
                    assert found[number] == last[number], comment
                last = found


def test_every_route_about_money_that_takes_json_has_vectors_of_both_kinds() -> None:
    routes = {
        valid: {vector["route"] for vector in load("money-http") if vector["valid"] is valid} for valid in (True, False)
    }
    assert routes[True] == {
        *("wallet", "wallet/history", "leases/list", "deposits", "deposits/list", "payments/list"),
        *("payouts/set", "payouts/list", "payouts/remove", "payouts/request"),
    }
    assert routes[False] >= {"wallet", "wallet/history", "leases/list", "deposits", "deposits/list"}
    assert routes[False] >= {"payouts/set", "payouts/key", "payouts/remove", "payouts/request"}
