"""Run by scripts/mutate with a mutated `protocol` before the real one: which checkers see something wrong?

Prints one line of JSON. Stops after a few histories in which something was wrong. Not a test, but what runs in one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path

import protocol
from tests.helpers_ledger_checkers import NAMES, Violation
from tests.helpers_ledger_signed import SignedWorld, live_signed
from tests.helpers_ledger_world import FEES_BPS, World, live

FOUND_ENOUGH = 6
STEPS, SIGNED_STEPS = 160, 80
# What `helpers_ledger_signed` finds before anything reaches the ledger.
SIGNATURES = ("forged", "evidence")


def main() -> int:
    """Say which checkers fired, in how many histories, and what was seen first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--expect", required=True, help="the folder in which the mutated package must lie")
    parser.add_argument("--checks", default=",".join((*NAMES, *SIGNATURES)), help="names of checkers, with commas")
    parser.add_argument("--seeds", type=int, default=200, help="histories to try at most")
    arguments = parser.parse_args()
    if Path(arguments.expect).resolve() not in Path(protocol.__file__ or "").resolve().parents:
        sys.stderr.write(f"this is the package in {protocol.__file__}, and not the mutated one\n")
        return 2
    checks = tuple(arguments.checks.split(","))
    found: Counter[str] = Counter()
    first = ""
    tried = faulty = 0
    for seed in range(arguments.seeds):
        tried += 1
        names, text = history(seed, checks)
        if names:
            faulty += 1
            found.update(names)
            first = first or text
        if faulty == FOUND_ENOUGH:
            break
    sys.stdout.write(json.dumps({"found": dict(found), "histories": tried, "first": first}) + "\n")
    return 0


def history(seed: int, checks: tuple[str, ...]) -> tuple[list[str], str]:
    """Live through one history; which checkers fired, and what they say."""
    dice = random.Random(f"mutant {seed}")
    fee_bps = dice.choice(FEES_BPS)
    try:
        if seed % 4 == 3:
            live_signed(SignedWorld(checks, fee_bps), dice, SIGNED_STEPS)
        else:
            world = World(checks, fee_bps)
            for client in range(3):
                world.deposit(client, dice.randrange(1_000, 1_000_000))
            live(world, dice, STEPS)
    except Violation as violation:
        return [name for name in violation.found if name in checks], str(violation)
    except AssertionError as error:
        return ["assert"], str(error)
    except Exception as error:  # noqa: BLE001  # a mutant may fail in any way, and each of them is seen
        return ["crash"], f"{type(error).__name__}: {error}"
    return [], ""


if __name__ == "__main__":
    sys.exit(main())
