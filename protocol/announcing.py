"""What this node says about itself: its offer, and heartbeats signed anew from it with a sequence that only grows."""

from __future__ import annotations

from typing import Final

from protocol import constants as c
from protocol.details import extensions_of
from protocol.directory import Entry
from protocol.envelope import Signer, sign_record
from protocol.events import Now, Offer
from protocol.records import Extensions, Heartbeat, Role
from protocol.relays import FEATURE_RELAYS
from protocol.sealing import Sealer

#: The extension of a heartbeat that says where in the DHT the node is (specs/03).
EXTENSION_DHT: Final = 1


class Announcing:
    """The state; the features given are what this program can do beyond the base protocol (specs/01)."""

    def __init__(self, signer: Signer, sealer: Sealer, features: tuple[int, ...]) -> None:
        self._signer = signer
        self._sealer = sealer
        self._sequence = 0
        self._features = features
        self.offer: Offer | None = None
        self._extended: tuple[Offer, Extensions] | None = None

    @property
    def features(self) -> tuple[int, ...]:
        """What this node can do now, for `Hello` and heartbeat."""
        return self._features_with(self.offer)

    def _features_with(self, offer: Offer | None) -> tuple[int, ...]:
        relays = (FEATURE_RELAYS,) if offer is not None and offer.relays else ()
        return tuple(sorted((*self._features, *relays)))

    def _extensions_of(self, offer: Offer) -> Extensions:
        """The same for every heartbeat of an offer, which are many."""
        if self._extended is None or self._extended[0] is not offer:
            place = () if offer.dht_address is None else ((EXTENSION_DHT, offer.dht_address.encode()),)
            self._extended = (offer, (*place, *extensions_of(offer.models, offer.said)))
        return self._extended[1]

    def sign(self, offer: Offer, load: int, now: Now) -> Entry:
        """A heartbeat of this moment. Raises LocalProtocolError for an offer that others would refuse."""
        heartbeat = Heartbeat(
            version=1,
            node=self._signer.node,
            # SPEC 01: A node MUST sign every heartbeat with a higher sequence than the one before, over restarts too.
            # The wall clock carries the sequence over a restart; it may stand still or go back while we run.
            sequence=max(self._sequence + 1, now.wall_ms),
            issued_at_ms=now.wall_ms,
            # SPEC 01: A node MUST NOT let a heartbeat live longer than 30 minutes.
            expires_at_ms=now.wall_ms + c.HEARTBEAT_LIFETIME_MS_MAX,
            role=offer.role,
            availability=offer.availability,
            name=offer.name,
            agent=offer.agent,
            addresses=offer.addresses,
            gpus=offer.gpus,
            models=offer.models,
            load=load,
            free_policy=offer.free_policy,
            sealing_key=self._sealer.public_key(now.wall_ms) if offer.role is Role.PROVIDER else None,
            sealed_bytes_max=offer.sealed_bytes_max,
            features=self._features_with(offer),
            coordinators=offer.coordinators,
            extensions=self._extensions_of(offer),
        )
        record = sign_record(heartbeat, self._signer)
        self._sequence = heartbeat.sequence
        return Entry(heartbeat, record)
