"""Run by scripts/mutate with a mutated `protocol` before the real one: which judges of leases see something wrong?

Prints one line of JSON. Lives through histories of one asker, one provider and a coordinator, and through some small
simulated worlds; stops after a few in which something was wrong. Not a test, but what runs in one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path

import protocol
from tests.helpers_lease_histories import HISTORIES, NAMES, world
from tests.helpers_watched_market import name_of

FOUND_ENOUGH = 3
# After each of the others a few times, whole worlds, which take as long as ten of them.
ROUNDS, WORLDS = 4, 3


def main() -> int:
    """Say which judges spoke, in how many histories, and what was seen first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--expect", required=True, help="the folder in which the mutated package must lie")
    parser.add_argument("--checks", default=",".join(NAMES), help="names of judges, with commas")
    parser.add_argument("--seeds", type=int, default=ROUNDS * len(HISTORIES) + WORLDS, help="histories to try at most")
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


def history(seed: int, checks: tuple[str, ...]) -> tuple[set[str], str]:
    """Live through one history; which judges spoke, and what was said first."""
    dice = random.Random(f"lease {seed}")
    live = HISTORIES[seed % len(HISTORIES)] if seed < ROUNDS * len(HISTORIES) else world
    try:
        said = live(dice)
    except AssertionError as error:
        return {"assert"}, f"{live.__name__}: {error}"
    except Exception as error:  # noqa: BLE001  # a mutant may fail in any way, and each of them is seen
        return {"crash"}, f"{live.__name__}: {type(error).__name__}: {error}"
    heard = [violation for violation in said if name_of(violation) in checks]
    return {name_of(violation) for violation in heard}, f"{live.__name__}: {heard[0]}" if heard else ""


if __name__ == "__main__":
    sys.exit(main())
