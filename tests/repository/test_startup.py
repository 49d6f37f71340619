"""Asking a command for help must not load what only running it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Each costs tens to hundreds of milliseconds to import.
HEAVY = ("libp2p", "quart", "hypercorn", "xllamacpp", "httpx", "trio", "rich", "cryptography", "textual")

ASK = """
import json, sys
from {module} import main
sys.argv = ["command", *{words!r}]
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print("\\n" + json.dumps(sorted(set(sys.modules) & set({heavy!r}))))
"""


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("infernet.cli.__main__", ["--help"]),
        ("infernet.cli.__main__", ["start", "--help"]),
        ("infernet.cli.__main__", ["chat", "--help"]),
        ("infernet.cli.__main__", ["gpu", "--help"]),
        ("infernet.cli.__main__", ["doctor", "--help"]),
        ("infernet.cli.__main__", ["report", "--help"]),
        ("infernet.cli.__main__", ["service", "--help"]),
        ("infernet.cli.__main__", ["remove", "--help"]),
        ("infernet.cli.__main__", ["cluster", "--help"]),
        ("infernet.cli.__main__", ["logs", "--help"]),
        ("infernet.cli.__main__", ["schedule", "--help"]),
        ("infernet.cli.__main__", ["tui", "--help"]),
        ("infernet.cli.__main__", ["version"]),
    ],
)
def test_help_loads_nothing_heavy(module: str, words: list[str]) -> None:
    program = ASK.format(module=module, words=words, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
