"""Clients, payers and providers at a served coordinator: they sign what moves money and send it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import httpx

from protocol import codec
from protocol.claims import lease_id
from protocol.envelope import SigningKey, open_record, sign_record
from protocol.ids import JobId, LeaseId, NodeId
from protocol.ledger import Deposit, Entry, Lease
from protocol.money_records import (
    ClaimRecord,
    CloseRecord,
    ComplaintKind,
    ComplaintRecord,
    Credited,
    LeaseRecord,
    LeaseRequestRecord,
    VoucherRecord,
)
from protocol.records import Signed
from tests.helpers_claims import credited_in
from tests.helpers_coordinator import NodeClient, Served, make_key

JOB = JobId(b"j" * 16)
_numbers = itertools.count(1)


def read_signed(answer: httpx.Response) -> Signed:
    """The signed record in an answer."""
    assert answer.status_code == 200, answer.text
    return codec.decode_struct(answer.content, Signed, codec.CONTROL_LIMITS)


def refused(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a refusal, which always has a sentence, too."""
    fields = answer.json()
    assert fields["error"]
    return answer.status_code, fields["code"]


def sign_voucher(payer: SigningKey, lease: LeaseId, paid_uusd: int, **changes: Any) -> Signed:
    """The payer owes so much in all."""
    fields = {
        "version": 1,
        "lease": lease,
        "payer": payer.node,
        "sequence": 1,
        "paid_uusd": paid_uusd,
        "job": JOB,
        "attempt": 1,
        "chunks": 1,
        "output_tokens": 8,
        "running_hash": bytes(32),
        "extensions": (),
        **changes,
    }
    return sign_record(VoucherRecord(**fields), payer)


def sign_claim(
    provider: SigningKey, lease: LeaseId, voucher: Signed | None, now_ms: int, *, is_final: int = 0
) -> Signed:
    """The provider redeems a voucher."""
    return sign_record(ClaimRecord(1, provider.node, lease, voucher, None, is_final, now_ms, ()), provider)


async def deposit(served: Served, node: NodeId, credit_uusd: int, payment: str | None = None) -> None:
    """Credit a key, as the gateway would."""
    command = Deposit(payment or f"payment-{next(_numbers)}", node, "BTC", 1, credit_uusd, 0)
    core = served.app.core
    verdict = await core.database.write(lambda tx: core.settlement.ledger.command(tx, command, core.wall_ms()))
    assert isinstance(verdict, Entry)


async def balance(served: Served, account: str) -> int:
    """What is in an account on disk."""
    async with served.app.core.database.reader() as reader:
        rows = await reader.execute_fetchall("SELECT balance FROM accounts WHERE name = ?", (account,))
    return next((int(row[0]) for row in rows), 0)


@dataclass
class Market:
    """A client with money, a provider, and the leases between them."""

    served: Served
    client: NodeClient
    provider: NodeClient
    payers: dict[LeaseId, SigningKey] = field(default_factory=dict)

    @classmethod
    async def opened(cls, served: Served, credit_uusd: int = 1_000_000) -> Market:
        """Both are registered, and the client has made a deposit."""
        market = cls(served, NodeClient(served), NodeClient(served))
        for node, role in ((market.client, "client"), (market.provider, "provider")):
            assert (await node.register(role=role)).status_code == 200
        await deposit(served, market.client.key.node, credit_uusd)
        return market

    def moved(self, served: Served) -> Market:
        """The same keys at a coordinator that was started again."""
        return Market(served, NodeClient(served, self.client.key), NodeClient(served, self.provider.key), self.payers)

    def request(self, payer: SigningKey | None = None, **changes: Any) -> Signed:
        """What the client signs to get a lease of 100,000."""
        payer = payer or make_key()
        fields = {
            "version": 1,
            "coordinator": self.served.key.node,
            "request": next(_numbers).to_bytes(16, "big"),
            "client": self.client.key.node,
            "payer": payer.node,
            "provider": self.provider.key.node,
            "relay": None,
            "relay_bps": 0,
            "cap_uusd": 100_000,
            "model": "m",
            "fingerprint": bytes(32),
            "price_in_uusd": 1,
            "price_out_uusd": 1,
            "price_job_uusd": 0,
            "serve_s": 600,
            "created_at_ms": self.served.clock(),
            "extensions": (),
            **changes,
        }
        signed = sign_record(LeaseRequestRecord(**fields), self.client.key)
        self.payers[lease_id(signed.body)] = payer
        return signed

    async def ask_for(self, request: Signed, sender: NodeClient | None = None) -> httpx.Response:
        """POST a request for a lease."""
        sender = sender or self.client
        return await sender.post("leases/open", codec.encode_value(request), "application/vnd.infernet.lease-request")

    async def lease(self, **changes: Any) -> LeaseId:
        """An open lease."""
        return open_record(read_signed(await self.ask_for(self.request(**changes))), LeaseRecord).lease

    def claim_of(self, lease: LeaseId, paid_uusd: int | None, *, is_final: int = 0) -> Signed:
        """A good claim; None claims nothing."""
        voucher = sign_voucher(self.payers[lease], lease, paid_uusd) if paid_uusd is not None else None
        return sign_claim(self.provider.key, lease, voucher, self.served.clock(), is_final=is_final)

    async def send(self, claim: Signed, sender: NodeClient | None = None) -> httpx.Response:
        """POST a claim."""
        return await (sender or self.provider).post("claims", codec.encode_value(claim), "application/msgpack")

    async def claim(self, lease: LeaseId, paid_uusd: int | None, *, is_final: int = 0) -> Credited:
        """POST a good claim, and read what the coordinator signed."""
        answer = await self.send(self.claim_of(lease, paid_uusd, is_final=is_final))
        return credited_in(read_signed(answer))

    def close_of(self, lease: LeaseId, payer: SigningKey | None = None) -> Signed:
        """The payer wants no more of it."""
        payer = payer or self.payers[lease]
        return sign_record(CloseRecord(1, lease, payer.node, 0, self.served.clock(), ()), payer)

    def complaint_of(self, lease: LeaseId, complainant: SigningKey, attempt: int = 1) -> Signed:
        """One side is not content."""
        record = ComplaintRecord(
            *(1, complainant.node, lease, JOB, attempt, ComplaintKind.STALLED, bytes(32), self.served.clock(), ())
        )
        return sign_record(record, complainant)

    async def row(self, lease: LeaseId) -> Lease:
        """The lease in the ledger."""
        core = self.served.app.core

        def read(tx: Any) -> Lease | None:
            with core.settlement.ledger.begin(tx) as ledger:
                return ledger.lease(lease)

        found = await core.database.write(read)
        assert found is not None
        return found
