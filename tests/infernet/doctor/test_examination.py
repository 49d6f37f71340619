"""infernet/doctor/examination.py: no check breaks, delays or hides another, and none says a secret."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from infernet.config import places
from infernet.doctor.contract import Check, Finding, Machine, Part, Situation, Status, fail, in_thread, ok, skip, warn
from infernet.doctor.examination import Result, examine
from infernet.doctor.files import CHECKS as FILES
from infernet.doctor.files import FREE_BYTES_MIN, FREE_BYTES_WANTED, FREE_FILES_MIN
from infernet.doctor.machine import CHECKS as MACHINE
from infernet.doctor.machine import RELEASED_MS

pytestmark = pytest.mark.anyio

Gives = Callable[[Situation], Awaitable[Finding]]


def check(name: str, gives: Finding | Gives, **more: Any) -> Check:
    async def always(_situation: Situation) -> Finding:
        await trio.lowlevel.checkpoint()
        assert isinstance(gives, Finding)
        return gives

    run = always if isinstance(gives, Finding) else gives
    return Check(id=name, title=name, looks="It.", remedy="It.", examine=run, **more)


async def run(*checks: Check, left_out: tuple[Part, ...] = (), situation: Situation | None = None) -> dict[str, Result]:
    with trio.fail_after(30):
        results = await examine(checks, situation or Situation({}), left_out)
    assert [result.check for result in results] == list(checks)
    return {result.check.id: result for result in results}


async def test_what_rests_on_a_failure_is_skipped_and_the_rest_goes_on() -> None:
    results = await run(
        check("a", fail("broken", "mend it")),
        check("b", ok("fine"), needs=("a",)),
        check("c", ok("fine"), needs=("b",)),
        check("d", ok("fine"), after=("a",)),
        check("e", warn("hm", "do")),
        check("f", ok("fine"), needs=("e",)),
        check("g", skip("nothing")),
        check("h", ok("fine"), needs=("g",)),
    )
    assert {name: result.finding.status.value for name, result in results.items()} == {
        "a": "fail", "b": "skip", "c": "skip", "d": "ok", "e": "warn", "f": "ok", "g": "skip", "h": "skip",
    }  # fmt: skip
    assert results["b"].finding.found == "not looked at: a comes first"
    assert results["c"].finding.found == "not looked at: b comes first"


async def test_a_check_that_breaks_says_so_and_nothing_of_what_it_held() -> None:
    async def breaks(_situation: Situation) -> Finding:
        await trio.lowlevel.checkpoint()
        raise KeyError("nsec-of-somebody")

    async def breaks_in_a_nursery(_situation: Situation) -> Finding:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(breaks, _situation)
        return ok("never")

    results = await run(check("a", breaks), check("b", breaks_in_a_nursery), check("c", ok("fine")))
    for name in ("a", "b"):
        assert results[name].finding.status is Status.FAIL
        assert "the check itself broke" in results[name].finding.found
        assert "somebody" not in results[name].finding.found + results[name].finding.fix
    assert results["c"].finding.status is Status.OK


async def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    def reads(_situation: Situation) -> Finding:
        return ok((tmp_path / "missing").read_text())

    finding = (await run(check("a", in_thread(reads))))["a"].finding
    assert finding == fail(f"{tmp_path}/missing cannot be used (no such file or directory)", finding.fix)
    assert "owner" in finding.fix


async def test_checks_that_hang_fail_at_their_deadline_and_hold_nobody_up() -> None:
    release = threading.Event()

    def hangs(_situation: Situation) -> Finding:
        release.wait(60)
        return ok("late")

    async def sleeps(_situation: Situation) -> Finding:
        await trio.sleep_forever()
        raise AssertionError

    try:
        results = await run(
            check("a", in_thread(hangs), deadline_s=0.05),
            check("b", sleeps, deadline_s=0.05),
            check("c", ok("fine")),
        )
    finally:
        release.set()
    assert [result.finding.status.value for result in results.values()] == ["fail", "fail", "ok"]
    assert results["a"].finding.found == "no result within 0.05 s"
    assert results["a"].finding.fix


async def test_what_was_left_out_is_not_run() -> None:
    async def never(_situation: Situation) -> Finding:
        raise AssertionError

    results = await run(
        check("a", never, part=Part.NETWORK), check("b", never, part=Part.ENGINE), left_out=(Part.NETWORK, Part.ENGINE)
    )
    assert {result.finding.found for result in results.values()} == {
        "left out (--skip-network)",
        "left out (--skip-engine)",
    }


async def test_what_a_check_says_is_one_clean_line_without_secrets() -> None:
    text = "it\nfailed\x1b[2J with https://user:hunter22@c.example/x?token=hunter22 and " + "ab" * 32
    results = await run(check("a", fail(text, f"Bearer hunter22 {text}")))
    finding = results["a"].finding
    for line in (finding.found, finding.fix):
        assert "hunter22" not in line
        assert "abab" not in line
        assert line.isprintable()


# ---------------------------------------------------------------- a machine put in the place of this one


def space(free_bytes: int = 1 << 40, free_files: int = 1 << 20, files: int = 1 << 21) -> Any:
    return SimpleNamespace(f_bavail=free_bytes // 4096, f_frsize=4096, f_files=files, f_favail=free_files, f_flag=0)


@pytest.mark.parametrize(
    ("name", "machine", "status"),
    [
        ("disk.free", Machine(statvfs=lambda _: space(FREE_BYTES_MIN - 4096)), "fail"),
        ("disk.free", Machine(statvfs=lambda _: space(FREE_BYTES_MIN)), "warn"),
        ("disk.free", Machine(statvfs=lambda _: space(FREE_BYTES_WANTED - 4096)), "warn"),
        ("disk.free", Machine(statvfs=lambda _: space(FREE_BYTES_WANTED)), "ok"),
        ("disk.inodes", Machine(statvfs=lambda _: space(free_files=FREE_FILES_MIN - 1)), "fail"),
        ("disk.inodes", Machine(statvfs=lambda _: space(free_files=FREE_FILES_MIN)), "ok"),
        ("disk.inodes", Machine(statvfs=lambda _: space(free_files=0, files=0)), "ok"),
        ("clock.set", Machine(wall_ms=lambda: 0), "fail"),
        ("clock.set", Machine(wall_ms=lambda: RELEASED_MS - 1), "fail"),
        ("clock.set", Machine(wall_ms=lambda: RELEASED_MS), "ok"),
        ("memory.free", Machine(available_bytes=lambda: 1199), "warn"),
        ("memory.free", Machine(available_bytes=lambda: 1200), "ok"),
    ],
)
async def test_a_machine_that_lacks_something(tmp_path: Path, name: str, machine: Machine, status: str) -> None:
    model = tmp_path / "model"
    model.write_bytes(bytes(1000))
    situation = Situation({}, machine, places=places({"INFERNET_HOME": str(tmp_path)}), model_file=model)
    (wanted,) = (each for each in (*FILES, *MACHINE) if each.id == name)
    finding = await wanted.examine(situation)
    assert finding.status == status
    assert bool(finding.fix) == (status != "ok")
