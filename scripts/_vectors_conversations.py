"""Conversations of specs/01 that another implementation can replay: what a peer says, and what a node must answer.

Written down message by message, not recorded: the tests hold this implementation against them like any other one.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgpack
from msgspec.structs import replace

from _vectors_common import NOW_MS, Vector, plain, signing_key
from protocol import constants as c
from protocol.codec import encode_message
from protocol.envelope import SigningKey, sign_record
from protocol.ids import peer_id
from protocol.messages import (
    Find,
    Found,
    Hello,
    Message,
    Reached,
    ReachMe,
    Want,
)
from protocol.records import (
    Availability,
    FreePolicy,
    Heartbeat,
    Kind,
    ModelOffer,
    Reachability,
    Role,
    Signed,
)

NODE = signing_key("node")
PEER = signing_key("peer")
# Where the node sees the peer, and the peer the node.
PEER_ADDRESS = "/ip4/198.51.100.7/tcp/51234"
NODE_ADDRESS = "/ip4/203.0.113.5/tcp/46337"
CIRCUIT_ADDRESS = f"/ip4/203.0.113.9/tcp/46337/p2p/{peer_id(signing_key('relay').node)}/p2p-circuit"
STREAM = 1

HOW_TO_REPLAY = (
    "A node with the key `node_secret`, started at `started_at_ms`, knows the heartbeats in `known` and meets a peer. "
    "Steps happen `at_ms` after the start. Feed it those from `peer`; those from `node` are what it must have done, in "
    "this order, when all of that millisecond have been fed, and it does nothing else. Of a frame from `node` the "
    "fields named in `free` are its own choice. The items of those in `any_order` may come in any, and those about the "
    "node itself are its own matter. `frame` is one of those it may send. Before it resets a stream a node may send a "
    "Fault. `bytes` are sent as they are, whether or not they are a frame."
)


class Conversation:
    """One conversation, written down step by step."""

    def __init__(
        self, comment: str, *known: Signed, dialled_by: str = "peer", peer_address: str = PEER_ADDRESS
    ) -> None:
        self.comment = comment
        self._known = known
        self.steps: list[Vector] = []
        address = peer_address if dialled_by == "peer" else NODE_ADDRESS
        self._step(dialled_by, 0, "connect", address=address)

    def open(self, sender: str, at_ms: int, protocol: str, stream: int = STREAM) -> None:
        """Somebody opens a stream."""
        self._step(sender, at_ms, "open", stream=stream, protocol=protocol)

    def say(
        self,
        sender: str,
        at_ms: int,
        message: Message,
        *,
        free: tuple[str, ...] = (),
        any_order: tuple[str, ...] = (),
        stream: int = STREAM,
    ) -> None:
        """Somebody sends a message."""
        fields: Vector = {"message": type(message).__name__, "fields": plain(message)}
        fields |= {name: list(names) for name, names in (("free", free), ("any_order", any_order)) if names}
        self._step(sender, at_ms, "frame", stream=stream, **fields, frame=encode_message(message).hex())

    def send(self, at_ms: int, data: bytes, stream: int = STREAM) -> None:
        """The peer sends bytes that are no message, or not a whole one."""
        self._step("peer", at_ms, "bytes", stream=stream, bytes=data.hex())

    def close(self, sender: str, at_ms: int, stream: int = STREAM) -> None:
        """Somebody has said everything."""
        self._step(sender, at_ms, "close", stream=stream)

    def reset(self, at_ms: int, stream: int = STREAM) -> None:
        """The node gives the stream up."""
        self._step("node", at_ms, "reset", stream=stream)

    def _step(self, sender: str, at_ms: int, event: str, **more: Any) -> None:
        self.steps.append({"from": sender, "at_ms": at_ms, "event": event, **more})

    def vector(self) -> Vector:
        """The whole."""
        return {
            "comment": self.comment,
            "node_secret": NODE.secret_bytes().hex(),
            "peer_secret": PEER.secret_bytes().hex(),
            "started_at_ms": NOW_MS,
            "known": plain(self._known),
            "steps": self.steps,
        }


def file_of(comment: str, *conversations: Conversation) -> Vector:
    return {"comment": f"{comment} {HOW_TO_REPLAY}", "conversations": [each.vector() for each in conversations]}


# ---------------------------------------------------------------- hello


def _heartbeat(key: SigningKey, **changes: Any) -> Heartbeat:
    record = Heartbeat(
        version=1,
        node=key.node,
        sequence=NOW_MS,
        issued_at_ms=NOW_MS,
        expires_at_ms=NOW_MS + 1_800_000,
        role=Role.CLIENT,
        availability=Availability.AVAILABLE,
        name="",
        agent="other/1.0",
        addresses=(),
        gpus=(),
        models=(),
        load=0,
        free_policy=FreePolicy.NOBODY,
        sealing_key=None,
        sealed_bytes_max=0,
        features=(),
        coordinators=(),
        extensions=(),
    )
    return replace(record, **changes)


def _hello(at_ms: int, *, observed: str | None, heartbeat: Signed | None = None, **changes: Any) -> Hello:
    hello = Hello(
        version=1,
        features=(),
        agent="other/1.0",
        clock_ms=NOW_MS + at_ms,
        started_at_ms=NOW_MS,
        observed_address=observed,
        records_held=0,
        heartbeat=heartbeat,
    )
    return replace(hello, **changes)


HELLO_OF_PEER = _hello(100, observed=NODE_ADDRESS)
# What a node says in its hello about itself is its own; what it says about the time and about the peer is not.
_OWN_CHOICE = ("features", "agent", "records_held", "heartbeat")


def answer_hello(
    talk: Conversation, at_ms: int = 100, stream: int = STREAM, *, peer_address: str = PEER_ADDRESS
) -> None:
    talk.say("node", at_ms, _hello(at_ms, observed=peer_address), free=_OWN_CHOICE, stream=stream)
    talk.close("node", at_ms, stream)


def hello() -> Vector:
    """hello.json."""
    return file_of(
        "How two nodes greet each other (specs/01, Hello).",
        _greeted(),
        _greets(),
        _greeted_with_a_heartbeat(),
        _greeted_byte_by_byte(),
        _greeted_by_the_future(),
        _greeted_twice(),
        _not_greeted("a message that belongs to another protocol", _frame([32, 1, None, 1, 0, None, None, 1])),
        _not_greeted("a message that must be understood, and is not", _frame([1000])),
        _not_greeted("a frame longer than a control stream takes, known by its length alone", b"\0\1\0\1"),
        _not_greeted("a map", _frame({2: 1})),
        _not_greeted("an empty frame", bytes(4)),
        _not_greeted("a heartbeat whose signature is not its node's", encode_message(_with_bad_heartbeat())),
        _silence(),
        _half_a_hello(),
    )


def _frame(value: object) -> bytes:
    body: bytes = msgpack.packb(value)
    return len(body).to_bytes(4, "big") + body


def _greeted() -> Conversation:
    talk = Conversation("the peer has dialled, says hello, and is answered")
    talk.open("peer", 100, c.HELLO_PROTOCOL)
    talk.say("peer", 100, HELLO_OF_PEER)
    talk.close("peer", 100)
    answer_hello(talk)
    return talk


def _greets() -> Conversation:
    talk = Conversation("the node has dialled: it says hello at once, and the peer answers", dialled_by="node")
    talk.open("node", 0, c.HELLO_PROTOCOL)
    talk.say("node", 0, _hello(0, observed=NODE_ADDRESS), free=_OWN_CHOICE)
    talk.close("node", 0)
    talk.say("peer", 100, _hello(100, observed=PEER_ADDRESS))
    talk.close("peer", 100)
    return talk


def _greeted_with_a_heartbeat() -> Conversation:
    talk = Conversation("the peer's hello brings its heartbeat, which the node knows from then on")
    signed = sign_record(_heartbeat(PEER, role=Role.PROVIDER, models=(offer_of("model-a"),), **_TAKES_PROMPTS), PEER)
    talk.open("peer", 100, c.HELLO_PROTOCOL)
    talk.say("peer", 100, _hello(100, observed=NODE_ADDRESS, heartbeat=signed))
    talk.close("peer", 100)
    answer_hello(talk)
    ask(talk, 200, Find(7, "model-a", Kind.CHAT, 0, None, None, 4), signed, stream=2)
    return talk


def _greeted_byte_by_byte() -> Conversation:
    talk = Conversation("however the bytes are cut, they mean the same")
    talk.open("peer", 100, c.HELLO_PROTOCOL)
    for byte in encode_message(HELLO_OF_PEER):
        talk.send(100, bytes([byte]))
    answer_hello(talk)
    talk.close("peer", 100)
    return talk


def _greeted_by_the_future() -> Conversation:
    talk = Conversation("a version, a field and an optional message that nobody knows yet: what is known counts")
    talk.open("peer", 100, c.HELLO_PROTOCOL)
    talk.send(100, _frame([1001, "of a later version"]))
    fields = [2, 9, [77], "future/9.9", NOW_MS + 100, NOW_MS, NODE_ADDRESS, 3, None, "a field that came later"]
    talk.send(100, _frame(fields))
    talk.close("peer", 100)
    answer_hello(talk)
    return talk


def _greeted_twice() -> Conversation:
    talk = Conversation("a second hello on one stream; another stream is another matter")
    talk.open("peer", 100, c.HELLO_PROTOCOL)
    talk.say("peer", 100, HELLO_OF_PEER)
    answer_hello(talk)
    talk.say("peer", 200, HELLO_OF_PEER)
    talk.reset(200)
    talk.open("peer", 300, c.HELLO_PROTOCOL, stream=2)
    talk.say("peer", 300, HELLO_OF_PEER, stream=2)
    talk.close("peer", 300, stream=2)
    answer_hello(talk, 300, stream=2)
    return talk


def _not_greeted(comment: str, data: bytes) -> Conversation:
    talk = Conversation(f"instead of a hello: {comment}")
    talk.open("peer", 100, c.HELLO_PROTOCOL)
    talk.send(100, data)
    talk.reset(100)
    # One mistake is not the end of the connection.
    talk.open("peer", 200, c.HELLO_PROTOCOL, stream=2)
    talk.say("peer", 200, HELLO_OF_PEER, stream=2)
    talk.close("peer", 200, stream=2)
    answer_hello(talk, 200, stream=2)
    return talk


def _with_bad_heartbeat() -> Hello:
    signed = sign_record(_heartbeat(PEER), PEER)
    return _hello(100, observed=NODE_ADDRESS, heartbeat=Signed(signed.body, bytes(64)))


def _silence() -> Conversation:
    talk = Conversation("a stream on which nothing comes is reset after ten seconds")
    talk.open("peer", 100, c.HELLO_PROTOCOL)
    talk.say("peer", 100, HELLO_OF_PEER)
    talk.close("peer", 100)
    answer_hello(talk)
    talk.open("peer", 200, c.HELLO_PROTOCOL, stream=2)
    talk.reset(10_200, stream=2)
    return talk


def _half_a_hello() -> Conversation:
    talk = Conversation("the peer closes its half in the middle of its hello")
    talk.open("peer", 100, c.HELLO_PROTOCOL)
    talk.send(100, encode_message(HELLO_OF_PEER)[:-1])
    talk.close("peer", 100)
    talk.reset(100)
    return talk


# ---------------------------------------------------------------- find

_TAKES_PROMPTS: dict[str, Any] = {
    "sealing_key": hashlib.sha256(b"sealing key").digest(),
    "sealed_bytes_max": 262_192,
    "free_policy": FreePolicy.ALL,
}


def offer_of(name: str, **changes: Any) -> ModelOffer:
    offer = ModelOffer(
        name=name,
        fingerprint=hashlib.sha256(name.encode()).digest(),
        kinds=(Kind.CHAT,),
        context_tokens=4096,
        concurrency=2,
        price_in_uusd=0,
        price_out_uusd=0,
        price_job_uusd=0,
    )
    return replace(offer, **changes)


def provider_of(name: str, *offers: ModelOffer, **changes: Any) -> Signed:
    key = signing_key(name)
    addresses = (f"/ip4/203.0.113.{len(name)}/tcp/46337",)
    fields = {"role": Role.PROVIDER, "name": name, "models": offers, "addresses": addresses, **_TAKES_PROMPTS}
    return sign_record(_heartbeat(key, **{**fields, **changes}), key)


CHEAP = provider_of("cheap", offer_of("model-a"), offer_of("model-b"))
DEAR = provider_of("dear", offer_of("model-a", price_in_uusd=50_000, price_out_uusd=200_000))
LONG = provider_of("long context", offer_of("model-a", context_tokens=32_768, fingerprint=bytes([7] * 32)))
VECTORS = provider_of("vectors", offer_of("model-e", kinds=(Kind.EMBEDDING,)))
BRIEF = provider_of("brief", offer_of("model-c"), expires_at_ms=NOW_MS + 60_000)
ASKER_ONLY = sign_record(_heartbeat(signing_key("asker only")), signing_key("asker only"))
EVERYBODY = (CHEAP, DEAR, LONG, VECTORS, BRIEF, ASKER_ONLY)


def ask(talk: Conversation, at_ms: int, question: Find, *answers: Signed, stream: int = STREAM) -> None:
    talk.open("peer", at_ms, c.FIND_PROTOCOL, stream)
    talk.say("peer", at_ms, question, stream=stream)
    talk.close("peer", at_ms, stream)
    talk.say("node", at_ms, Found(question.query, answers), any_order=("records",), stream=stream)
    talk.close("node", at_ms, stream)


def _asked(comment: str, question: Find, *answers: Signed, at_ms: int = 1_000) -> Conversation:
    talk = _met(comment)
    ask(talk, at_ms, question, *answers, stream=2)
    return talk


def _met(comment: str, *, peer_address: str = PEER_ADDRESS) -> Conversation:
    """Two who have greeted each other."""
    talk = Conversation(comment, *EVERYBODY, peer_address=peer_address)
    talk.open("peer", 100, c.HELLO_PROTOCOL)
    talk.say("peer", 100, HELLO_OF_PEER)
    talk.close("peer", 100)
    answer_hello(talk, peer_address=peer_address)
    return talk


def find() -> Vector:
    """find.json."""
    return file_of(
        "Who serves a model under these limits (specs/01, Find)?",
        _asked("all who serve a model", Find(1, "model-a", Kind.CHAT, 0, None, None, 16), CHEAP, DEAR, LONG),
        _asked("a model that nobody serves", Find(2, "model-z", Kind.CHAT, 0, None, None, 16)),
        _asked("of a kind", Find(3, "model-e", Kind.EMBEDDING, 0, None, None, 16), VECTORS),
        _asked("not of another kind", Find(4, "model-e", Kind.CHAT, 0, None, None, 16)),
        _asked("with a context", Find(5, "model-a", Kind.CHAT, 8_000, None, None, 16), LONG),
        _asked("below a price for prompts", Find(6, "model-a", Kind.CHAT, 0, 49_999, None, 16), CHEAP, LONG),
        _asked("at a price for answers", Find(7, "model-a", Kind.CHAT, 0, None, 200_000, 16), CHEAP, DEAR, LONG),
        _asked("of these weights", Find(8, "model-a", Kind.CHAT, 0, None, None, 16, bytes([7] * 32)), LONG),
        _asked("before a heartbeat expires", Find(9, "model-c", Kind.CHAT, 0, None, None, 16), BRIEF, at_ms=59_000),
        _asked("after a heartbeat has expired", Find(10, "model-c", Kind.CHAT, 0, None, None, 16), at_ms=61_000),
        _asked(
            "any model at all: providers, and not who only asks",
            *(Find(11, None, Kind.CHAT, 0, None, None, 16), CHEAP, DEAR, LONG, BRIEF),
        ),
        _wrong("no answer is wanted", _frame([32, 12, "model-a", 1, 0, None, None, 0, None])),
        _wrong("more answers are wanted than there may be", _frame([32, 13, "model-a", 1, 0, None, None, 17, None])),
        _wrong("an answer without a question", encode_message(Found(14, ()))),
    )


def _wrong(comment: str, data: bytes, protocol: str = c.FIND_PROTOCOL) -> Conversation:
    talk = _met(comment)
    talk.open("peer", 200, protocol, stream=2)
    talk.send(200, data, stream=2)
    talk.reset(200, stream=2)
    return talk


# ---------------------------------------------------------------- reach


def reach() -> Vector:
    """reach.json."""
    return file_of(
        "Who asks to be dialled back (specs/03, Reachability), as far as nobody is dialled: what comes of a dial-back "
        "no conversation can say.",
        _reached_through_a_relay(),
        _wrong("a port that is none of a node's", _frame([48, 1023]), c.REACH_PROTOCOL),
        _wrong("an answer without a question", encode_message(_NOT_TRIED), c.REACH_PROTOCOL),
        _wrong("a question of another protocol", encode_message(Want(())), c.REACH_PROTOCOL),
    )


_NOT_TRIED = Reached(Reachability.NOT_TRIED, None, "you are at no address that is dialled from here")


def _reached_through_a_relay() -> Conversation:
    talk = _met("whoever comes through a relay is not dialled back", peer_address=CIRCUIT_ADDRESS)
    talk.open("peer", 200, c.REACH_PROTOCOL, stream=2)
    talk.say("peer", 200, ReachMe(46337), stream=2)
    talk.close("peer", 200, stream=2)
    talk.say("node", 200, _NOT_TRIED, free=("text",), stream=2)
    talk.close("node", 200, stream=2)
    return talk
