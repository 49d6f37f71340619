"""Whatever is signed and sent about money that is not good: one answer for each, over HTTP as over the link, and after
it every table is what it was before.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import pytest

from protocol import codec
from protocol import link as wire
from protocol.envelope import SigningKey
from protocol.errors import RemoteProtocolError
from protocol.ids import LeaseId
from protocol.money_records import ClaimRecord, CloseRecord, ComplaintRecord, LeaseRequestRecord, VoucherRecord
from protocol.records import Record, Signed
from tests.helpers_coordinator import NodeClient, Served, make_key, open_link, serving
from tests.helpers_money import Market, refused, sign_claim, sign_voucher

pytestmark = pytest.mark.anyio

HOUR_MS = 3_600_000
# An envelope is used up also by what is refused, and the coordinator notes all the time that it is alive.
NOT_OF_MONEY: Final = ("replay_windows", "settlement")
OPEN, CLAIMS, CLOSE, COMPLAIN = "leases/open", "claims", "leases/close", "complaints"


@dataclass
class Scene:
    """A market with a lease on which 50 were claimed, one that was given up, one that has ended, and a thief."""

    market: Market
    thief: NodeClient
    lease: LeaseId
    closed: LeaseId
    expired: LeaseId

    @property
    def now_ms(self) -> int:
        return self.market.served.clock()

    def voucher(self, paid_uusd: int, lease: LeaseId | None = None, **changes: Any) -> Signed:
        lease = lease or self.lease
        return sign_voucher(self.market.payers[lease], lease, paid_uusd, **changes)

    def claim(self, voucher: Signed | None, lease: LeaseId | None = None, key: SigningKey | None = None) -> Signed:
        return sign_claim(key or self.market.provider.key, lease or self.lease, voucher, self.now_ms)


@pytest.fixture
async def scene(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr("coordinator.core.settlement_upkeep.GAP_MS_MAX", 2**40)
    async with serving(tmp_path_factory.mktemp("home")) as served:
        market, thief = await Market.opened(served), NodeClient(served)
        await thief.register()
        expired = await market.lease()
        served.clock.offset_ms += 2 * HOUR_MS
        await served.app.core.settlement_upkeep.tick()
        assert (await market.row(expired)).is_closed
        lease, closed = await market.lease(), await market.lease()
        await market.claim(lease, 50)
        await market.claim(closed, 50, is_final=1)
        yield Scene(market, thief, lease, closed, expired)


async def everything(served: Served) -> dict[str, str]:
    """A hash of each table, but for what every request changes."""
    async with served.app.core.database.reader() as reader:
        names = await reader.execute_fetchall("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
        found = {}
        for (name,) in names:
            if name not in NOT_OF_MONEY:
                rows = await reader.execute_fetchall(f"SELECT * FROM {name}")
                found[name] = hashlib.sha256(repr([tuple(row) for row in rows]).encode()).hexdigest()
    assert {"entries", "leases", "lease_records", "complaints", "close_wishes", "accounts"} <= set(found)
    return found


async def send(sender: NodeClient, route: str, signed: Signed | bytes) -> tuple[int, str]:
    body = signed if isinstance(signed, bytes) else codec.encode_value(signed)
    answer = await sender.post(route, body, "application/msgpack")
    return (200, "") if answer.status_code == 200 else refused(answer)


async def claim_over_the_link(sender: NodeClient, claim: Signed) -> str:
    socket, _ = await open_link(sender)
    await socket.receive()
    await socket.send(wire.encode_frame(wire.ClaimFrame(1, (claim,))))
    async with asyncio.timeout(10):
        while not isinstance(frame := wire.decode_frame(await socket.receive()), wire.ClaimAnswer):
            pass
    await socket.abort()
    return frame.refusals[0].code if frame.refusals else ""


# ---------------------------------------------------------------- well made, and not good

Client, Provider, Thief = "client", "provider", "thief"
Bad = tuple[str, str, Callable[[Scene], Signed], tuple[int, str]]

BAD: Final[dict[str, Bad]] = {
    "lease: for another coordinator": (
        OPEN,
        Client,
        lambda s: s.market.request(coordinator=make_key(5).node),
        (403, "bad_signature"),
    ),
    "lease: of another client": (OPEN, Thief, lambda s: s.market.request(), (403, "wrong_sender")),
    "lease: signed with nonsense": (
        OPEN,
        Client,
        lambda s: Signed(s.market.request().body, secrets.token_bytes(64)),
        (403, "bad_signature"),
    ),
    "lease: for more than there is": (
        OPEN,
        Client,
        lambda s: s.market.request(cap_uusd=1_000_001),
        (402, "insufficient_funds"),
    ),
    "lease: too old": (
        OPEN,
        Client,
        lambda s: s.market.request(created_at_ms=s.now_ms - 61_000),
        (400, "stale"),
    ),
    "lease: from the future": (
        OPEN,
        Client,
        lambda s: s.market.request(created_at_ms=s.now_ms + 62_000),
        (400, "stale"),
    ),
    "lease: at the end of time": (
        OPEN,
        Client,
        lambda s: s.market.request(created_at_ms=2**63 - 1),
        (400, "stale"),
    ),
    "lease: its client pays itself": (
        OPEN,
        Client,
        lambda s: s.market.request(s.market.client.key),
        (400, "bad_record"),
    ),
    "claim: on no lease": (
        CLAIMS,
        Provider,
        lambda s: s.claim(None, LeaseId(b"x" * 32)),
        (404, "unknown_lease"),
    ),
    "claim: sent by somebody else": (CLAIMS, Thief, lambda s: s.claim(s.voucher(60)), (403, "wrong_sender")),
    "claim: on a lease of another provider": (
        CLAIMS,
        Thief,
        lambda s: s.claim(s.voucher(60), key=s.thief.key),
        (403, "wrong_provider"),
    ),
    "claim: on a lease of another provider, of nothing": (
        CLAIMS,
        Thief,
        lambda s: s.claim(None, key=s.thief.key),
        (403, "wrong_provider"),
    ),
    "claim: signed with nonsense": (
        CLAIMS,
        Provider,
        lambda s: Signed(s.claim(s.voucher(60)).body, secrets.token_bytes(64)),
        (403, "bad_signature"),
    ),
    "claim: with a voucher signed with nonsense": (
        CLAIMS,
        Provider,
        lambda s: s.claim(Signed(s.voucher(60).body, bytes(64))),
        (403, "bad_signature"),
    ),
    "claim: with a voucher of another lease": (
        CLAIMS,
        Provider,
        lambda s: s.claim(s.voucher(60, s.closed)),
        (403, "bad_signature"),
    ),
    "claim: with a voucher of the provider's own": (
        CLAIMS,
        Provider,
        lambda s: s.claim(sign_voucher(s.market.provider.key, s.lease, 60)),
        (403, "bad_signature"),
    ),
    "claim: with a voucher that is a claim": (
        CLAIMS,
        Provider,
        lambda s: s.claim(s.claim(None)),
        (400, "bad_record"),
    ),
    "claim: after the lease was given up": (
        CLAIMS,
        Provider,
        lambda s: s.claim(s.voucher(51, s.closed), s.closed),
        (409, "lease_closed"),
    ),
    "claim: after the lease has ended": (
        CLAIMS,
        Provider,
        lambda s: s.claim(s.voucher(1, s.expired), s.expired),
        (409, "lease_closed"),
    ),
    # To say again, or late, what was said before is no fault, and does nothing.
    "claim: again": (CLAIMS, Provider, lambda s: s.claim(s.voucher(50)), (200, "")),
    "claim: of an older voucher": (CLAIMS, Provider, lambda s: s.claim(s.voucher(49)), (200, "")),
    "claim: of an older voucher with a higher number": (
        CLAIMS,
        Provider,
        lambda s: s.claim(s.voucher(1, sequence=2**63 - 1)),
        (200, ""),
    ),
    "claim: again, after the lease was given up": (
        CLAIMS,
        Provider,
        lambda s: s.claim(s.voucher(50, s.closed), s.closed),
        (200, ""),
    ),
    "close: of no lease": (
        CLOSE,
        Client,
        lambda s: s.market.close_of(LeaseId(b"x" * 32), make_key(5)),
        (404, "unknown_lease"),
    ),
    "close: of another client's lease": (CLOSE, Thief, lambda s: s.market.close_of(s.lease), (404, "unknown_lease")),
    "close: by its provider": (CLOSE, Provider, lambda s: s.market.close_of(s.lease), (404, "unknown_lease")),
    "close: not by its payer": (
        CLOSE,
        Client,
        lambda s: s.market.close_of(s.lease, s.market.client.key),
        (403, "bad_signature"),
    ),
    "close: signed with nonsense": (
        CLOSE,
        Client,
        lambda s: Signed(s.market.close_of(s.lease).body, bytes(64)),
        (403, "bad_signature"),
    ),
    "close: of a lease that was given up": (CLOSE, Client, lambda s: s.market.close_of(s.closed), (200, "")),
    "close: of a lease that has ended": (CLOSE, Client, lambda s: s.market.close_of(s.expired), (200, "")),
    "complaint: on no lease": (
        COMPLAIN,
        Client,
        lambda s: s.market.complaint_of(LeaseId(b"x" * 32), s.market.client.key),
        (404, "unknown_lease"),
    ),
    "complaint: of a stranger": (
        COMPLAIN,
        Thief,
        lambda s: s.market.complaint_of(s.lease, s.thief.key),
        (404, "unknown_lease"),
    ),
    "complaint: by the payer, sent by a stranger": (
        COMPLAIN,
        Thief,
        lambda s: s.market.complaint_of(s.lease, s.market.payers[s.lease]),
        (404, "unknown_lease"),
    ),
    "complaint: by the provider, sent by the client": (
        COMPLAIN,
        Client,
        lambda s: s.market.complaint_of(s.lease, s.market.provider.key),
        (404, "unknown_lease"),
    ),
    "complaint: signed with nonsense": (
        COMPLAIN,
        Client,
        lambda s: Signed(s.market.complaint_of(s.lease, s.market.payers[s.lease]).body, bytes(64)),
        (403, "bad_signature"),
    ),
}


async def test_what_is_not_good_gets_one_answer_everywhere_and_changes_nothing(scene: Scene) -> None:
    served = scene.market.served
    senders = {Client: scene.market.client, Provider: scene.market.provider, Thief: scene.thief}
    wrong = {}
    for name, (route, who, signed_of, expected) in BAD.items():
        signed = signed_of(scene)
        before = await everything(served)
        told = [await send(senders[who], route, signed)]
        if route == CLAIMS:
            told.append((told[0][0], await claim_over_the_link(senders[who], signed)))
        if set(told) != {expected}:
            wrong[name] = f"{told} in place of {expected}"
        elif await everything(served) != before:
            wrong[name] = "something has changed"
    assert not wrong


# ---------------------------------------------------------------- not well made

# In every field; and of those that no field takes, two more in turn.
VALUES: Final = (None, -1, "1", bytes(31))
NO_VALUES: Final[tuple[Any, ...]] = (
    *(True, 1.0, 1.5, math.nan, math.inf, 2**63, 2**64 - 1, -(2**63), {}, [[]]),
    *(msgpack.ExtType(1, b"x"), msgpack.Timestamp(1, 0)),
)
# What an answer to a record may say that could be read; whether it must be granted is another question.
READABLE: Final = {
    *((200, ""), (400, "stale"), (400, "bad_record"), (402, "insufficient_funds"), (403, "bad_signature")),
    *((403, "wrong_sender"), (404, "unknown_lease"), (409, "conflict")),
}


@dataclass
class Kind:
    """A record that is good, who signs it, and where it is sent by whom."""

    record: type[Record]
    route: str
    sender: NodeClient
    signer: SigningKey
    good: Signed
    wrapped: Callable[[Signed], Signed] = lambda signed: signed


def kinds(scene: Scene) -> list[Kind]:
    market, payer = scene.market, scene.market.payers[scene.lease]
    client, provider = market.client, market.provider
    return [
        Kind(LeaseRequestRecord, OPEN, client, client.key, market.request()),
        Kind(ClaimRecord, CLAIMS, provider, provider.key, scene.claim(scene.voucher(50))),
        Kind(VoucherRecord, CLAIMS, provider, payer, scene.voucher(50), scene.claim),
        Kind(CloseRecord, CLOSE, client, payer, market.close_of(scene.lease)),
        Kind(ComplaintRecord, COMPLAIN, client, payer, market.complaint_of(scene.lease, payer)),
    ]


def altered(good: bytes) -> list[tuple[str, bytes]]:
    """The body with one field less, one more, or one replaced by each value."""
    fields = msgpack.unpackb(good)
    some = [("nothing in it", []), ("one less", fields[:-1]), ("one more", [*fields, 0])]
    some += [
        (f"field {place}: {value!r}", [*fields[:place], value, *fields[place + 1 :]])
        for place in range(len(fields))
        for value in (*VALUES, *(NO_VALUES[(2 * place + more) % len(NO_VALUES)] for more in (0, 1)))
    ]
    return [(name, msgpack.packb(each)) for name, each in some] + [("bytes after it", good + b"\xc0")]


@pytest.mark.slow
async def test_no_field_of_a_record_takes_another_type_or_a_number_that_is_none(scene: Scene) -> None:
    served, wrong, unread = scene.market.served, {}, 0
    for kind in kinds(scene):
        before = await everything(served)
        for name, body in altered(kind.good.body):
            signed = kind.wrapped(Signed(body, kind.signer.sign(kind.record.TAG, body)))
            is_readable = can_be_read(body, kind.record)
            answer = await send(kind.sender, kind.route, signed)
            if answer not in (READABLE if is_readable else {(400, "bad_record")}):
                wrong[f"{kind.record.__name__}, {name}"] = answer
            if answer[0] == 200:
                assert is_readable
                before = await everything(served)
            unread += not is_readable
        if await everything(served) != before:
            wrong[kind.record.__name__] = (0, "something has changed")
    assert not wrong
    assert unread > 250


def can_be_read(body: bytes, record: type[Record]) -> bool:
    try:
        codec.decode_record(body, record)
    except RemoteProtocolError:
        return False
    return True


# ---------------------------------------------------------------- bodies of JSON

NUMBERS: Final = (
    "null",
    "true",
    '"5"',
    "-1",
    "0",
    "1.5",
    "NaN",
    "1e999",
    f"{2**63}",
    f"{2**64}",
    "9" * 400,
    "[]",
    "{}",
)
BODIES: Final[dict[str, tuple[str, ...]]] = {
    "leases/list": (
        *(
            '{"role":"client","more":1}',
            "{}",
            "[]",
            "7",
            "null",
            '{"role":"king"}',
            '{"role":1}',
            '{"role":null}',
            '{"role":["client"]}',
        ),
        *('{"role":"client","open":1}', '{"role":"client","open":"true"}', '{"role":"client","open":null}'),
        *(f'{{"role":"client","limit":{number}}}' for number in (*NUMBERS, "101")),
    ),
    "wallet": ('{"more":1}', "[]", "7", "null", '"x"', "NaN", ""),
    "wallet/history": (
        *('{"more":1}', "[]", "7", "null", '"x"'),
        *(f'{{"limit":{number}}}' for number in (*NUMBERS, "101")),
        *(f'{{"before":{number}}}' for number in NUMBERS),
    ),
}


async def test_no_body_of_json_takes_another_type_or_a_number_that_is_none(scene: Scene) -> None:
    served, wrong = scene.market.served, {}
    before = await everything(served)
    for route, bodies in BODIES.items():
        for body in bodies:
            answer = await scene.market.client.post(route, body.encode())
            if answer.status_code == 200 or refused(answer) != (400, "bad_request"):
                wrong[f"{route} {body[:60]}"] = answer.text
    assert not wrong
    assert await everything(served) == before
