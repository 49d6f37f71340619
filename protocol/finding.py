"""Who serves what, asked of peers: `Find` and `Found` on streams of their own.

Answers are signed heartbeats that the asker checks like any other; a peer that answers with nonsense teaches nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Final

from protocol import constants as c
from protocol.codec import encode_message
from protocol.directory import Directory
from protocol.effects import Effect, FinishStream, OpenStream, RecordLearnt, Send
from protocol.errors import RemoteProtocolError
from protocol.events import Now
from protocol.ids import NodeId, StreamId
from protocol.messages import Find, Found, Message
from protocol.records import Signed
from protocol.routing import RouteRequest, exclusion

# A peer holds few control streams for us; jobs that search at the same time share what the first ones learn.
QUERIES_PER_PEER_MAX: Final = 4
# Looked at for a question that names no model: of those some are no providers, or do not fit.
ANY_MODEL_SAMPLE: Final = 128


class Finding:
    """Both sides of the find protocol; a query lives as long as its stream."""

    def __init__(
        self,
        node: NodeId,
        directory: Directory,
        rng: random.Random,
        *,
        connected: Callable[[], list[NodeId]],
        next_stream: Callable[[], StreamId],
    ) -> None:
        self._node = node
        self._directory = directory
        self._rng = rng
        self._connected = connected
        self._next_stream = next_stream
        self._queries: dict[StreamId, tuple[NodeId, int]] = {}

    @property
    def active(self) -> int:
        """Queries that wait for their answer."""
        return len(self._queries)

    def ask(
        self, request: RouteRequest, peer: NodeId | None = None, but: Collection[NodeId] = frozenset()
    ) -> list[Effect]:
        """Ask this peer, or a few connected ones `but` those; what they know arrives in the directory."""
        asked = [asked for asked, _ in self._queries.values()]
        peers = [peer] if peer is not None else [peer for peer in self._connected() if peer not in but]
        peers = [peer for peer in peers if asked.count(peer) < QUERIES_PER_PEER_MAX]
        effects: list[Effect] = []
        for peer in self._rng.sample(peers, min(c.FIND_PEERS, len(peers))):
            stream = self._next_stream()
            query = self._rng.getrandbits(62)
            self._queries[stream] = (peer, query)
            find = Find(
                query,
                request.model,
                request.kind,
                request.context_tokens,
                request.price_in_uusd_max,
                request.price_out_uusd_max,
                c.FIND_RESULTS_MAX,
                request.fingerprint,
                request.provider,
            )
            effects += [
                OpenStream(stream, peer, c.FIND_PROTOCOL),
                Send(stream, encode_message(find)),
                FinishStream(stream),
            ]
        return effects

    def on_stream_lost(self, stream: StreamId) -> None:
        self._queries.pop(stream, None)

    def on_query(self, stream: StreamId, message: Message, now: Now) -> list[Effect]:
        """Answer on a stream that a peer opened. Raises RemoteProtocolError."""
        if not isinstance(message, Find):
            raise RemoteProtocolError(f"{type(message).__name__} asks nothing")
        return [Send(stream, encode_message(Found(message.query, self._answer(message, now)))), FinishStream(stream)]

    def on_answer(self, stream: StreamId, message: Message, now: Now) -> list[Effect]:
        """Take an answer on a stream that we opened. Raises RemoteProtocolError."""
        _, query = self._queries.pop(stream, (None, None))
        if not isinstance(message, Found) or message.query != query:
            raise RemoteProtocolError("an answer to a question that was not asked")
        news, _ = self._directory.add_all(message.records, now.wall_ms)
        return [RecordLearnt(entry.heartbeat, entry.record) for entry in news]

    def _answer(self, find: Find, now: Now) -> tuple[Signed, ...]:
        """Up to `limit` fitting providers, sampled: the asker chooses, we only know."""
        request = RouteRequest(
            find.model,
            find.kind,
            find.context_tokens_min,
            price_in_uusd_max=find.price_in_uusd_max,
            price_out_uusd_max=find.price_out_uusd_max,
            free=False,
            fingerprint=find.fingerprint,
        )
        records: list[Signed] = []
        size = 0
        for node in self._nodes(find):
            entry = self._directory.get(node)
            if entry is None:
                continue
            fits = exclusion(
                entry,
                request,
                now.wall_ms,
                ourselves=NodeId(b""),
                tried=(),
                connected=lambda _: True,
                has_address=lambda _: True,
            )
            if fits is not None:
                continue
            size += len(entry.record.body) + 128
            if len(records) == find.limit or size >= c.CONTROL_FRAME_BYTES_MAX:
                break
            records.append(entry.record)
        return tuple(records)

    def _nodes(self, find: Find) -> list[NodeId]:
        """Who is looked at: the one asked for, or a sample of those with the model."""
        if find.provider is not None:
            return [find.provider]
        if find.model is None:
            # Not by way of the models' names: listing many of them would be worth it, and walking through all is slow.
            return self._directory.sample(ANY_MODEL_SAMPLE, self._rng)
        providers = self._directory.providers_of(find.model)
        return self._rng.sample(providers, min(2 * find.limit, len(providers)))
