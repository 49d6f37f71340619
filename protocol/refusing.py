"""How a provider says no: why, when to come again, who else may do it, and perhaps a slot that is held there."""

from __future__ import annotations

import random
from collections.abc import Callable

from protocol import constants as c
from protocol.codec import encode_message, record_job
from protocol.directory import Directory
from protocol.effects import Effect, FinishStream, Note, Send
from protocol.envelope import open_record
from protocol.errors import Refusal, RemoteProtocolError
from protocol.events import Now
from protocol.handing_off import HandingOff, Unwanted
from protocol.ids import JobId, NodeId, StreamId
from protocol.messages import Cancel, JobReject, Message, Part
from protocol.records import JobOpenRecord, ModelOffer, ReservationRecord, Signed


class Refusing:
    """What a refusal takes; the machine in it is `handing_off`. `own_record` is our newest heartbeat."""

    def __init__(
        self,
        node: NodeId,
        directory: Directory,
        rng: random.Random,
        *,
        connected: Callable[[NodeId], bool],
        addresses: Callable[[NodeId], tuple[str, ...]],
        next_stream: Callable[[], StreamId],
        own_record: Callable[[], Signed | None],
    ) -> None:
        self._node = node
        self._directory = directory
        self._own_record = own_record
        self.handing_off = HandingOff(
            node,
            directory,
            rng,
            connected=connected,
            addresses=addresses,
            next_stream=next_stream,
            refuse=self._reject,
        )

    def refuse(self, unwanted: Unwanted, offer: ModelOffer | None, now: Now) -> list[Effect]:
        """Refuse this order, perhaps after a look around. `offer` is what we serve under the model's name."""
        handoff = self.handing_off.begin(unwanted, offer, now)
        return handoff if handoff is not None else self._reject(unwanted, None)

    def on_message(self, stream: StreamId, message: Message) -> list[Effect]:
        """Take what still comes on the stream of an order that is about to be refused. Raises RemoteProtocolError."""
        if isinstance(message, Cancel):
            return self.handing_off.stop(stream, (Refusal.CANCELLED, "the job was stopped"))
        if isinstance(message, Part):
            return []  # the prompt was on its way
        raise RemoteProtocolError(f"{type(message).__name__} after an order")

    @staticmethod
    def refuse_unknown(stream: StreamId, order: Signed, text: str) -> list[Effect]:
        """An order of a newer version: refuse it by name, which all versions state in the same place."""
        named = record_job(order.body)
        if named is None:
            raise RemoteProtocolError(text)
        job, attempt = named
        reject = JobReject(JobId(job), attempt, int(Refusal.UNSUPPORTED), 0, text[: c.TEXT_CHARACTERS_MAX], (), None)
        return [Send(stream, encode_message(reject)), FinishStream(stream)]

    def _reject(self, unwanted: Unwanted, reservation: Signed | None) -> list[Effect]:
        order, (code, text) = unwanted.order, unwanted.why
        reject = JobReject(
            order.job,
            order.attempt,
            int(code),
            unwanted.retry_after_ms,
            text[: c.TEXT_CHARACTERS_MAX],
            self._better(order, code, reservation),
            reservation,
        )
        how = code.name.lower() if reservation is None else f"{code.name.lower()}, handed off"
        return [
            Send(unwanted.stream, encode_message(reject)),
            FinishStream(unwanted.stream),
            Note("job.refused", order.asker, how),
        ]

    def _better(self, order: JobOpenRecord, code: Refusal, reservation: Signed | None) -> tuple[Signed, ...]:
        """Heartbeats for the refusal: of who holds a slot first, of others that fit the order, or of our new key."""
        if code is Refusal.CANNOT_OPEN_SEAL:
            own = self._own_record()
            return (own,) if own is not None else ()
        fitting: list[NodeId] = []
        if reservation is not None:
            fitting.append(open_record(reservation, ReservationRecord).provider)
        if code in (Refusal.BUSY, Refusal.DRAINING, Refusal.NO_MODEL, Refusal.ENGINE_UNAVAILABLE):
            fitting += self._directory.providers_of(order.model)[: 4 * c.BETTER_PEERS_MAX]
        records: list[Signed] = []
        for node in dict.fromkeys(fitting):
            entry = self._directory.get(node)
            is_of_use = entry is not None and (entry.heartbeat.addresses or reservation is not None)
            if entry is not None and is_of_use and node not in (self._node, order.asker):
                records.append(entry.record)
        return tuple(records[: c.BETTER_PEERS_MAX])
