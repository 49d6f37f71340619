"""Whose folders of libraries an engine reads, where nobody knows whose home is whose."""

from __future__ import annotations

from pathlib import Path

import pytest

from infernet.confinement import landlock, profiles
from infernet.confinement.landlock import Grant


def nobody(_path: Path) -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_user_whom_no_table_knows_has_no_home_to_protect(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that is run under any number."""
    monkeypatch.setattr(Path, "expanduser", nobody)
    assert list(profiles._of_libraries(["/usr/lib", "/"])) == [Grant(Path("/usr/lib"), landlock.READ)]


def test_a_folder_that_a_home_lies_in_is_none_of_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/srv/people/somebody")
    granted = list(profiles._of_libraries(["/srv/people", "/srv/people/somebody", "/srv/lib"]))
    assert granted == [Grant(Path("/srv/lib"), landlock.READ)]
