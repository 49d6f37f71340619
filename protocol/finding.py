"""Who serves what, asked of peers: `Find` and `Found` on streams of their own.

Answers are signed heartbeats that the asker checks like any other; a peer that answers with nonsense teaches nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from protocol import constants as c
from protocol.codec import encode_message
from protocol.directory import Directory
from protocol.errors import RemoteProtocolError, Stale, UnknownVersion
from protocol.events import Effect, FinishStream, Now, OpenStream, RecordLearnt, Send
from protocol.ids import NodeId, StreamId
from protocol.messages import Find, Found, Heartbeat, Message, Signed
from protocol.routing import RouteRequest, exclusion


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
        self._queries: dict[StreamId, int] = {}

    def ask(self, request: RouteRequest) -> list[Effect]:
        """Ask a few connected peers; what they know arrives in the directory."""
        peers = self._connected()
        effects: list[Effect] = []
        for peer in self._rng.sample(peers, min(c.FIND_PEERS, len(peers))):
            stream = self._next_stream()
            query = self._rng.getrandbits(62)
            self._queries[stream] = query
            find = Find(
                query,
                request.model,
                request.kind,
                request.context_tokens,
                request.price_in_uusd_max,
                request.price_out_uusd_max,
                c.FIND_RESULTS_MAX,
            )
            effects += [
                OpenStream(stream, peer, c.FIND_PROTOCOL),
                Send(stream, encode_message(find)),
                FinishStream(stream),
            ]
        return effects

    def on_stream_lost(self, stream: StreamId) -> None:
        self._queries.pop(stream, None)

    def on_message(self, stream: StreamId, message: Message, now: Now) -> tuple[list[Effect], list[Heartbeat]]:
        """Answer a query, or take an answer: effects, and the heartbeats that were news. Raises RemoteProtocolError."""
        if isinstance(message, Find):
            found = encode_message(Found(message.query, self._answer(message, now)))
            return [Send(stream, found), FinishStream(stream)], []
        if not isinstance(message, Found) or self._queries.pop(stream, None) != message.query:
            raise RemoteProtocolError("an answer to a question that was not asked")
        effects: list[Effect] = []
        news: list[Heartbeat] = []
        for record in message.records:
            try:
                heartbeat = self._directory.add(record, now.wall_ms)
            except (Stale, UnknownVersion):
                continue  # expired on its way, or newer than this program: the peer is not to blame
            if heartbeat is not None:
                news.append(heartbeat)
                effects.append(RecordLearnt(heartbeat, record))
        return effects, news

    def _answer(self, find: Find, now: Now) -> tuple[Signed, ...]:
        """Up to `limit` fitting providers, sampled: the asker chooses, we only know."""
        request = RouteRequest(
            find.model,
            find.kind,
            find.context_tokens_min,
            price_in_uusd_max=find.price_in_uusd_max,
            price_out_uusd_max=find.price_out_uusd_max,
            free=False,
        )
        names = [find.model] if find.model is not None else self._directory.models()
        nodes: dict[NodeId, None] = {}
        for name in names[: c.ARRAY_ITEMS_MAX]:
            providers = self._directory.providers_of(name)
            nodes.update(dict.fromkeys(self._rng.sample(providers, min(2 * find.limit, len(providers)))))
        records: list[Signed] = []
        size = 0
        for node in nodes:
            entry = self._directory.get(node)
            assert entry is not None
            fits = exclusion(entry, request, now.wall_ms, ourselves=NodeId(b""), tried=(), connected=lambda _: True)
            size += len(entry.record.body) + 128
            if fits is None and len(records) < find.limit and size < c.CONTROL_FRAME_BYTES_MAX:
                records.append(entry.record)
        return tuple(records)
