"""infernet/metrics/token.py: what the file may hold, and what an asker has to show."""

from __future__ import annotations

from pathlib import Path

import pytest

from infernet.config import Config, ConfigError
from infernet.metrics.token import Token, open_token

TOKEN = "0123456789abcdef"


def config_with(file: Path | None) -> Config:
    nowhere = Path("/nonexistent")
    return Config(
        config_dir=nowhere, state_dir=nowhere, data_dir=nowhere, metrics_token_file=str(file) if file else None
    )


@pytest.mark.parametrize(
    ("header", "is_shown"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer  {TOKEN} ", True),
        (TOKEN, False),
        (f"Basic {TOKEN}", False),
        (f"Bearer {TOKEN}0", False),
        (f"Bearer {TOKEN[:-1]}", False),
        ("Bearer ", False),
        ("", False),
    ],
)
def test_only_the_whole_token_opens(header: str, is_shown: bool) -> None:
    assert Token(TOKEN.encode()).is_in(header.encode()) is is_shown


def test_a_token_is_never_printed() -> None:
    assert TOKEN not in repr(Token(TOKEN.encode()))


def test_none_is_set(tmp_path: Path) -> None:
    assert open_token(config_with(None)) is None


def test_a_line_of_a_file_is_the_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    token = open_token(config_with(file))
    assert token is not None
    assert token.is_in(f"Bearer {TOKEN}".encode())


@pytest.mark.parametrize(
    ("content", "mode", "told"),
    [
        (None, 0o600, "is no file: give the path of one with --metrics-token-file"),
        (TOKEN, 0o640, "can be read by others: run `chmod 600"),
        ("", 0o600, "does not hold a token: it must be one line of 16 to 256"),
        (TOKEN[:15], 0o600, "does not hold a token"),
        ("a" * 257, 0o600, "does not hold a token"),
        (f"{TOKEN}\n{TOKEN}", 0o600, "does not hold a token"),
        (f"{TOKEN} {TOKEN}", 0o600, "does not hold a token"),
        ("\N{LATIN SMALL LETTER E WITH ACUTE}" * 16, 0o600, "does not hold a token"),
    ],
)
def test_what_is_none_is_told_and_not_shown(tmp_path: Path, content: str | None, mode: int, told: str) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
        file.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        open_token(config_with(file))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not content or content not in str(caught.value)
