"""The directory against a model: a dictionary of the newest record of each node, in any order of arrivals and hours."""

from __future__ import annotations

import random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from protocol.directory import FIRST_ID, LAST_ID, Directory
from protocol.errors import RemoteProtocolError
from protocol.ids import NodeId
from protocol.records import Heartbeat, Signed
from tests.helpers_machines import entry_of
from tests.helpers_records import NOW_MS, OFFER

NAMES = st.sampled_from([f"node {number}" for number in range(8)])
MODELS = st.lists(st.sampled_from(["x", "y", "z"]), max_size=3)
ENTRIES = {}


def entry(name: str, sequence: int, expires_in_s: int, models: tuple[str, ...]) -> tuple[Heartbeat, Signed]:
    key = (name, sequence, expires_in_s, models)
    if key not in ENTRIES:
        offers = tuple(replace(OFFER, name=model) for model in models)
        ENTRIES[key] = entry_of(
            name, sequence=sequence, expires_at_ms=NOW_MS + expires_in_s * 1000, issued_at_ms=NOW_MS, models=offers
        )
    return ENTRIES[key].heartbeat, ENTRIES[key].record


class DirectoryMachine(RuleBasedStateMachine):
    """Feeds both, and compares everything that can be asked."""

    @initialize(limit=st.sampled_from([3, 5, 100]))
    def start(self, limit: int) -> None:
        self.limit = limit
        self.directory = Directory(records_max=limit)
        self.model: dict[NodeId, Heartbeat] = {}
        self.wall_ms = NOW_MS

    @rule(name=NAMES, sequence=st.integers(1, 4), expires_in_s=st.sampled_from([60, 300, 900]), models=MODELS)
    def add(self, name: str, sequence: int, expires_in_s: int, models: list[str]) -> None:
        heartbeat, record = entry(name, sequence, expires_in_s, tuple(models))
        held = self.model.get(heartbeat.node)
        is_news = held is None or heartbeat.sequence > held.sequence
        try:
            result = self.directory.add(record, self.wall_ms)
        except RemoteProtocolError:
            assert is_news
            assert heartbeat.expires_at_ms <= self.wall_ms
            return
        if is_news:
            self.model[heartbeat.node] = heartbeat
            if len(self.model) > self.limit:
                # The dice say who makes room; it is one, and not the newcomer.
                (victim,) = (node for node in self.model if self.directory.get(node) is None)
                del self.model[victim]
        assert (result is not None) == (is_news and heartbeat.node in self.model)

    @rule(name=NAMES, sequence=st.integers(1, 4))
    def forge(self, name: str, sequence: int) -> None:
        heartbeat, record = entry(name, sequence, 900, ())
        held = self.model.get(heartbeat.node)
        try:
            assert self.directory.add(replace(record, signature=bytes(64)), self.wall_ms) is None
            assert held is not None
        except RemoteProtocolError:
            assert held is None or held.sequence < sequence

    @rule(seconds=st.sampled_from([1, 59, 240, 600]))
    def wait(self, seconds: int) -> None:
        self.wall_ms += seconds * 1000
        gone = {node for node, heartbeat in self.model.items() if heartbeat.expires_at_ms <= self.wall_ms}
        assert set(self.directory.expire(self.wall_ms)) == gone
        for node in gone:
            del self.model[node]

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        nodes = sorted(self.model)
        assert len(self.directory) == len(nodes) <= self.limit
        assert [held.heartbeat for held in self.directory.entries()] == [self.model[node] for node in nodes]
        assert [held.heartbeat.node for held in self.directory.between(FIRST_ID, LAST_ID, 100)] == nodes
        by_model: dict[str, set[NodeId]] = {}
        for node, heartbeat in self.model.items():
            for offer in heartbeat.models:
                by_model.setdefault(offer.name, set()).add(node)
        assert self.directory.models() == sorted(by_model)
        for model, expected in by_model.items():
            found = self.directory.providers_of(model)
            assert set(found) == expected
            assert len(found) == len(expected)
        assert sorted(self.directory.sample(100, random.Random(1))) == nodes


TestDirectory = DirectoryMachine.TestCase
