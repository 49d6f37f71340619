"""Slots held for orders that are to come: who may hold them, for how long, and for which order they are."""

from __future__ import annotations

import random
from typing import Any

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol import reserving as r
from protocol.admission import Held, Why
from protocol.codec import JOB_LIMITS, FrameReader, encode_value
from protocol.effects import FinishStream, Send
from protocol.envelope import SigningKey, open_record, sign_record
from protocol.errors import BadSignature, Refusal, RemoteProtocolError
from protocol.events import Now
from protocol.ids import JobId, NodeId, StreamId
from protocol.jobs import order_extensions
from protocol.messages import Reserve, Reserved
from protocol.records import JobOpenRecord, ModelOffer, ReservationRecord, Signed
from protocol.reserving import Reserving
from tests.helpers_machines import now
from tests.helpers_records import OFFER, order, signing_key

FULL, US = signing_key("full provider"), signing_key("us")
STREAM = StreamId(2)
CONSENT = order_extensions(may_hand_off=True, queue_wait_ms=0)
MANY = replace(OFFER, concurrency=64)


class Provider:
    """A provider with slots to hold; `against` is what admission has against every order."""

    def __init__(self, offer: ModelOffer = MANY) -> None:
        self.against: Why | None = None
        self.asked: list[tuple[JobOpenRecord, NodeId]] = []
        self.offer = offer
        self.machine = Reserving(US, random.Random(1), self._judge)
        self.at_s = 0.0

    def _judge(self, order: JobOpenRecord, peer: NodeId, _now: Now) -> ModelOffer | Why:
        self.asked.append((order, peer))
        return self.against or self.offer

    def reserve(self, wanted: JobOpenRecord, key: SigningKey | None = None, peer: NodeId = FULL.node) -> Reserved:
        """What is answered to a reservation for this order."""
        signer, body = key or signing_key("asker"), encode_value(wanted)
        signed = Signed(body, signer.sign(JobOpenRecord.TAG, body))
        send, finish, _ = self.machine.on_reserve(STREAM, peer, Reserve(signed), now(self.at_s))
        assert isinstance(send, Send)
        assert finish == FinishStream(STREAM)
        (answer,) = FrameReader(JOB_LIMITS).feed(send.data)
        assert isinstance(answer, Reserved)
        assert answer.job == wanted.job
        assert (answer.code == 0) == (answer.reservation is not None)
        return answer

    def held(self, wanted: JobOpenRecord, key: SigningKey | None = None, peer: NodeId = FULL.node) -> ReservationRecord:
        answer = self.reserve(wanted, key, peer)
        assert answer.reservation is not None
        return open_record(answer.reservation, ReservationRecord)

    def wait(self, seconds: float) -> bool:
        self.at_s += seconds
        return self.machine.on_deadline(now(self.at_s))


@pytest.fixture
def provider() -> Provider:
    return Provider()


def refused(number: int = 1, asker: str = "asker", **changes: Any) -> JobOpenRecord:
    """An order that the full provider cannot take."""
    fields: dict[str, Any] = {"provider": FULL.node, "extensions": CONSENT, "asker": signing_key(asker).node}
    return order(**{**fields, "job": JobId(number.to_bytes(16, "big")), **changes})


def follows(record: ReservationRecord, wanted: JobOpenRecord) -> JobOpenRecord:
    """The order that comes for a reservation."""
    return replace(wanted, provider=US.node, reservation=record.reservation, attempt=2, extensions=())


def test_a_reservation_names_asker_job_model_and_us_and_is_short(provider: Provider) -> None:
    provider.at_s = 5
    record = provider.held(refused())
    assert (record.provider, record.asker) == (US.node, signing_key("asker").node)
    assert (record.job, record.model) == (refused().job, OFFER.name)
    assert record.issued_at_ms == now(5).wall_ms
    assert record.expires_at_ms - record.issued_at_ms == c.RESERVATION_LIFETIME_MS_MAX
    assert provider.machine.held() == [Held(record.asker, FULL.node, OFFER.name)]


def test_admission_judges_the_order_as_sent_by_the_peer_that_asks(provider: Provider) -> None:
    provider.reserve(refused())
    assert provider.asked == [(refused(), FULL.node)]


@pytest.mark.parametrize("code", [Refusal.BUSY, Refusal.NOT_FREE, Refusal.DRAINING, Refusal.NO_MODEL])
def test_what_admission_refuses_is_not_held(provider: Provider, code: Refusal) -> None:
    provider.against = (code, "because")
    assert provider.reserve(refused()).code == code
    assert not provider.machine.held()


def test_the_order_that_was_meant_takes_the_slot_and_no_second_one_does(provider: Provider) -> None:
    record = provider.held(refused())
    coming = follows(record, refused())
    assert provider.machine.held(coming) == []
    provider.machine.use(coming)
    assert provider.machine.held() == []
    assert not provider.wait(r.RESERVATION_LIFETIME_S)
    assert provider.machine.lapsed == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"job": JobId(bytes(16))},
        {"asker": signing_key("thief").node},
        {"model": "another"},
        {"reservation": JobId(b"\xee" * 16)},
        {"reservation": None},
    ],
    ids=["job", "asker", "model", "id", "none"],
)
def test_no_other_order_takes_the_slot(provider: Provider, changes: dict[str, Any]) -> None:
    record = provider.held(refused())
    other = replace(follows(record, refused()), **changes)
    assert len(provider.machine.held(other)) == 1
    provider.machine.use(other)
    assert len(provider.machine.held()) == 1


def test_nobody_comes_and_the_slot_is_free_again(provider: Provider) -> None:
    record = provider.held(refused())
    assert provider.machine.next_deadline() == r.RESERVATION_LIFETIME_S
    assert not provider.wait(r.RESERVATION_LIFETIME_S - 0.01)
    assert provider.machine.held()
    assert provider.wait(0.01)
    assert provider.machine.held() == []
    assert provider.machine.lapsed == 1
    provider.machine.use(follows(record, refused()))  # too late: an order like any other


def test_one_job_holds_one_slot(provider: Provider) -> None:
    provider.held(refused())
    other = signing_key("another full provider")
    assert provider.reserve(refused(provider=other.node), peer=other.node).code == Refusal.DUPLICATE


# ---------------------------------------------------------------- what is a lie


def test_an_order_to_somebody_else_reserves_nothing(provider: Provider) -> None:
    with pytest.raises(RemoteProtocolError):
        provider.reserve(refused(), peer=signing_key("eavesdropper").node)


def test_without_consent_nothing_is_held(provider: Provider) -> None:
    with pytest.raises(RemoteProtocolError):
        provider.reserve(refused(extensions=order_extensions(may_hand_off=False, queue_wait_ms=1000)))


def test_an_asker_that_did_not_sign_is_nobody(provider: Provider) -> None:
    with pytest.raises(BadSignature):
        provider.reserve(refused(), signing_key("forger"))


def test_what_is_no_order_is_blamed_on_the_sender(provider: Provider) -> None:
    signed = sign_record(refused(), signing_key("asker"))
    with pytest.raises(RemoteProtocolError):
        provider.machine.on_reserve(STREAM, FULL.node, Reserve(replace(signed, body=b"\x90")), now())


def test_an_order_of_a_later_version_is_nobodys_fault(provider: Provider) -> None:
    answer = provider.reserve(refused(extensions=(*CONSENT, (4, b""))))
    assert answer.code == Refusal.UNSUPPORTED


# ---------------------------------------------------------------- nobody blocks slots by reserving


def test_half_of_the_slots_are_left_for_those_who_come_themselves() -> None:
    for slots, most in ((1, 1), (2, 1), (3, 1), (8, 4)):
        provider = Provider(replace(OFFER, concurrency=slots))
        codes = [
            provider.reserve(refused(n, f"asker {n}"), signing_key(f"asker {n}")).code for n in range(1, slots + 2)
        ]
        assert codes == [0] * min(most, slots + 1) + [int(Refusal.BUSY)] * (slots + 1 - most)


def test_one_peer_holds_few_and_others_are_not_kept_from_it(provider: Provider) -> None:
    def codes(peer: SigningKey, first: int) -> list[int]:
        numbers = range(first, first + r.RESERVATIONS_PER_PEER_MAX + 1)
        return [
            provider.reserve(refused(n, f"asker {n}", provider=peer.node), signing_key(f"asker {n}"), peer.node).code
            for n in numbers
        ]

    expected = [0] * r.RESERVATIONS_PER_PEER_MAX + [int(Refusal.RATE_LIMITED)]
    assert codes(FULL, 1) == expected
    assert codes(signing_key("another"), 101) == expected


def test_one_asker_holds_few_through_however_many_peers(provider: Provider) -> None:
    codes = []
    for number in range(1, r.RESERVATIONS_PER_ASKER_MAX + 2):
        peer = signing_key(f"peer {number}")
        codes.append(provider.reserve(refused(number, provider=peer.node), peer=peer.node).code)
    assert codes == [0] * r.RESERVATIONS_PER_ASKER_MAX + [int(Refusal.RATE_LIMITED)]


def test_what_is_used_costs_nothing(provider: Provider) -> None:
    for number in range(1, 20):
        wanted = refused(number)
        provider.machine.use(follows(provider.held(wanted), wanted))
        provider.at_s += 0.1


def test_who_lets_reservations_lapse_may_hold_less_for_a_while(provider: Provider) -> None:
    held_s = 0.0
    end_s = 600.0
    number = 0
    while provider.at_s < end_s:
        number += 1
        key = signing_key(f"asker {number}")
        if provider.reserve(refused(number, f"asker {number}"), key).code == 0:
            held_s += r.RESERVATION_LIFETIME_S
        provider.wait(1.0)
    # A burst at first, and then a third of one slot: not the four that it could hold at once.
    assert held_s <= r.RESERVATIONS_PER_PEER_MAX * 10 + end_s / 3 + 10


def test_asking_is_limited_whatever_comes_of_it(provider: Provider) -> None:
    provider.against = (Refusal.BUSY, "full")
    for number in range(r.REQUESTS_BURST):
        assert provider.reserve(refused(number + 1)).code == Refusal.BUSY
    asked = len(provider.asked)
    assert provider.reserve(refused(99)).code == Refusal.RATE_LIMITED
    assert len(provider.asked) == asked  # before the signature was checked
    provider.at_s += 1 / r.REQUESTS_PER_S
    assert provider.reserve(refused(99)).code == Refusal.BUSY
