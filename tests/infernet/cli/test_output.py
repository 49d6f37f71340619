"""infernet/cli/output.py: tables on a terminal, styled or not, and in a pipe, and an output that takes nothing."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from infernet.cli.output import is_styled, print_fields, print_table
from tests.helpers_cli import DEADLINE_S, Home, invoke
from tests.helpers_gguf import model

Capture = pytest.CaptureFixture[str]


def on_a_terminal(home: Home, columns: int, *words: str) -> str:
    """What a command shows on a terminal of this width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environ = {name: value for name, value in home.environment(TERM="xterm").items() if name != "COLUMNS"}
    with subprocess.Popen(home.command(*words), stdin=theirs, stdout=theirs, env=environ):
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:
            pass  # how a terminal ends
    os.close(ours)
    return shown.decode().replace("\r", "").replace("\x1b[1m", "").replace("\x1b[0m", "")


@pytest.mark.slow
def test_on_a_narrow_terminal_settings_can_be_read_and_copied(home: Home) -> None:
    assert home.run("init", "--yes").code == 0
    shown = on_a_terminal(home, 50, "config", "show")
    for word in ("proxy_login_file", "INFERNET_PROXY_LOGIN_FILE", "INFERNET_ROLE", str(home.config.models_dir)):
        assert word in shown
    helped = on_a_terminal(home, 50, "config", "--help")
    assert max(len(line) for line in helped.split("examples:")[0].splitlines() if line[:1].isalpha()) <= 50


def test_in_a_pipe_wide_letters_shift_nothing(capsys: Capture) -> None:
    print_table(("name", "is"), [("日本🚀", "yes"), ("abc", "no")])
    assert capsys.readouterr().out == "NAME    IS\n日本🚀  yes\nabc     no\n"
    print_fields([("日本", 1), ("abc", 2)])
    assert capsys.readouterr().out == "  日本  1\n  abc   2\n"


def into_a_full_disk(home: Home, *words: str) -> tuple[int, str]:
    """How a command ends, and what it says, whose output takes nothing."""
    # Unbuffered, nothing would be left for Python to write when it ends.
    environ = {name: value for name, value in home.environment().items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            home.command(*words), stdout=full, stderr=subprocess.PIPE, env=environ, timeout=DEADLINE_S, check=False
        )
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize("words", [["version"], ["config", "show", "--json"], ["--help"], ["stop", "--help"]])
def test_an_output_that_is_full_is_one_line_and_fails(home: Home, words: list[str]) -> None:
    complaint = "infernet: cannot write the output (no space left on device): make room where it goes\n"
    assert into_a_full_disk(home, *words) == (1, complaint)


def test_an_error_in_json_that_cannot_be_written_either(home: Home) -> None:
    assert into_a_full_disk(home, "stop", "--json") == (1, "infernet: no node is running here\n")


def test_a_name_in_brackets_is_no_markup(capsys: Capture) -> None:
    print_table(("name",), [("[bold]me[/bold]",)])
    assert "[bold]me[/bold]" in capsys.readouterr().out
    assert invoke(capsys, "version").code == 0


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
