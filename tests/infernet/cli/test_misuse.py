"""infernet/cli/misuse.py: what is wrong with a command line is said in words for people."""

from __future__ import annotations

import pytest

from infernet.cli.__main__ import VERBS
from infernet.cli.misuse import worded
from tests.helpers_cli import Home, invoke

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("model", "say what to do: list, pull, show, use or remove"),
        ("config", "say what to do: show or set"),
        ("service", "say what to do: install, uninstall, status, logs or unit"),
        ("payout", "say what to do: set, list, remove or request"),
        ("engine", "say what to do: list or test"),
        ("completion", "name a shell: bash, zsh or fish"),
        ("join", "INVITE is missing"),
        ("model bogus", "there is no action 'bogus': there are list, pull, show, use and remove"),
        ("model usw", "there is no action 'usw'; did you mean use? There are list, pull, show, use and remove"),
        ("payments x", "there is no action 'x': there is list"),
        ("completion fsh", "there is no shell 'fsh'; did you mean fish? There are bash, zsh and fish"),
        ("why --kind chatt", "--kind must be chat, completion or embedding; did you mean chat?"),
        ("chat --pay", "--pay needs a value"),
        ("chat --spend-max x Hi", "--spend-max: "),
        ("chat --pay x Hi", "--pay: "),
        ("chat --remote --peer /ip4/1.2.3.4 Hi", "--peer and --remote do not go together"),
        ("status --jsn", "there is no --jsn; did you mean --json?"),
        ("status now", "'now' is one word too many"),
        ("stop --now=yes", "--now takes no value"),
        ("benchmark --rounds many", "--rounds must be a whole number"),
        ("engine test --timeout long", "--timeout must be a number"),
        ("stop --wait soon", "--wait: a wait is a number of seconds up to 86400"),
    ],
)
def test_it_is_said_with_what_there_is_and_what_may_have_been_meant(
    home: Home, capsys: Capture, words: str, told: str
) -> None:
    verb = words.split()[0]
    outcome = invoke(capsys, *words.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"infernet {verb}: ")
    assert told in outcome.err
    assert outcome.err.endswith(f"(see infernet {verb} --help)\n")
    assert outcome.err.count("\n") == 1
    assert invoke(capsys, *words.split(), "--json").json["error"] == outcome.err.partition(": ")[2].rstrip("\n")


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_shows_how_it_was_written(home: Home, capsys: Capture, verb: str) -> None:
    for words in ((verb, "--no-such-flag"), (verb, *["word"] * 9, "--no-such-flag")):
        said = invoke(capsys, *words).err
        for inner in ("argument ", "arguments", "unrecognized", "invalid choice", "Traceback"):
            assert inner not in said.partition(": ")[2], said


def test_a_complaint_that_is_not_known_stays_as_it_is() -> None:
    assert worded("something that a later Python says", (), ()) == "something that a later Python says"
