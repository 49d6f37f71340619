"""A simulated machine's money: what is on its disk, what a crash loses, and how far the coordinator is."""

from __future__ import annotations

import random

import pytest

from protocol.effects import SendClaim, StoreClaimed, StoreClosing, StoreMark, StoreVoucher
from protocol.events import (
    ClaimFailed,
    ClosingStored,
    Event,
    LeaseDenied,
    LeaseGranted,
    MarkStored,
    RestorePayer,
    RestoreProvider,
    UseCoordinator,
)
from protocol.sim.desk import DISK_S, FLUSH_S, LINE_S, TIMEOUT_S, Desk
from protocol.sim.schedule import Schedule
from tests.helpers_records import NOW_MS, PROVIDER
from tests.protocol.test_leases import LEASE, voucher
from tests.protocol.test_purse import Bench
from tests.protocol.test_till import signed_lease

MARK = StoreMark(LEASE, bytes(16), signed_lease(), 500, None)


class Machine:
    """A desk, and what its peer heard."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.schedule = Schedule()
        self.heard: list[Event] = []
        self.desk = Desk(self.bench.bank, self.schedule, random.Random(1), self.heard.append, lambda: NOW_MS)

    def wait(self, seconds: float) -> list[Event]:
        self.heard.clear()
        self.schedule.run_until(self.schedule.now_s + seconds)
        return list(self.heard)


def kept(paid_uusd: int) -> StoreVoucher:
    return StoreVoucher(LEASE, signed_lease(), voucher(paid_uusd), None, paid_uusd)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_a_mark_is_on_disk_before_it_is_said_to_be(machine: Machine) -> None:
    machine.desk.perform(MARK)
    assert machine.desk.disk.payers == {}
    assert machine.wait(DISK_S[1]) == [MarkStored(LEASE, 500)]
    assert machine.desk.disk.payers == {LEASE: MARK}


def test_vouchers_wait_for_each_other(machine: Machine) -> None:
    machine.desk.perform(kept(5))
    machine.wait(FLUSH_S / 2)
    machine.desk.perform(kept(9))
    assert machine.desk.disk.providers == {}
    machine.wait(FLUSH_S / 2)
    assert machine.desk.disk.providers == {LEASE: kept(9)}


def test_a_crash_loses_what_was_not_written(machine: Machine) -> None:
    machine.desk.perform(MARK)
    machine.desk.perform(kept(5))
    machine.desk.crash()
    assert machine.wait(1) == []
    assert (machine.desk.disk.payers, machine.desk.disk.providers) == ({}, {})


def test_that_a_lease_is_given_up_is_said_when_it_is_written_with_its_voucher(machine: Machine) -> None:
    machine.desk.perform(kept(5))
    machine.desk.perform(StoreClosing(LEASE, 5))
    assert machine.desk.disk.closing == set()
    assert machine.wait(DISK_S[1]) == [ClosingStored(LEASE, 5)]
    assert (machine.desk.disk.closing, machine.desk.disk.providers) == ({LEASE}, {LEASE: kept(5)})


def test_what_was_written_comes_back_after_a_restart(machine: Machine) -> None:
    machine.desk.perform(MARK)
    machine.desk.perform(kept(5))
    machine.wait(1)
    machine.desk.perform(StoreClosing(LEASE, 5))
    machine.wait(1)
    machine.desk.perform(StoreClaimed(LEASE, 5, True, None))
    machine.desk.crash()
    machine.heard.clear()
    machine.desk.start()
    assert machine.heard == [
        UseCoordinator(machine.bench.bank.node),
        RestorePayer(MARK.request, MARK.signed, 500, None),
        RestoreProvider(signed_lease(), voucher(5), None, 5, is_closing=True, is_closed=True),
    ]


def test_the_coordinator_answers_after_a_way_there_and_back(machine: Machine) -> None:
    machine.desk.perform(machine.bench.ask())
    assert machine.wait(2 * LINE_S[0]) == []
    (granted,) = machine.wait(2 * LINE_S[1])
    assert isinstance(granted, LeaseGranted)


def test_a_coordinator_that_is_away_is_not_heard_of(machine: Machine) -> None:
    machine.bench.bank.is_away = True
    machine.desk.perform(machine.bench.ask())
    machine.desk.perform(SendClaim(LEASE, PROVIDER.node, signed_lease()))
    assert machine.wait(TIMEOUT_S) == []
    heard = machine.wait(LINE_S[1])
    assert {type(event) for event in heard} == {LeaseDenied, ClaimFailed}


def test_what_was_asked_before_a_crash_happens_and_is_nobody_s(machine: Machine) -> None:
    machine.desk.perform(machine.bench.ask())
    machine.desk.crash()
    assert machine.wait(1) == []
    assert len(machine.bench.bank.book.leases) == 1
