"""The small changes that scripts/mutate makes of a file, and how it counts which of them the tests notice."""

from __future__ import annotations

import faulthandler
from pathlib import Path

import pytest

from _changes import changed, changes_of
from _environment import ROOT, Failure
from _score import Target, score, targets


def whats(source: str) -> list[str]:
    return [change.what for change in changes_of(source)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = a < b", ["Lt -> LtE", "Lt -> GtE"]),
        ("x = a is None", ["Is -> IsNot"]),
        ("x = a + b", ["Add -> Sub"]),
        ("x = a and b", ["And -> Or"]),
        ("x = not a", ["not left out"]),
        ("x = 7", ["7 -> 8"]),
        ("x = True", ["True -> False"]),
        ("x = 'code'", ["'code' changed"]),
        ("x = 'a sentence for people'", []),
        ("def f():\n    return x", ["returns nothing"]),
        ("def f():\n    return None", []),
        ("f(x)", ["Expr left out"]),
        ("raise x", ["Raise left out"]),
        ("assert x, 'why'", ["Assert left out"]),
        ("x += y", ["Add -> Sub", "AugAssign left out"]),
        ("if x:\n    y", ["condition negated"]),
        ('"""A docstring."""', []),
        ("x: Annotated[int, 7]", []),
        ("import x", []),
        ("class A(B, frozen=True, tag='a'):\n    ...", ["'a' changed"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_usual_changes_are_made(source: str, expected: list[str]) -> None:
    assert whats(source) == expected


def test_a_change_is_one_change_of_the_whole_file() -> None:
    source = "a = 1\nb = 2\n"
    assert [(change.line, change.text, changed(source, change)) for change in changes_of(source)] == [
        (1, "a = 1", "a = 2\nb = 2"),
        (2, "b = 2", "a = 1\nb = 3"),
    ]


def test_every_file_of_the_table_and_its_tests_are_there() -> None:
    assert {target.path for target in targets()} >= {
        f"protocol/{name}.py" for name in ("accounts", "claims", "ledger", "envelope")
    }
    for target in targets():
        assert target.killed_percent_min >= 95
        assert all((ROOT / path).is_file() for path in (target.path, *target.tests))


def test_every_change_that_changes_nothing_can_still_be_made() -> None:
    for target in targets():
        made = {(change.text, change.what) for change in changes_of((ROOT / target.path).read_text("utf-8"))}
        assert set(target.equivalent) <= made, target.path
        assert all(target.equivalent.values())


def test_a_table_that_is_none_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "score.toml"
    path.write_text("[[file]]\npath = 'x'", "utf-8")
    with pytest.raises(Failure, match="no table of files"):
        targets(path)


@pytest.mark.nightly
def test_what_no_test_notices_survives() -> None:
    """The tests of another file notice nothing of this one, and its own do."""
    blind = Target("protocol/noting.py", ("tests/protocol/test_bech32.py",), 95)
    result = score(blind, jobs=1)
    assert result.killed == 0
    assert result.killed_percent == 0
    seeing = score(Target("protocol/noting.py", ("tests/protocol/test_noting.py",), 95), jobs=1)
    assert seeing.killed > 0


@pytest.mark.slow
def test_tests_that_fail_anyhow_say_nothing_about_changes() -> None:
    with pytest.raises(Failure, match="fail without any change"):
        score(Target("protocol/noting.py", ("tests/protocol/no_such_test.py",), 95), jobs=1)


@pytest.mark.nightly
@pytest.mark.parametrize("target", targets(), ids=lambda target: target.path)
def test_the_tests_notice_nearly_every_small_change(target: Target) -> None:
    # It takes minutes, and says nothing wrong by that.
    faulthandler.cancel_dump_traceback_later()
    result = score(target, jobs=2)
    assert result.killed_percent >= target.killed_percent_min, result.survived
