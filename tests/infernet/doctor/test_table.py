"""infernet/doctor/table.py: ids that stay, an order that works, and a planted fault for every row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from infernet.doctor.contract import Check
from infernet.doctor.table import CHECKS

# Ids are named in scripts and bug reports. One may be added; one that goes, or means something else, breaks those.
IDS = {
    "python.version", "libs.present", "libs.libp2p", "libs.engine", "limits.files", "memory.free", "clock.set",
    "clock.skew", "config.home", "config.readable", "config.known", "config.mode", "key.present", "key.mode",
    "key.whole", "home.writable", "home.private", "disk.free", "disk.inodes", "log.size", "log.crash", "lock.stale",
    "store.whole", "money.store", "node.running", "node.version", "node.settings", "node.heartbeat", "node.peers",
    "ipc.answers", "network.up", "dns", "proxy", "proxy.socks",
    "port.hosts", "port.privileged", "port.taken", "port.listen",
    "port.reached", "coordinator.encrypted", "coordinator.reachable", "coordinator.key", "coordinator.protocol",
    "coordinator.healthy", "coordinator.listed", "model.present", "model.verified", "engine.loads", "engine.answers",
}  # fmt: skip


def test_ids_are_those_that_were_promised() -> None:
    assert [check.id for check in CHECKS] == list(dict.fromkeys(check.id for check in CHECKS))
    assert {check.id for check in CHECKS} == IDS


def test_every_check_comes_after_those_it_waits_for() -> None:
    seen: set[str] = set()
    for check in CHECKS:
        assert seen.issuperset((*check.needs, *check.after)), check.id
        seen.add(check.id)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_a_row_is_whole(check: Check) -> None:
    assert re.fullmatch(r"[a-z0-9]+(\.[a-z0-9]+)?", check.id)
    assert 0 < check.deadline_s <= 180
    assert not check.title.endswith(".")
    for text in (check.looks, check.remedy):
        assert text.endswith(".")
        assert "\n" not in text


def test_for_every_row_a_fault_is_planted_somewhere() -> None:
    here = "".join(
        path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py") if path.name != Path(__file__).name
    )
    assert not [name for name in IDS if f'"{name}"' not in here]
