"""The world around a ledger with real signatures: requests and claims go through `claims`, and forgeries are tried."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import lru_cache, partial

from msgspec.structs import replace

from protocol.claims import (
    Terms,
    check_close,
    check_evidence,
    claim_command,
    open_claim,
    open_lease_request,
)
from protocol.codec import encode_record
from protocol.envelope import SigningKey, sign_record
from protocol.errors import RemoteProtocolError
from protocol.ids import JobId, LeaseId, NodeId
from protocol.ledger import AnyCommand, Claim, Lease, OpenLease
from protocol.money_records import ClaimRecord, CloseRecord, LeaseRequestRecord, VoucherRecord
from protocol.records import Record, Signed
from tests.helpers_ledger_checkers import NAMES, Violation
from tests.helpers_ledger_history import Asked
from tests.helpers_ledger_world import DAY, FEES_BPS, GRACE_S, SERVE_S_MAX, World, live, name_of

_JOB = JobId(bytes(16))
_HASH = bytes(32)


@lru_cache(maxsize=1024)
def secret_of(*parts: object) -> SigningKey:
    """Somebody's key; its auxiliary randomness is zero."""
    return SigningKey(name_of("secret", *parts), bytes)


COORDINATOR = secret_of("coordinator")
STRANGER = secret_of("stranger")


class SignedWorld(World):
    """The same people with keys. `forge` and `tamper` try what they have no right to."""

    def __init__(self, checks: Iterable[str] = NAMES, fee_bps: int = 100) -> None:
        self.secrets: dict[NodeId, SigningKey] = {STRANGER.node: STRANGER}
        super().__init__(checks, fee_bps)
        self.terms = Terms(fee_bps=fee_bps, relay_bps_max=2_000, serve_s_max=SERVE_S_MAX, claim_s=GRACE_S)

    def key(self, *parts: object) -> NodeId:
        secret = secret_of(*parts)
        self.secrets[secret.node] = secret
        return secret.node

    # ------------------------------------------------------------ honest

    def request(self, number: int, client: NodeId, asked: Asked, serve_s: int) -> OpenLease:
        record = self.request_record(number, client, asked, serve_s)
        signed = sign_record(record, self.secrets[client])
        return open_lease_request(signed, COORDINATOR.node, self.terms, self.history.now_ms)[1]

    def request_record(self, number: int, client: NodeId, asked: Asked, serve_s: int) -> LeaseRequestRecord:
        """What a client signs."""
        return LeaseRequestRecord(
            version=1,
            coordinator=COORDINATOR.node,
            request=number.to_bytes(16, "big"),
            client=client,
            payer=asked.payer,
            provider=asked.provider,
            relay=asked.relay,
            relay_bps=asked.relay_bps,
            cap_uusd=asked.cap_uusd,
            model="a model",
            fingerprint=_HASH,
            price_in_uusd=1,
            price_out_uusd=1,
            price_job_uusd=1,
            serve_s=serve_s,
            created_at_ms=self.history.now_ms,
            extensions=(),
        )

    def voucher_claim(self, lease: LeaseId, paid_uusd: int, claimant: NodeId, *, is_final: bool) -> Claim:
        asked = self.history.leases[lease]
        row = self.book.lease(lease)
        if row is None:
            return super().voucher_claim(lease, paid_uusd, claimant, is_final=is_final)
        record = sign_record(voucher(lease, asked.payer, paid_uusd), self.secrets[asked.payer])
        claim = ClaimRecord(1, claimant, lease, record, None, int(is_final), self.history.now_ms, ())
        return claim_command(open_claim(sign_record(claim, self.secrets[claimant])), row)

    def deliver(self, command: AnyCommand, **how: object) -> bool:
        is_entry = super().deliver(command, **how)
        if is_entry and isinstance(command, (OpenLease, Claim)):
            try:
                check_evidence(self.book, command)
            except RemoteProtocolError as error:
                raise Violation({"evidence": f"a good {type(command).__name__} has none: {error}"}) from None
            self.tamper(command)
        return is_entry

    # ------------------------------------------------------------ forged

    def must_fail(self, what: str, check: Callable[[], object]) -> None:
        """Whatever this is, it must not pass for good."""
        try:
            check()
        except RemoteProtocolError:
            return
        raise Violation({"forged": what})

    def tamper(self, command: OpenLease | Claim) -> None:
        """Alter a command that was carried out, as somebody would who wants another ledger believed."""
        changes: list[dict[str, object]]
        if isinstance(command, OpenLease):
            changes = [
                {"cap_uusd": command.cap_uusd + 1},
                {"relay_bps": command.relay_bps + 1},
                {"relay": STRANGER.node},
                {"client": STRANGER.node},
                {"payer": STRANGER.node},
                {"provider": STRANGER.node},
                {"lease": LeaseId(_HASH)},
            ]
        else:
            own = sign_record(voucher(command.lease, STRANGER.node, 1), STRANGER)
            changes = [
                {"paid_uusd": command.paid_uusd + 1},
                {"lease": LeaseId(_HASH)},
                {"paid_uusd": 1, "voucher": own},
                {"paid_uusd": 1, "voucher": None},
            ]
        for change in changes:
            what = f"evidence of a {type(command).__name__} with {', '.join(change)} changed"
            self.must_fail(what, partial(check_evidence, self.book, replace(command, **change)))

    def forge_claim(self, index: int, kind: int) -> None:
        """Claim with a voucher that this lease's payer has not signed for this lease."""
        rows = [row for lease in self.leases if (row := self.book.lease(lease)) is not None]
        if not rows:
            return
        row = rows[index % len(rows)]
        # Of the same people: a payer is a key of one lease alone, and yet nothing may depend on that.
        elsewhere = replace(row, lease=LeaseId(_HASH))
        provider, payer = self.secrets[row.provider], self.secrets[row.payer]
        much = voucher(row.lease, row.payer, row.cap_uusd)
        for_other = sign_record(voucher(elsewhere.lease, row.payer, row.cap_uusd), payer)
        kinds: tuple[tuple[str, Callable[[], object]], ...] = (
            ("a voucher signed by the provider", lambda: self._open_claim(row, under(much, provider))),
            ("a voucher of a stranger", lambda: self._open_claim(row, own_voucher(row))),
            ("a voucher signed as a close", lambda: self._open_claim(row, under(much, payer, CloseRecord.TAG))),
            ("a voucher for another lease", lambda: self._open_claim(row, for_other)),
            ("a claim signed by a stranger", lambda: self._open_claim(row, sign_record(much, payer), STRANGER)),
            ("a claim on another lease", lambda: self._open_claim(elsewhere, None, named=row)),
            ("a close signed by the provider", lambda: check_close(under(close(row), provider), row)),
            ("the close of a stranger", lambda: check_close(sign_record(close(row, STRANGER.node), STRANGER), row)),
            ("a close of another lease", lambda: check_close(sign_record(close(row), payer), elsewhere)),
        )
        what, check = kinds[kind % len(kinds)]
        self.must_fail(what, check)

    def _open_claim(
        self, row: Lease, record: Signed | None, signer: SigningKey | None = None, named: Lease | None = None
    ) -> Claim:
        claim = ClaimRecord(1, row.provider, (named or row).lease, record, None, 1, self.history.now_ms, ())
        return claim_command(open_claim(under(claim, signer or self.secrets[row.provider])), row)

    def forge_request(self, client: int, kind: int) -> None:
        """Ask for a lease that must not be granted, whoever has how much."""
        key = self.clients[client % len(self.clients)]
        now_ms = self.history.now_ms
        payer = self.payer(1_000_000)
        asked = Asked(f"available:{key.hex()}", payer, self.providers[0], None, 0, self.fee_bps, 1, now_ms, now_ms)
        good = self.request_record(1_000_000, key, asked, 60)
        bad: list[tuple[str, Signed]] = [
            (name, sign_record(replace(good, **change), self.secrets[key]))
            for name, change in (
                ("asked of another coordinator", {"coordinator": STRANGER.node}),
                ("from the past", {"created_at_ms": now_ms - 60_001}),
                ("from the future", {"created_at_ms": now_ms + 60_001}),
                ("paid by the client's own key", {"payer": key}),
                ("paid by the provider", {"payer": asked.provider}),
                ("a cut for no relay", {"relay_bps": 1}),
                ("a cut too high", {"relay": STRANGER.node, "relay_bps": 2_001}),
            )
        ]
        bad.append(("signed by a stranger", under(good, STRANGER)))
        bad.append(("signed by the payer", under(good, self.secrets[payer])))
        bad.append(("signed as a lease", under(good, self.secrets[key], "infernet/lease/1")))
        what, signed = bad[kind % len(bad)]
        self.must_fail(
            f"a request {what}", lambda: open_lease_request(signed, COORDINATOR.node, self.terms, self.history.now_ms)
        )


def voucher(lease: LeaseId, payer: NodeId, paid_uusd: int) -> VoucherRecord:
    """So much is owed on this lease in all."""
    return VoucherRecord(1, lease, payer, 1, paid_uusd, _JOB, 1, 1, 1, _HASH, ())


def own_voucher(row: Lease) -> Signed:
    """A stranger owes everything on somebody else's lease."""
    return sign_record(voucher(row.lease, STRANGER.node, row.cap_uusd), STRANGER)


def close(row: Lease, payer: NodeId | None = None) -> CloseRecord:
    """No more of this lease is wanted."""
    return CloseRecord(1, row.lease, payer or row.payer, 0, 0, ())


def under(record: Record, signer: SigningKey, tag: str | None = None) -> Signed:
    """A record with a signature that need not be its signer's, or stands for something else."""
    body = encode_record(record)
    return Signed(body, signer.sign(tag or record.TAG, body))


def live_signed(world: SignedWorld, dice: random.Random, steps: int) -> None:
    """Let anything happen, forgeries among it. Raises Violation."""
    for client in range(3):
        world.deposit(client, dice.randrange(1_000, 1_000_000))
    world.budget(DAY, 1_000_000)
    while world.steps < steps:
        live(world, dice, world.steps + 8)
        world.forge_claim(dice.randrange(64), dice.randrange(64))
        world.forge_request(dice.randrange(3), dice.randrange(64))


def signed_histories(seed: int, count: int, steps: int, checks: Iterable[str] = NAMES) -> int:
    """Live through so many histories of so many steps; how many steps there were. Raises Violation."""
    names = tuple(checks)
    total = 0
    for number in range(count):
        dice = random.Random(f"signed {seed} {number}")
        world = SignedWorld(names, fee_bps=dice.choice(FEES_BPS))
        live_signed(world, dice, steps)
        total += world.steps
    return total
