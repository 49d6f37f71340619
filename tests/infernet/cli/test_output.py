"""How results look on a terminal: with bold headings, or without any control sequence where nobody wants them."""

from __future__ import annotations

import io

import pytest

from infernet.cli.output import is_styled
from tests.helpers_cli import Home
from tests.helpers_gguf import model


class Terminal(io.StringIO):
    """A stream that calls itself a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "is_one"),
    [({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_a_terminal_is_styled_unless_somebody_says_no(
    environ: dict[str, str], is_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert is_styled(Terminal()) is is_one
    assert not is_styled(io.StringIO())


def test_a_table_is_plain_where_nobody_wants_colour(home: Home) -> None:
    home.config.models_dir.mkdir(parents=True)
    (home.config.models_dir / "tiny.gguf").write_bytes(model())
    bold = home.on_terminal("config", "show", TERM="xterm", NO_COLOR="")
    assert bold[0] == 0
    assert "\x1b[1m" in bold[1]
    for words in (("config", "show"), ("engine", "list"), ("model", "list"), ("doctor", "--skip-engine")):
        _, shown = home.on_terminal(*words, TERM="xterm", NO_COLOR="1")
        assert "\x1b" not in shown, words
        assert len(shown.splitlines()) > 1
