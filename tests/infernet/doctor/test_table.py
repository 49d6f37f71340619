"""infernet/doctor/table.py: ids that stay, an order that works, and a planted fault for every row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from infernet.doctor.contract import Check
from infernet.doctor.table import CHECKS

# Ids are named in scripts and bug reports. One may be added; one that goes, or means something else, breaks those.
IDS = {
    "clock.set",
    "clock.skew",
    "config.home",
    "config.known",
    "config.mode",
    "config.readable",
    "coordinator.encrypted",
    "coordinator.healthy",
    "coordinator.key",
    "coordinator.listed",
    "coordinator.protocol",
    "coordinator.reachable",
    "disk.free",
    "disk.inodes",
    "dns",
    "engine.answers",
    "engine.confined",
    "engine.loads",
    "home.private",
    "home.writable",
    "ipc.answers",
    "key.mode",
    "key.present",
    "key.whole",
    "libs.engine",
    "libs.libp2p",
    "libs.present",
    "limits.files",
    "lock.stale",
    "log.crash",
    "log.size",
    "memory.free",
    "model.present",
    "model.verified",
    "money.store",
    "network.up",
    "node.heartbeat",
    "node.hours",
    "node.peers",
    "node.running",
    "node.settings",
    "node.version",
    "port.hosts",
    "port.listen",
    "port.privileged",
    "port.reached",
    "port.taken",
    "proxy",
    "proxy.socks",
    "python.version",
    "store.whole",
}


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
