"""Running the checks: all at once, each with its deadline, and none of them able to break the others."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import trio

from infernet.doctor.contract import Check, Finding, Part, Situation, Status, fail, skip
from infernet.host.files import reason_of
from infernet.log import scrub

_FLAG_OF: Final = {Part.NETWORK: "--skip-network", Part.ENGINE: "--skip-engine"}
# A finding that others may rest on.
_PASSES: Final = (Status.OK, Status.WARN)


@dataclass(frozen=True)
class Result:
    """One check, what it found, and how long that took."""

    check: Check
    finding: Finding
    ms: int

    def plain(self) -> dict[str, Any]:
        """As `infernet doctor --json` prints it."""
        finding = self.finding
        return {
            "id": self.check.id,
            "title": self.check.title,
            "status": finding.status.value,
            "found": finding.found,
            "fix": finding.fix,
            "ms": self.ms,
        }


async def examine(checks: Sequence[Check], situation: Situation, left_out: Collection[Part] = ()) -> list[Result]:
    """The results, in the order of the checks. Raises nothing, and takes no longer than a chain of deadlines."""
    results: dict[str, Result] = {}
    done = {check.id: trio.Event() for check in checks}

    async def run(check: Check) -> None:
        for name in (*check.needs, *check.after):
            await done[name].wait()
        started = time.monotonic()
        unmet = next((name for name in check.needs if results[name].finding.status not in _PASSES), None)
        if check.part in left_out:
            finding = skip(f"left out ({_FLAG_OF[check.part]})")
        elif unmet is not None:
            finding = skip(f"not looked at: {unmet} comes first")
        else:
            finding = await _look(check, situation)
        results[check.id] = Result(check, _clean(finding), round((time.monotonic() - started) * 1000))
        done[check.id].set()

    async with trio.open_nursery() as nursery:
        for check in checks:
            nursery.start_soon(run, check)
    return [results[check.id] for check in checks]


async def _look(check: Check, situation: Situation) -> Finding:
    finding: Finding | None = None
    try:
        with trio.move_on_after(check.deadline_s):
            finding = await check.examine(situation)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else "a file"
        return fail(f"{where} cannot be used ({reason_of(error)})", "check its owner and its mode")
    except Exception as error:  # noqa: BLE001 - a doctor that breaks helps nobody, whatever it met
        return fail(
            f"the check itself broke ({type(error).__name__})",
            "this is a mistake in infernet: send `infernet report` to those who make it",
        )
    if finding is None:
        return fail(
            f"no result within {check.deadline_s:g} s",
            "look for a disk or a network that hangs, and run `infernet doctor` again",
        )
    return finding


def _clean(finding: Finding) -> Finding:
    # Checks name no secret; what a file, a library or a server has put into a text passes here.
    return replace(finding, found=scrub(finding.found), fix=scrub(finding.fix))
