"""Faults put into a copy of the program on purpose, one at a time, to see which checkers catch them.

The faults are data: tests/mutants/*.toml. Each is a piece of text that is replaced in a copy of `protocol`; then the
check that the table names runs in a process of its own, with that copy before the real one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from _environment import ROOT, Failure

FOLDER = ROOT / "tests" / "mutants"
PACKAGE = "protocol"
# Far above what a check takes: a fault that makes it run for ever is seen, too.
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault. `invariant` names the checker that must see it; with `alone` no other one may."""

    id: str
    file: str
    old: str
    new: str
    invariant: str
    note: str
    check: Path
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a mutant: how many histories each checker stopped, and after how many that was enough."""

    mutant: Mutant
    found: dict[str, int]
    histories: int
    wall_s: float
    first: str

    @property
    def is_killed(self) -> bool:
        """Whether the checker that must see it has seen it."""
        return self.mutant.invariant in self.found

    @property
    def is_as_said(self) -> bool:
        """Whether it is killed, and by nobody else where the table says so."""
        return self.is_killed and (not self.mutant.alone or set(self.found) == {self.mutant.invariant})


def tables(folder: Path = FOLDER) -> list[Mutant]:
    """The mutants of all tables. Raises Failure for a table that is none."""
    mutants = [mutant for path in sorted(folder.glob("*.toml")) for mutant in _table(path)]
    names = [mutant.id for mutant in mutants]
    if len(set(names)) < len(names):
        raise Failure(f"two mutants of one name: {sorted({name for name in names if names.count(name) > 1})}")
    return mutants


def _table(path: Path) -> Iterator[Mutant]:
    try:
        table = tomllib.loads(path.read_text("utf-8"))
        check = path.with_name(table["check"])
        for row in table["mutant"]:
            yield Mutant(**row, check=check)
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise Failure(f"{path.name} is no table of mutants: {type(error).__name__}: {error}") from None


def mutated(mutant: Mutant) -> str:
    """The file with the fault in it. Raises Failure when the text to replace is not there, or there more than once."""
    path = ROOT / mutant.file
    text = path.read_text("utf-8") if path.is_file() else ""
    if text.count(mutant.old) != 1:
        raise Failure(f"{mutant.id}: its text stands {text.count(mutant.old)} times in {mutant.file}, and not once")
    changed = text.replace(mutant.old, mutant.new)
    try:
        compile(changed, mutant.file, "exec")
    except SyntaxError as error:
        raise Failure(f"{mutant.id}: what comes of {mutant.file} is no Python: {error}") from None
    return changed


def try_out(mutant: Mutant, *, checks: str | None = None, asserts: bool = False) -> Result:
    """Run the check with this fault in the program. Raises Failure when the check itself does not run."""
    text = mutated(mutant)
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        shutil.copytree(ROOT / PACKAGE, Path(folder, PACKAGE), ignore=shutil.ignore_patterns("__pycache__"))
        Path(folder, mutant.file).write_text(text, "utf-8")
        started = time.monotonic()
        found, histories, first = _answer(mutant, folder, checks, asserts=asserts)
    return Result(mutant, found, histories, time.monotonic() - started, first)


def _answer(mutant: Mutant, folder: str, checks: str | None, *, asserts: bool) -> tuple[dict[str, int], int, str]:
    """Who saw something, in how many histories each; how many there were; and what was seen first."""
    command = [sys.executable, *([] if asserts else ["-O"]), str(mutant.check), "--expect", folder]
    command += ["--checks", checks] if checks else []
    environ = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        result = subprocess.run(
            command, check=False, capture_output=True, text=True, env=environ, cwd=folder, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return {"timeout": 1}, 0, f"no end after {TIMEOUT_S:.0f} s"
    if result.returncode == 0:
        answer = json.loads(result.stdout)
        return answer["found"], answer["histories"], answer["first"]
    last = (result.stderr.strip().splitlines() or ["nothing"])[-1]
    if result.returncode == 2:
        raise Failure(f"{mutant.id}: the check did not run: {last}")
    return {"crash": 1}, 0, last


def try_all(
    mutants: Iterable[Mutant],
    tell: Callable[[Result], None],
    *,
    jobs: int,
    checks: str | None = None,
    asserts: bool = False,
) -> list[Result]:
    """Try so many at once; `tell` hears of each as its turn comes."""
    results = []
    with ThreadPoolExecutor(jobs) as pool:
        for result in pool.map(lambda mutant: try_out(mutant, checks=checks, asserts=asserts), mutants):
            tell(result)
            results.append(result)
    return results
