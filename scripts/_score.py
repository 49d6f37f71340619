"""How many of the small changes of a file its tests notice.

One process per file reads in what all runs need and then forks for each change: the child puts the changed module in
its place and becomes pytest. tests/mutation_score.toml says which files, which tests, and which changes change nothing.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import io
import os
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

from _changes import Change, changed, changes_of
from _environment import ROOT, Failure

TABLE = ROOT / "tests" / "mutation_score.toml"
TIMEOUT_S = 120
# What every run imports and no run changes.
_READ_IN_BEFORE = ("pytest", "hypothesis", "hypothesis.stateful", "msgspec", "msgpack", "coincurve", "anyio", "trio")


@dataclass(frozen=True, slots=True)
class Target:
    """A file, the tests that must notice its changes, and the reasons why some change nothing."""

    path: str
    tests: tuple[str, ...]
    killed_percent_min: int
    equivalent: dict[tuple[str, str], str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """What came of one file."""

    target: Target
    killed: int
    survived: tuple[Change, ...]
    equivalent: int
    wall_s: float

    @property
    def killed_percent(self) -> float:
        """Of the changes that change something."""
        total = self.killed + len(self.survived)
        return 100 * self.killed / total if total else 100.0


def targets(path: Path = TABLE) -> list[Target]:
    """The files of the table. Raises Failure for a table that is none."""
    try:
        table = tomllib.loads(path.read_text("utf-8"))
        return [
            Target(
                row["path"],
                tuple(row["tests"]),
                row["killed_percent_min"],
                {(same["line"], same["what"]): same["reason"] for same in row.get("equivalent", [])},
            )
            for row in table["file"]
        ]
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise Failure(f"{path.name} is no table of files: {type(error).__name__}: {error}") from None


def score(target: Target, jobs: int, tell: Callable[[str], None] = lambda _: None) -> Score:
    """Try every change of a file. Raises Failure when its tests fail without any."""
    started = time.monotonic()
    changes = changes_of((ROOT / target.path).read_text("utf-8"))
    judged = [change for change in changes if (change.text, change.what) not in target.equivalent]
    shares = [judged[number::jobs] for number in range(jobs)]
    # Fresh processes: whoever calls this may have imported what is to be changed.
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        noticed: dict[int, bool] = {}
        for share, verdicts in zip(shares, pool.map(_try_share, [target] * jobs, shares), strict=True):
            noticed |= {id(change): verdict for change, verdict in zip(share, verdicts, strict=True)}
            tell(f"{target.path}: {len(noticed)} of {len(judged)} tried")
    survived = tuple(change for change in judged if not noticed[id(change)])
    wall_s = time.monotonic() - started
    return Score(target, len(judged) - len(survived), survived, len(changes) - len(judged), wall_s)


# ---------------------------------------------------------------- in a process of its own


def _try_share(target: Target, changes: Sequence[Change]) -> list[bool]:
    os.chdir(ROOT)
    if str(ROOT) not in sys.path[:1]:
        sys.path.insert(0, str(ROOT))
    for name in _READ_IN_BEFORE:
        importlib.import_module(name)
    module = target.path.removesuffix(".py").replace("/", ".")
    if module in sys.modules:
        raise Failure(f"{module} has been imported before it could be changed")
    source = (ROOT / target.path).read_text("utf-8")
    if _run(target, module, source) != 0:
        raise Failure(f"the tests of {target.path} fail without any change")
    return [_run(target, module, changed(source, change)) != 0 for change in changes]


def _run(target: Target, module: str, source: str) -> int:
    """The exit status of the tests with this source; not 0 when they see a difference."""
    child = os.fork()
    if child == 0:
        _become_pytest(target, module, source)
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 1


def _become_pytest(target: Target, module: str, source: str) -> None:
    """Never returns."""
    status = 1
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(1, "w"), write_through=True)
        sys.meta_path.insert(0, _InPlace(module, source, ROOT / target.path))
        import pytest

        # Plugins that were read in before the fork are not rewritten, and need not be.
        words = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        status = int(pytest.main([*words, *target.tests]))
    finally:
        os._exit(status)


class _InPlace(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module another source than its file has."""

    def __init__(self, name: str, source: str, path: Path) -> None:
        self._name, self._source, self._path = name, source, path

    def find_spec(
        self,
        fullname: str,
        path: object = None,  # noqa: ARG002  # importlib passes it
        target: object = None,  # noqa: ARG002  # importlib passes it
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=str(self._path))

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = str(self._path)
        exec(compile(self._source, str(self._path), "exec"), module.__dict__)  # that is what it is for


def lines_of(result: Score) -> Iterator[str]:
    """What to print of a file: its figures, and what nobody noticed."""
    for change in result.survived:
        yield f"  survived  {result.target.path}:{change.line}  {change.what:28}  {change.text}"
    total = result.killed + len(result.survived)
    yield (
        f"{result.killed_percent:5.1f} %  {result.target.path}: {result.killed} of {total} changes noticed, "
        f"{result.equivalent} change nothing, {result.wall_s:.0f} s"
    )
