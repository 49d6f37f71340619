"""specs/vectors of orders that are handed on and jobs that are passed on: every party does what they say."""

from __future__ import annotations

import random
from typing import Any

import pytest

from protocol.codec import JOB_LIMITS, FrameReader
from protocol.constants import JOB_PROTOCOL
from protocol.effects import Effect, FinishStream, OpenStream, ResetStream, Send
from protocol.envelope import SigningKey, open_record, sign_record
from protocol.events import (
    DEADLINE,
    Ask,
    BytesReceived,
    Event,
    LearnRecord,
    Now,
    Offer,
    PeerConnected,
    SetOffer,
    StreamBroken,
    StreamFinished,
    StreamOpened,
)
from protocol.ids import NodeId, StreamId
from protocol.jobs import default_sampling
from protocol.messages import Fault, JobOpen, JobReject, Message, Progress, Reserve, Reserved
from protocol.peer import Peer, PeerConfig
from protocol.records import (
    Availability,
    ChatMessage,
    FreePolicy,
    JobOpenRecord,
    JobRequest,
    Kind,
    ModelOffer,
    ReservationRecord,
    Role,
    Signed,
)
from protocol.reserving import reservation_for
from protocol.sealing import HpkeSealer
from tests.helpers_records import heartbeat
from tests.helpers_vectors import Vector, each, load, plain

HANDOFF = load("handoff")
CONVERSATIONS = [vector for vector in HANDOFF if vector["kind"] == "conversation"]


def of_kind(kind: str) -> pytest.MarkDecorator:
    vectors = [vector for vector in HANDOFF if vector["kind"] == kind]
    assert vectors
    return pytest.mark.parametrize("vector", [pytest.param(each, id=each["comment"]) for each in vectors])


def key_of(vector: Vector, name: str) -> SigningKey:
    return SigningKey(bytes.fromhex(vector[f"{name}_secret"]), bytes)


def signed(value: Vector) -> Signed:
    return Signed(bytes.fromhex(value["body"]), bytes.fromhex(value["signature"]))


class KnownRandom(random.Random):
    """Draws the reservation that a vector states, and the rest from a seed."""

    def __init__(self, reservation: str) -> None:
        super().__init__(1)
        self._reservation = bytes.fromhex(reservation)

    def randbytes(self, n: int) -> bytes:
        return self._reservation if n == len(self._reservation) else super().randbytes(n)


class Party:
    """A whole peer as one of the parties. What it says on job streams to whom is kept until it is taken."""

    def __init__(self, key: SigningKey, start_ms: int, config: PeerConfig | None = None, reservation: str = "") -> None:
        self._start_ms = start_ms
        self.at_ms = 0
        rng = KnownRandom(reservation) if reservation else random.Random(1)
        self.peer = Peer(config or PeerConfig("test", neighbours_min=0), key, HpkeSealer(), rng, self.now())
        self._streams: dict[NodeId, StreamId] = {}
        self._peers: dict[StreamId, NodeId] = {}
        self._readers: dict[StreamId, FrameReader] = {}
        self._numbers = iter(range(2, 1000, 2))
        self.said: list[tuple[NodeId, bytes]] = []
        self.ended: list[tuple[NodeId, str]] = []

    def now(self) -> Now:
        return Now(self.at_ms / 1000, self._start_ms + self.at_ms)

    def wait_until(self, at_ms: int) -> None:
        while (deadline_s := self.peer.next_deadline()) is not None and deadline_s * 1000 <= at_ms + 1e-6:
            self.at_ms = max(self.at_ms, round(deadline_s * 1000))
            self._take(self.peer.handle(DEADLINE, Now(max(deadline_s, self.at_ms / 1000), self.now().wall_ms)))
        self.at_ms = at_ms

    def feed(self, event: Event) -> None:
        self._take(self.peer.handle(event, self.now()))

    def meet(self, node: NodeId) -> None:
        self.feed(PeerConnected(node, "/ip4/198.51.100.7/tcp/51234", True))

    def _take(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case OpenStream(stream=stream, peer=peer, protocol=protocol) if protocol == JOB_PROTOCOL:
                    self._know(stream, peer)
                case Send(stream=stream, data=data) if stream in self._peers:
                    self.said.append((self._peers[stream], data))
                case FinishStream(stream=stream) if stream in self._peers:
                    self.ended.append((self._peers[stream], "close"))
                case ResetStream(stream=stream) if stream in self._peers:
                    self.ended.append((self._peers[stream], "reset"))

    def _know(self, stream: StreamId, peer: NodeId) -> None:
        self._streams[peer], self._peers[stream] = stream, peer

    def hear(self, sender: NodeId, frame: bytes) -> None:
        """Somebody says something, on the stream that there is with it or on a new one."""
        if sender not in self._streams:
            stream = StreamId(next(self._numbers))
            self._know(stream, sender)
            self.feed(StreamOpened(stream, sender, JOB_PROTOCOL))
        self.feed(BytesReceived(self._streams[sender], frame))

    def hear_end(self, sender: NodeId, event: str) -> None:
        stream = self._streams[sender]
        self.feed(StreamFinished(stream) if event == "close" else StreamBroken(stream, "reset"))

    def take(self, receiver: NodeId) -> bytes:
        """The next thing that was said to somebody."""
        index = next(index for index, (node, _) in enumerate(self.said) if node == receiver)
        return self.said.pop(index)[1]


def message_in(frame: bytes) -> Message:
    (message,) = FrameReader(JOB_LIMITS).feed(frame)
    return message


# ---------------------------------------------------------------- handing on


def replay(vector: Vector, name: str, party: Party) -> None:
    """Let a party of a conversation hear what the others say; it says what the conversation says, and no more."""
    nodes = {each: key_of(vector, each).node for each in ("asker", "provider", "other")}
    for node in nodes.values():
        if node != party.peer.node:
            party.meet(node)
    for step in vector["steps"]:
        party.wait_until(step["at_ms"])
        frame = bytes.fromhex(step["frame"])
        assert plain(message_in(frame)) == step["fields"]
        if step["to"] == name:
            party.hear(nodes[step["from"]], frame)
        elif step["from"] == name:
            said = party.take(nodes[step["to"]])
            if "free" not in step:
                assert said.hex() == step["frame"]
            fields = plain(message_in(said))
            assert {field: value for field, value in fields.items() if field not in step.get("free", ())} == {
                field: value for field, value in step["fields"].items() if field not in step.get("free", ())
            }
    assert not party.said, f"the {name} says more than the conversation"


def offer_of(vector: Vector, availability: Availability) -> SetOffer:
    (opening,) = FrameReader(JOB_LIMITS).feed(bytes.fromhex(vector["steps"][0]["frame"]))
    assert isinstance(opening, JobOpen)
    order = open_record(opening.order, JobOpenRecord)
    assert order.fingerprint is not None
    model = ModelOffer(order.model, order.fingerprint, (Kind.CHAT,), 8_192, 4, 0, 0, 0)
    return SetOffer(Offer(Role.PROVIDER, "p", "a", availability, models=(model,), free_policy=FreePolicy.ALL))


@of_kind("conversation")
def test_the_provider_that_drains_hands_its_order_on(vector: Vector) -> None:
    party = Party(key_of(vector, "provider"), vector["started_at_ms"])
    party.feed(offer_of(vector, Availability.DRAINING))
    party.feed(LearnRecord(signed(vector["known"])))
    replay(vector, "provider", party)


@of_kind("conversation")
def test_the_other_holds_a_slot_and_takes_the_order_that_comes_for_it(vector: Vector) -> None:
    if not any(step["message"] == "Reserved" and step["fields"]["reservation"] for step in vector["steps"]):
        return  # it has no slot, or hears of nothing
    party = Party(key_of(vector, "other"), vector["started_at_ms"], reservation=vector["reservation"])
    party.feed(offer_of(vector, Availability.AVAILABLE))
    vector = {**vector, "steps": [step for step in vector["steps"] if step["message"] != "Progress"]}
    with_prompt = [step for step in vector["steps"] if "other" in (step["from"], step["to"])]
    assert [step["message"] for step in with_prompt] == ["Reserve", "Reserved", "JobOpen"]
    replay({**vector, "steps": with_prompt[:2]}, "other", party)
    asker = key_of(vector, "asker").node
    party.at_ms = with_prompt[2]["at_ms"]
    party.hear(asker, bytes.fromhex(with_prompt[2]["frame"]))
    # It has a slot for it; that the prompt opens nowhere is another matter.
    assert isinstance(message_in(party.take(asker)), Progress)


@of_kind("conversation")
def test_the_asker_goes_where_a_slot_is_held(vector: Vector) -> None:
    key, provider, other = (key_of(vector, name) for name in ("asker", "provider", "other"))
    (opening, *_) = vector["steps"]
    original = open_record(signed(opening["fields"]["order"]), JobOpenRecord)
    assert original.fingerprint is not None
    model = ModelOffer(original.model, original.fingerprint, (Kind.CHAT,), 8_192, 4, 0, 0, 0)
    party = Party(key, vector["started_at_ms"])
    for node in (provider, other):
        party.meet(node.node)
    record = record_signed_by(provider, model, vector["started_at_ms"])
    party.feed(LearnRecord(record))
    request = JobRequest(messages=(ChatMessage("user", "?"),))
    agrees = bool(original.extensions)
    ask = Ask(original.job, Kind.CHAT, request, default_sampling(1), 64, original.model, may_hand_off=agrees)
    party.feed(ask)
    assert isinstance(message_in(party.take(provider.node)), JobOpen)
    refusal = next(step for step in vector["steps"] if step["message"] == "JobReject")
    party.hear(provider.node, bytes.fromhex(refusal["frame"]))
    again = message_in(party.take(other.node))
    assert isinstance(again, JobOpen)
    order = open_record(again.order, JobOpenRecord)
    held = refusal["fields"]["reservation"]
    expected = open_record(signed(held), ReservationRecord).reservation if held else None
    assert (order.attempt, order.provider, order.reservation) == (2, other.node, expected)


def record_signed_by(key: SigningKey, model: ModelOffer, start_ms: int) -> Signed:
    fields: dict[str, Any] = {"node": key.node, "models": (model,), "free_policy": FreePolicy.ALL}
    record = heartbeat(**fields, issued_at_ms=start_ms, expires_at_ms=start_ms + 600_000, sealing_key=b"\x09" * 32)
    return sign_record(record, key)


@of_kind("question")
def test_a_question_is_answered_or_breaks_the_protocol(vector: Vector) -> None:
    (talk, *_) = CONVERSATIONS
    sender = NodeId(bytes.fromhex(vector["sender"]))
    party = Party(key_of(talk, "other"), talk["started_at_ms"])
    party.feed(offer_of(talk, Availability.AVAILABLE))
    party.meet(sender)
    party.hear(sender, bytes.fromhex(vector["frame"]))
    answer = message_in(party.take(sender))
    assert isinstance(answer, Reserved if vector["valid"] else Fault)
    assert party.ended[-1] == (sender, "close" if vector["valid"] else "reset")
    if isinstance(answer, Reserved):
        assert answer.reservation is not None
    assert party.peer.statistics().bad_frames == (not vector["valid"])


@of_kind("reservation")
def test_a_reservation_holds_something_or_is_ignored(vector: Vector) -> None:
    order = open_record(signed(vector["order"]), JobOpenRecord)
    now = Now(0.0, vector["started_at_ms"] + vector["at_ms"])
    assert (reservation_for(order, signed(vector["reservation"]), now) is not None) == vector["valid"]


# ---------------------------------------------------------------- passing on


@each("forwarding")
def test_an_aggregator_passes_on_what_it_may_as_it_is(vector: Vector) -> None:
    config = PeerConfig("test", neighbours_min=0, forwards=True)
    party = Party(key_of(vector, "aggregator"), vector["started_at_ms"], config)
    asker, provider = (key_of(vector, name).node for name in ("asker", "provider"))
    across = {asker: provider, provider: asker}
    names = {"asker": asker, "provider": provider}
    for node in across:
        party.meet(node)
    passed: dict[NodeId, bytes] = {asker: b"", provider: b""}
    for step in vector["steps"]:
        party.wait_until(step["at_ms"])
        if step["from"] == "aggregator":
            if "frame" in step:
                told = message_in(party.take(names[step["to"]]))
                assert isinstance(told, Fault)
                assert told.code == step["fields"]["code"]
            else:
                assert party.ended.pop()[1] == step["event"]
            continue
        sender = names[step["from"]]
        if "frame" not in step:
            party.hear_end(sender, step["event"])
            continue
        party.hear(sender, bytes.fromhex(step["frame"]))
        if step["message"] != "Forward" and vector["valid"]:
            assert party.take(across[sender]).hex() == step["frame"]
            passed[sender] += bytes.fromhex(step["frame"])
    if not vector["valid"]:
        assert isinstance(message_in(party.take(asker)), Fault)
        assert party.ended == [(asker, "reset")]
    assert not party.said
    assert party.peer.statistics().forwards.active == 0
    if vector["valid"]:
        assert party.peer.statistics().forwards.bytes == sum(map(len, passed.values()))


def test_the_questions_of_the_conversations_are_messages() -> None:
    """What the replays rely on: who says what first."""
    said = [[step["message"] for step in vector["steps"]] for vector in CONVERSATIONS]
    assert said[0] == ["JobOpen", "Reserve", "Reserved", "JobReject", "JobOpen", "Progress"]
    for vector in CONVERSATIONS:
        for step in vector["steps"]:
            message = message_in(bytes.fromhex(step["frame"]))
            assert isinstance(message, (JobOpen, JobReject, Progress, Reserve, Reserved))
