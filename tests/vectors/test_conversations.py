"""specs/conversations: this implementation does what they say a node does, and nothing else."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from _vectors_common import signing_key
from protocol.codec import FrameReader, limits_of_protocol
from protocol.effects import Effect, FinishStream, HangUp, OpenStream, ResetStream, Send
from protocol.envelope import SigningKey
from protocol.events import (
    DEADLINE,
    BytesReceived,
    Event,
    LearnRecord,
    Now,
    Offer,
    PeerConnected,
    SetOffer,
    StreamFinished,
    StreamOpened,
)
from protocol.ids import StreamId
from protocol.messages import Fault, Found, Message
from protocol.peer import Peer, PeerConfig
from protocol.records import Role, Signed
from protocol.sealing import HpkeSealer
from tests.helpers_vectors import FOLDER, Vector, plain

# Of every conversation.
NODE_ID = signing_key("node").node.hex()
CONVERSATIONS = FOLDER.parent / "conversations"


def every() -> list[Any]:
    """Each conversation of every file, named by its comment."""
    found = []
    for path in sorted(CONVERSATIONS.glob("*.json")):
        conversations = json.loads(path.read_text("utf-8"))["conversations"]
        found += [pytest.param(each, id=f"{path.stem}: {each['comment']}") for each in conversations]
    return found


class Node:
    """A whole peer as the node of a conversation."""

    def __init__(self, conversation: Vector) -> None:
        self._start_ms = conversation["started_at_ms"]
        self._at_ms = 0
        self._partner = SigningKey(bytes.fromhex(conversation["peer_secret"]), bytes).node
        key = SigningKey(bytes.fromhex(conversation["node_secret"]), bytes)
        self._peer = Peer(PeerConfig("test"), key, HpkeSealer(), random.Random(1), self._now())
        # Those of the node's own streams are its numbers; the others start above all of them.
        self._numbers: dict[int, StreamId] = {}
        self._protocols: dict[StreamId, str] = {}
        self._readers: dict[StreamId, FrameReader] = {}
        self.done: list[tuple[StreamId, str, Message | None]] = []
        self._feed(SetOffer(Offer(Role.CLIENT, "n", "a")))
        for body, signature in ((each["body"], each["signature"]) for each in conversation["known"]):
            self._feed(LearnRecord(Signed(bytes.fromhex(body), bytes.fromhex(signature))))

    def _now(self, at_s: float | None = None) -> Now:
        return Now(self._at_ms / 1000 if at_s is None else at_s, self._start_ms + self._at_ms)

    def wait_until(self, at_ms: int) -> None:
        """Let every deadline up to this moment come."""
        while (deadline_s := self._peer.next_deadline()) is not None and deadline_s * 1000 <= at_ms + 1e-6:
            self._at_ms = max(self._at_ms, round(deadline_s * 1000))
            self._take(self._peer.handle(DEADLINE, self._now(max(deadline_s, self._at_ms / 1000))))
        self._at_ms = at_ms

    def _feed(self, event: Event) -> None:
        self._take(self._peer.handle(event, self._now()))

    def _take(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case OpenStream(stream=stream, protocol=protocol):
                    self._begin(stream, protocol)
                    self.done.append((stream, "open", None))
                case Send(stream=stream, data=data):
                    self.done += [(stream, "frame", message) for message in self._readers[stream].feed(data)]
                case FinishStream(stream=stream):
                    self.done.append((stream, "close", None))
                case ResetStream(stream=stream):
                    self.done.append((stream, "reset", None))
                case HangUp():
                    raise AssertionError("the node hangs up")

    def _begin(self, stream: StreamId, protocol: str) -> None:
        self._protocols[stream] = protocol
        self._readers[stream] = FrameReader(limits_of_protocol(protocol))

    # ------------------------------------------------------------ steps

    def hear(self, step: Vector) -> None:
        """The peer does something."""
        match step["event"]:
            case "connect":
                self._feed(PeerConnected(self._partner, step["address"], True))
            case "open":
                stream = self._numbers[step["stream"]] = StreamId(2 * step["stream"])
                self._begin(stream, step["protocol"])
                self._feed(StreamOpened(stream, self._partner, step["protocol"]))
            case "frame" | "bytes":
                data = bytes.fromhex(step["frame" if step["event"] == "frame" else "bytes"])
                self._feed(BytesReceived(self._numbers[step["stream"]], data))
            case "close":
                self._feed(StreamFinished(self._numbers[step["stream"]]))

    def must(self, step: Vector) -> None:
        """The node has done this next."""
        if step["event"] == "connect":
            self._feed(PeerConnected(self._partner, step["address"], False))
            return
        assert self.done, f"it does nothing where it should {step['event']}"
        stream, event, message = self.done.pop(0)
        if step["event"] == "reset" and isinstance(message, Fault):
            stream, event, message = self.done.pop(0)
        assert event == step["event"], message
        if event == "open":
            self._numbers[step["stream"]] = stream
            assert self._protocols[stream] == step["protocol"]
        assert stream == self._numbers[step["stream"]]
        if event == "frame":
            compare(message, step)


def compare(message: Message | None, step: Vector) -> None:
    """A message against a step, but for what is the node's own choice."""
    assert type(message).__name__ == step["message"]
    expected, actual = step["fields"], plain(message)
    for name in expected:
        if name in step.get("free", ()):
            continue
        if name in step.get("any_order", ()):
            assert sorted(_others(actual[name]), key=str) == sorted(_others(expected[name]), key=str), name
        else:
            assert actual[name] == expected[name], name


def _others(items: list[Any]) -> list[Any]:
    """Of a list of records or entries those that are not about the node itself."""
    return [item for item in items if NODE_ID not in str(item)]


@pytest.mark.parametrize("conversation", every())
def test_a_node_does_what_the_conversation_says(conversation: Vector) -> None:
    node = Node(conversation)
    assert not node.done
    at_ms = 0
    for step in conversation["steps"]:
        if step["at_ms"] > at_ms:
            assert not node.done, f"more than the conversation says at {at_ms} ms"
            at_ms = step["at_ms"]
            node.wait_until(at_ms)
        if step["from"] == "peer":
            node.hear(step)
        else:
            node.must(step)
    assert not node.done, "more than the conversation says at its end"


@pytest.mark.parametrize("path", sorted(CONVERSATIONS.glob("*.json")), ids=lambda path: path.stem)
def test_a_file_says_how_it_is_replayed(path: Path) -> None:
    contents = json.loads(path.read_text("utf-8"))
    assert "node_secret" in contents["comment"]
    names = [each["comment"] for each in contents["conversations"]]
    assert len(set(names)) == len(names)
    assert f"(conversations/{path.name})" in (FOLDER.parent / "00-introduction.md").read_text("utf-8")


def test_a_node_that_says_something_else_is_noticed() -> None:
    """The comparison itself: what is the node's own choice may differ, and nothing else."""
    message = Found(7, (Signed(b"one", bytes(64)), Signed(b"other", bytes(64))))
    step = {"message": "Found", "fields": plain(message), "any_order": ["records"]}
    compare(Found(7, message.records[::-1]), step)
    for wrong in (Found(8, message.records), Found(7, message.records[:1]), Fault(7, "")):
        with pytest.raises(AssertionError):
            compare(wrong, step)
    for free in (Found(8, message.records), Found(8, ())):
        compare(free, {**step, "free": ["query", "records"]})
