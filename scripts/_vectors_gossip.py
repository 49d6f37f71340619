"""Conversations between neighbours that another implementation can replay (specs/03, specs/04): see
`_vectors_conversations`.
"""

from __future__ import annotations

import hashlib

from msgspec.structs import replace

from _vectors_common import NOW_MS, Vector, signing_key
from _vectors_conversations import (
    ASKER_ONLY,
    BRIEF,
    CHEAP,
    DEAR,
    EVERYBODY,
    HELLO_OF_PEER,
    LONG,
    NODE,
    VECTORS,
    Conversation,
    answer_hello,
    ask,
    file_of,
    offer_of,
    provider_of,
)
from protocol import constants as c
from protocol.envelope import open_record, sign_record
from protocol.ids import NodeId
from protocol.messages import (
    Digest,
    Find,
    Graft,
    Interest,
    Leave,
    Message,
    Neighbour,
    NeighbourAnswer,
    Records,
    Reports,
    Shuffle,
    Shuffled,
    Summary,
    Want,
)
from protocol.records import Heartbeat, Kind, ReportEntry, ReportRecord, Signed

# The peer's gossip stream, and the node's.
THERE, BACK = 2, 3
LOWEST, HIGHEST = NodeId(bytes(32)), NodeId(b"\xff" * 32)
NEWCOMER = provider_of("newcomer", offer_of("model-n"))
REPORT = sign_record(
    ReportRecord(
        version=1,
        asker=signing_key("asker only").node,
        sequence=NOW_MS,
        issued_at_ms=NOW_MS,
        expires_at_ms=NOW_MS + 86_400_000,
        covers_s=600,
        entries=(ReportEntry(signing_key("cheap").node, "model-a", 3, 1, ((32, 2),), 1, 0, 300, 40_000, None),),
        extensions=(),
    ),
    signing_key("asker only"),
)


def _node_of(signed: Signed) -> NodeId:
    return open_record(signed, Heartbeat).node


def _entry(signed: Signed, older_by: int = 0) -> tuple[NodeId, int]:
    record = open_record(signed, Heartbeat)
    return record.node, record.sequence - older_by


def _everything() -> tuple[tuple[NodeId, int], ...]:
    return tuple(sorted(_entry(signed) for signed in EVERYBODY))


def _gossiping(comment: str) -> Conversation:
    """Two who have greeted each other, and the peer has opened its gossip stream."""
    talk = Conversation(comment, *EVERYBODY)
    talk.open("peer", 100, c.HELLO_PROTOCOL)
    talk.say("peer", 100, replace(HELLO_OF_PEER, features=(1,)))
    talk.close("peer", 100)
    answer_hello(talk)
    talk.open("peer", 200, c.GOSSIP_PROTOCOL, THERE)
    return talk


def _neighbours(comment: str) -> Conversation:
    """Two neighbours, the first that either has. The node compares at once, and holds so little that it lists it."""
    talk = _gossiping(comment)
    talk.say("peer", 200, Interest(1, ()), stream=THERE)
    talk.say("peer", 200, Neighbour(1), stream=THERE)
    _takes_in(talk)
    talk.say("node", 200, Digest(LOWEST, HIGHEST, _everything()), any_order=("entries",), stream=BACK)
    return talk


def _takes_in(talk: Conversation) -> None:
    talk.open("node", 200, c.GOSSIP_PROTOCOL, BACK)
    talk.say("node", 200, Interest(1, ()), free=("everything", "models"), stream=BACK)
    talk.say("node", 200, NeighbourAnswer(1, ()), free=("others",), stream=BACK)


def _brings(talk: Conversation, *records: Signed, at_ms: int = 300) -> None:
    talk.say("node", at_ms, Records(records), any_order=("records",), stream=BACK)


def gossip() -> Vector:
    """gossip.json."""
    return file_of(
        "How neighbours bring each other up to date (specs/04).",
        _neighbours("they become neighbours, and the node says what it holds"),
        _wanted(),
        _grafted(),
        _compared(),
        _summarised(),
        _brought(),
        _left(),
        _narrow(),
        _too_early(),
        _shuffled(),
        _no_gossip("a message that belongs to another protocol", Find(1, None, Kind.CHAT, 0, None, None, 1)),
        _bad_gossip("a record with a signature that is none", Records((Signed(NEWCOMER.body, bytes(64)),))),
        _bad_gossip("a report with a signature that is none", Reports((Signed(REPORT.body, bytes(64)),))),
        _bad_gossip("a digest that names a node twice", Digest(LOWEST, HIGHEST, (_entry(CHEAP), _entry(CHEAP)))),
        _bad_gossip("a digest whose first id is above its last", Digest(HIGHEST, LOWEST, ())),
        _bad_gossip(
            "a summary whose ranges do not ascend", Summary(NOW_MS, ((HIGHEST, bytes(8)), (HIGHEST, bytes(8))))
        ),
        _bad_gossip("a summary that does not reach the highest id", Summary(NOW_MS, ((_node_of(CHEAP), bytes(8)),))),
    )


def _wanted() -> Conversation:
    talk = _neighbours("the peer wants two of those records, and one that nobody has")
    talk.say("peer", 300, Want((_node_of(CHEAP), _node_of(VECTORS), NodeId(bytes(31) + b"\1"))), stream=THERE)
    _brings(talk, CHEAP, VECTORS)
    return talk


def _grafted() -> Conversation:
    talk = _neighbours("the peer has been told of a record that did not come, and grafts")
    talk.say("peer", 300, Graft((_node_of(DEAR),)), stream=THERE)
    _brings(talk, DEAR)
    return talk


def _compared() -> Conversation:
    talk = _neighbours("the peer lists what it holds: one as the node does, one older, one that the node lacks")
    entries = tuple(sorted((_entry(CHEAP), _entry(DEAR, older_by=1), _entry(NEWCOMER))))
    talk.say("peer", 300, Digest(LOWEST, HIGHEST, entries), stream=THERE)
    _brings(talk, DEAR, LONG, VECTORS, BRIEF, ASKER_ONLY)
    talk.say("node", 300, Want((_node_of(NEWCOMER),)), any_order=("nodes",), stream=BACK)
    talk.say("peer", 400, Records((NEWCOMER,)), stream=THERE)
    _know_of_newcomer(talk, 500)
    return talk


def _know_of_newcomer(talk: Conversation, at_ms: int) -> None:
    ask(talk, at_ms, Find(9, "model-n", Kind.CHAT, 0, None, None, 4), NEWCOMER, stream=4)


def _summarised() -> Conversation:
    """The range with the node's own id always differs: what it says of itself nobody can know beforehand."""
    talk = _neighbours("a summary: one range as the node has it, one with a record less; it lists what differs")
    first, second, *rest = _everything()
    assert rest[-1][0] < NODE.node
    last = _next_to(NODE.node, -1)
    parts = ((second[0], _fingerprint([first, second])), (last, _fingerprint(rest[1:])), (HIGHEST, bytes(8)))
    talk.say("peer", 300, Summary(NOW_MS + 250, parts), stream=THERE)
    after = _next_to(second[0], 1)
    talk.say("node", 300, Digest(after, last, tuple(rest)), any_order=("entries",), stream=BACK)
    talk.say("node", 300, Digest(NODE.node, HIGHEST, ()), any_order=("entries",), stream=BACK)
    return talk


def _fingerprint(entries: list[tuple[NodeId, int]]) -> bytes:
    """What a summary says of a range, as specs/04 has it."""
    return hashlib.sha256(b"".join(node + sequence.to_bytes(8, "big") for node, sequence in entries)).digest()[:8]


def _next_to(node: NodeId, by: int) -> NodeId:
    return NodeId((int.from_bytes(node, "big") + by).to_bytes(32, "big"))


def _brought() -> Conversation:
    talk = _neighbours("news: the node holds them from then on; what is older than what it holds changes nothing")
    newer = provider_of("cheap", offer_of("model-a"), sequence=NOW_MS + 1)
    talk.say("peer", 300, Records((NEWCOMER, newer)), stream=THERE)
    talk.say("peer", 300, Records((CHEAP,)), stream=THERE)
    _know_of_newcomer(talk, 400)
    ask(talk, 500, Find(10, "model-b", Kind.CHAT, 0, None, None, 4), stream=5)
    return talk


def _left() -> Conversation:
    talk = _neighbours("the peer leaves: no word more, and what it holds is still known")
    talk.say("peer", 300, Leave(), stream=THERE)
    talk.close("node", 300, BACK)
    ask(talk, 400, Find(11, "model-b", Kind.CHAT, 0, None, None, 4), CHEAP, stream=4)
    return talk


def _narrow() -> Conversation:
    talk = _gossiping("the peer wants to hear of one model only: no more is listed, and what it asks for it gets")
    talk.say("peer", 200, Interest(0, ("model-e",)), stream=THERE)
    talk.say("peer", 200, Neighbour(1), stream=THERE)
    _takes_in(talk)
    talk.say("node", 200, Digest(LOWEST, HIGHEST, (_entry(VECTORS),)), any_order=("entries",), stream=BACK)
    talk.say("peer", 300, Want((_node_of(CHEAP),)), stream=THERE)
    _brings(talk, CHEAP)
    return talk


def _too_early() -> Conversation:
    talk = _gossiping("news of one who is no neighbour are passed over, and nobody is blamed")
    talk.say("peer", 200, Interest(1, ()), stream=THERE)
    talk.say("peer", 200, Records((NEWCOMER,)), stream=THERE)
    ask(talk, 400, Find(13, "model-n", Kind.CHAT, 0, None, None, 4), stream=4)
    return talk


def _shuffled() -> Conversation:
    talk = _neighbours("the peer shuffles: some that the node knows come in exchange, and it knows what it was told")
    talk.say("peer", 300, Shuffle((NEWCOMER,)), stream=THERE)
    talk.say("node", 300, Shuffled((CHEAP, DEAR, LONG, VECTORS, BRIEF)), free=("records",), stream=BACK)
    _know_of_newcomer(talk, 400)
    return talk


def _no_gossip(comment: str, message: Message) -> Conversation:
    talk = _gossiping(comment)
    talk.say("peer", 200, message, stream=THERE)
    talk.reset(200, THERE)
    return talk


def _bad_gossip(comment: str, message: Message) -> Conversation:
    talk = _neighbours(comment)
    talk.say("peer", 300, message, stream=THERE)
    talk.reset(300, THERE)
    talk.close("node", 300, BACK)
    ask(talk, 400, Find(12, "model-n", Kind.CHAT, 0, None, None, 4), stream=4)
    return talk
