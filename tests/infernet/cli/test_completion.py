"""infernet/cli/completion.py: the shells take the script, and complete with it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from infernet.cli.__main__ import HIDDEN, VERBS
from infernet.cli.completion import SHELLS, make_script
from tests.helpers_cli import invoke

# What bash does when somebody presses tab after these words.
TAB = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
eval "$(complete -p infernet | sed 's/.*-F \\([^ ]*\\).*/\\1/')" 2>/dev/null || exit 9
printf '%s\\n' "${COMPREPLY[@]}"
"""


def need(shell: str) -> str:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not here")
    return program


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "infernet.bash"
    path.write_text(make_script("bash"))
    return path


@pytest.mark.parametrize(
    ("words", "some", "none"),
    [
        (["infernet", "st"], {"start", "stop", "status", "stats"}, {"init"}),
        (["infernet", "start", "--no-adv"], {"--no-advertise"}, {"--advertise"}),
        (["infernet", "start", "--"], {"--foreground", "--p2p-port", "--json"}, {"--ready-fd"}),
        (["infernet", "service", "un"], {"uninstall", "unit"}, {"install"}),
        (["infernet", "logs", "--"], {"--follow", "--lines"}, {"--foreground"}),
        (["infernet", "completion", ""], {"bash", "zsh", "fish"}, set()),
    ],
)
def test_bash_completes(script: Path, words: list[str], some: set[str], none: set[str]) -> None:
    done = subprocess.run(
        [need("bash"), "--norc", "--noprofile", "-c", TAB, "bash", str(script), *words],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = set(done.stdout.split())
    assert some <= found
    assert not none & found


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_finds_no_fault_with_the_script(tmp_path: Path, shell: str) -> None:
    path = tmp_path / "script"
    path.write_text(make_script(shell))
    done = subprocess.run([need(shell), "-n", str(path)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_no_description_is_a_command_to_the_shell(shell: str) -> None:
    """Both put what --help says into their scripts, zsh inside double quotes."""
    script = make_script(shell)
    described = [line for line in script.splitlines() if re.match(r'\s+[{"(]|complete ', line)]
    assert len(described) > 100
    assert not [line for line in described if "`" in line or "$(" in line]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_verb_is_in_it_and_no_hidden_one(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    outcome = invoke(capsys, "completion", shell)
    assert (outcome.code, outcome.err) == (0, "")
    assert all(re.search(rf"\b{verb}\b", outcome.out) for verb in VERBS)
    assert not any(verb in outcome.out for verb in HIDDEN)
    assert invoke(capsys, "completion", shell, "--json").json == {"shell": shell, "script": outcome.out}


def test_another_shell_is_a_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = invoke(capsys, "completion", "tcsh")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
