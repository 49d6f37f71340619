"""What one neighbour may cost, and what it is known to have."""

from __future__ import annotations

from protocol.directory import Directory
from protocol.gossip import Heartbeats
from protocol.links import RECORDS_BYTES_MAX, Budget, Link, cost_bytes, packed
from protocol.records import Signed
from tests.helpers_machines import record_of
from tests.helpers_records import signing_key


def record(body_bytes: int) -> Signed:
    return Signed(bytes(body_bytes), bytes(64))


def test_a_budget_starts_full_and_fills_with_time_and_no_further() -> None:
    budget = Budget(100.0, per_s=10.0, burst_bytes=50.0)
    assert [budget.take(20, 100.0) for _ in range(3)] == [True, True, False]
    assert budget.wait_s(20) == 1.0
    assert not budget.take(20, 100.5)
    assert budget.take(20, 101.0)
    assert [budget.take(25, 1000.0) for _ in range(3)] == [True, True, False]


def test_what_is_refused_is_not_spent() -> None:
    budget = Budget(0.0, per_s=1.0, burst_bytes=10.0)
    assert not budget.take(11, 0.0)
    assert budget.take(10, 0.0)


def test_batches_keep_both_limits_and_the_order() -> None:
    records = [record(size) for size in (10, 20, 30, 40, 50)]
    assert packed(records, 2, 10_000) == [tuple(records[:2]), tuple(records[2:4]), tuple(records[4:])]
    limit = cost_bytes(records[0]) + cost_bytes(records[1])
    assert packed(records[:3], 64, limit) == [tuple(records[:2]), (records[2],)]
    assert packed([], 64, 100) == []


def test_a_record_that_is_too_large_for_a_batch_travels_alone() -> None:
    records = [record(10), record(1000), record(10)]
    assert packed(records, 64, 200) == [(records[0],), (records[1],), (records[2],)]


def test_a_frame_holds_what_was_counted() -> None:
    big = [record_of(str(number), addresses=tuple("/" + "a" * 250 for _ in range(8))) for number in range(40)]
    assert all(sum(len(each.body) + 64 + 8 for each in batch) <= RECORDS_BYTES_MAX for batch in packed(big, 64, 61_440))


def test_a_neighbour_that_told_us_something_need_not_hear_it() -> None:
    kind = Heartbeats(Directory())
    link = Link(None, Budget(0.0))
    key = (kind, signing_key("a").node)
    assert not link.knows(key)
    link.pushes[key] = None
    assert link.knows(key)
    link.haves[key[1]] = None
    assert link.knows(key)
    assert not link.pushes
    assert not link.haves
