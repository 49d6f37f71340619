"""How many streams one peer may have open: strangers few, whom the owner knows as many as the slots need."""

from __future__ import annotations

import random

import pytest

from protocol import constants as c
from protocol import events as e
from protocol.effects import ResetStream
from protocol.envelope import SigningKey
from protocol.ids import NodeId, StreamId
from protocol.peer import Peer, PeerConfig
from protocol.records import Kind, ModelOffer, Role
from protocol.sealing import HpkeSealer

NOW = e.Now(1000.0, 1_700_000_000_000)
PEER = SigningKey(random.Random(2).randbytes(32), random.Random(2).randbytes).node


def provider(slots: int, *known: NodeId) -> Peer:
    """A peer that offers one model, and is connected to another."""
    source = random.Random(1)
    key = SigningKey(source.randbytes(32), source.randbytes)
    peer = Peer(PeerConfig("test"), key, HpkeSealer(), source, NOW)
    model = ModelOffer("model", bytes(32), (Kind.CHAT,), 2048, slots, 0, 0, 0)
    peer.handle(e.SetOffer(e.Offer(Role.PROVIDER, "provider", "test", models=(model,))), NOW)
    peer.handle(e.Allow(frozenset(known)), NOW)
    peer.handle(e.PeerConnected(PEER, None, inbound=True), NOW)
    return peer


def streams_taken(peer: Peer, protocol: str) -> int:
    """How many streams can be opened before one is reset."""
    for count in range(1000):
        effects = peer.handle(e.StreamOpened(StreamId(2 * count + 2), PEER, protocol), NOW)
        if any(isinstance(effect, ResetStream) for effect in effects):
            return count
    raise AssertionError("there is no end to it")


@pytest.mark.parametrize("slots", [1, 64])
def test_a_stranger_may_open_as_many_job_streams_as_any_other(slots: int) -> None:
    assert streams_taken(provider(slots), c.JOB_PROTOCOL) == c.JOB_STREAMS_PER_PEER_MAX


@pytest.mark.parametrize(("slots", "expected"), [(1, 32), (5, 32), (6, 36), (64, 384)])
def test_whom_the_owner_knows_may_fill_all_slots(slots: int, expected: int) -> None:
    assert streams_taken(provider(slots, PEER), c.JOB_PROTOCOL) == expected


@pytest.mark.parametrize("protocol", [c.HELLO_PROTOCOL, c.GOSSIP_PROTOCOL, c.FIND_PROTOCOL])
def test_control_streams_are_few_for_everybody(protocol: str) -> None:
    assert streams_taken(provider(64, PEER), protocol) == c.CONTROL_STREAMS_PER_PEER_MAX
