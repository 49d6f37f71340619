"""What an asker makes of the pieces of one answer. The whole conversation, lies included, is in test_asking.py."""

from __future__ import annotations

import pytest

from protocol import constants as c
from protocol.attempt import Attempt
from protocol.envelope import sign_record
from protocol.errors import BadSignature, RemoteProtocolError, SealError
from protocol.ids import StreamId
from protocol.leases import PayerSide
from protocol.messages import Chunk
from protocol.records import ChunkBody, JobOpenRecord, Outcome, Signed
from protocol.sealing import ChunkCipher
from tests.helpers_records import ASKER, PROVIDER, acceptance, order, receipt
from tests.protocol.test_leases import BANK, PAYER, accepted, lease, paid_order

HASH = b"\x44" * 32


def attempt_for(record: JobOpenRecord, inputs: int = 0) -> Attempt:
    return Attempt(StreamId(1), record, HASH, ChunkCipher(b"\x05" * 32, HASH), inputs, HASH)


def chunk(number: int, tokens: int, owed: int = 0, text: str = "x") -> Chunk:
    sealed = ChunkCipher(b"\x05" * 32, HASH).seal(number, tokens, owed, ChunkBody(text))
    return Chunk(order().job, 1, number, tokens, owed, sealed)


def test_a_good_acceptance_gives_the_prompt_tokens() -> None:
    attempt = attempt_for(order())
    attempt.accept(sign_record(acceptance(), PROVIDER))
    assert attempt.prompt_tokens == 17
    assert not attempt.started


def test_an_acceptance_signed_by_somebody_else_is_none() -> None:
    with pytest.raises(RemoteProtocolError):
        attempt_for(order()).accept(sign_record(acceptance(provider=ASKER.node), ASKER))
    signed = sign_record(acceptance(), PROVIDER)
    other = sign_record(acceptance(prompt_tokens=16), PROVIDER)
    with pytest.raises(BadSignature):
        attempt_for(order()).accept(signed.__class__(signed.body, other.signature))


class Generous(PayerSide):
    """A payer that signs for one micro-USD more than it is told."""

    def pay(
        self, order: JobOpenRecord, owed_uusd: int, chunks: int, output_tokens: int, running_hash: bytes
    ) -> Signed | None:
        return PayerSide.pay(self, order, owed_uusd + 1, chunks, output_tokens, running_hash)


@pytest.mark.parametrize("payer", [PayerSide, Generous])
def test_to_sign_for_more_than_has_come_is_a_bug(payer: type[PayerSide]) -> None:
    attempt = attempt_for(paid_order())
    attempt.side = payer(lease(), sign_record(lease(), BANK), PAYER, mark_uusd=1_000)
    attempt.accept(sign_record(accepted(), PROVIDER))
    if payer is Generous:
        with pytest.raises(AssertionError, match="I6"):
            attempt.voucher()
    else:
        assert attempt.voucher() is not None
        assert attempt.paid_uusd == 17


def test_weights_that_were_not_named_are_not_checked() -> None:
    attempt_for(order(fingerprint=None)).accept(sign_record(acceptance(fingerprint=b"\x99" * 32), PROVIDER))


def test_the_debt_of_a_priced_order_is_checked_to_the_last_unit() -> None:
    priced = order(price_in_uusd=1_000_000, price_out_uusd=2_000_000, price_job_uusd=5)
    attempt = attempt_for(priced)
    attempt.accept(sign_record(acceptance(), PROVIDER))
    assert attempt.take(chunk(1, 2, owed=5 + 17 + 4)).text == "x"
    for wrong in (5 + 17 + 5, 5 + 17 + 7, 0):
        with pytest.raises(RemoteProtocolError):
            attempt.take(chunk(2, 3, owed=wrong))
    assert attempt.take(chunk(2, 3, owed=5 + 17 + 6)).text == "x"


def test_an_answer_does_not_go_on_without_end_because_it_counts_no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "ANSWER_BYTES_MAX", 10_000)
    attempt = attempt_for(order())
    for number in range(1, 10):
        attempt.take(chunk(number, 1, text="x" * 1000))
    with pytest.raises(RemoteProtocolError, match="more text"):
        attempt.take(chunk(10, 1, text="x" * 1000))


def test_a_chunk_that_fails_leaves_no_trace() -> None:
    attempt = attempt_for(order())
    before = attempt.running_hash
    garbled = Chunk(order().job, 1, 1, 1, 0, bytes(80))
    with pytest.raises(SealError):
        attempt.take(garbled)
    assert (attempt.chunks, attempt.output_tokens, attempt.running_hash) == (0, 0, before)
    attempt.take(chunk(1, 1))
    assert attempt.started
    assert attempt.running_hash != before


def test_a_receipt_over_exactly_what_arrived_passes() -> None:
    attempt = attempt_for(order())
    attempt.accept(sign_record(acceptance(), PROVIDER))
    attempt.take(chunk(1, 2))
    attempt.take(chunk(2, 5))
    good = receipt(running_hash=attempt.running_hash)
    assert attempt.check_receipt(sign_record(good, PROVIDER)) == good
    failed = receipt(running_hash=attempt.running_hash, outcome=Outcome.FAILED, output_tokens=4)
    with pytest.raises(RemoteProtocolError):
        attempt.check_receipt(sign_record(failed, PROVIDER))


def test_a_dropped_chunk_is_counted_and_hashed_as_one_that_was_read() -> None:
    read, dropped = attempt_for(order()), attempt_for(order())
    read.take(chunk(1, 1))
    with pytest.raises(RemoteProtocolError):
        dropped.drop(chunk(1, 1))
    dropped.accept(sign_record(acceptance(), PROVIDER))
    dropped.drop(chunk(1, 1))
    assert (read.running_hash, read.chunks, read.output_tokens) == (dropped.running_hash, 1, 1)
