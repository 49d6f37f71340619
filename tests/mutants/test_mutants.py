"""Faults put into the rules of money on purpose: the checkers catch every one, and each invariant needs its own."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from _environment import Failure
from _mutate import ROOT, Mutant, mutated, tables, try_out
from tests.helpers_lease_histories import NAMES as LEASE_NAMES
from tests.helpers_ledger_checkers import NAMES

MUTANTS = tables()
INVARIANTS = {
    "check_ledger.py": {"I1", "I2", "I3", "I4", "I7", "I8", "I9", "I10", "I11", "I12", *NAMES},
    # Those of the ledger itself, I11 excepted, have theirs in its own table.
    "check_leases.py": {*LEASE_NAMES, "I11"} - {"I1", "I2", "I3", "I4", "I7", "I10", "I12"},
}


def test_there_are_enough_and_each_says_what_it_is() -> None:
    assert len(MUTANTS) >= 80
    for mutant in MUTANTS:
        assert mutant.note
        assert mutant.invariant in INVARIANTS[mutant.check.name] | {"forged"}
        assert mutant.file.startswith("protocol/")
        assert mutant.check.is_file()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_every_fault_can_still_be_put_in(mutant: Mutant) -> None:
    assert mutated(mutant) != (ROOT / mutant.file).read_text("utf-8")


@pytest.mark.parametrize("check", INVARIANTS)
def test_every_checker_has_a_fault_that_only_it_catches(check: str) -> None:
    alone = {mutant.invariant for mutant in MUTANTS if mutant.alone and mutant.check.name == check}
    assert alone >= INVARIANTS[check]


# A fixed choice, so that a run can be repeated; the nightly run takes them all.
@pytest.mark.slow
@pytest.mark.parametrize("mutant", random.Random(7).sample(MUTANTS, 3), ids=lambda mutant: mutant.id)
def test_a_fault_is_caught_by_whom_the_table_names(mutant: Mutant) -> None:
    result = try_out(mutant)
    assert result.is_as_said, result


@pytest.mark.nightly
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_every_fault_is_caught_by_whom_the_table_names(mutant: Mutant) -> None:
    result = try_out(mutant)
    assert result.is_as_said, result
    assert try_out(mutant, checks=mutant.invariant).is_killed


@pytest.mark.slow
def test_without_its_checker_a_fault_that_only_one_sees_survives() -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.id == "one-more-than-signed")
    assert try_out(mutant, checks="I4").is_killed
    assert try_out(mutant, checks=",".join(name for name in NAMES if name != "I4")).found == {}


def test_with_its_assertions_the_program_stops_itself() -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.id == "fee-from-nowhere")
    assert try_out(mutant, asserts=True).found.keys() == {"assert"}


def test_a_table_that_is_none_is_said_to_be_none(tmp_path: Path) -> None:
    for text in ("[[mutant]]", 'check = "x"\n[[mutant]]\nid = "x"', "what?"):
        (tmp_path / "bad.toml").write_text(text, "utf-8")
        with pytest.raises(Failure, match=r"bad\.toml is no table"):
            tables(tmp_path)


def test_a_fault_that_cannot_be_put_in_is_said_so() -> None:
    for old, new, why in (
        ("no such text", "", "0 times"),
        ("state", "", "not once"),
        ("def apply(", "def (", "no Python"),
    ):
        mutant = Mutant("x", "protocol/accounts.py", old, new, "I1", "", Path("check"))
        with pytest.raises(Failure, match=why):
            mutated(mutant)


def run_command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/mutate as people do."""
    command = [sys.executable, str(ROOT / "scripts" / "mutate"), *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_command_tries_what_it_is_asked_for() -> None:
    result = run_command("--json", "entry-after-close")
    answer = json.loads(result.stdout)
    assert (result.returncode, answer["id"], answer["killed"]) == (0, "entry-after-close", True)
    assert run_command("no such mutant").returncode == 1
    assert "no-lock-on-lease" in run_command("--list").stdout
