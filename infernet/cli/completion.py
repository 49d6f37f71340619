"""`infernet completion`: a script with which a shell completes verbs and flags."""

from __future__ import annotations

import argparse
import importlib
from typing import Final

from infernet.cli.__main__ import VERBS
from infernet.cli.output import print_json

SHELLS: Final = ("bash", "zsh", "fish")
PROGRAM: Final = "infernet"
#: Verbs whose --model may be a file.
_WITH_MODEL_FILE: Final = ("init", "start", "config")
# What a shell could take for more than a word of a description.
_PLAIN: Final = str.maketrans({"`": "'", "$": "", "\\": "", '"': "'"})

USAGE: Final = "bash|zsh|fish [--json]"
DESCRIPTION: Final = """\
Print a script with which the shell completes the verbs of infernet, their flags and the words that they take. It is
made from the same table as --help, so make it anew after an upgrade."""
EXAMPLES: Final = """\
examples:
  infernet completion bash > ~/.local/share/bash-completion/completions/infernet
  infernet completion zsh > ~/.zfunc/_infernet        with fpath+=~/.zfunc before compinit in ~/.zshrc
  infernet completion fish > ~/.config/fish/completions/infernet.fish
  eval "$(infernet completion bash)"                  for this shell only"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which shell."""
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def run(arguments: argparse.Namespace) -> int:
    """Print it."""
    script = make_script(arguments.shell)
    if arguments.json:
        print_json({"shell": arguments.shell, "script": script})
    else:
        print(script, end="")
    return 0


def make_script(shell: str) -> str:
    """The script for a shell."""
    import shtab

    script: str = shtab.complete(_parser_of_all(shtab.FILE), shell)
    return script.rstrip("\n") + "\n"


def _parser_of_all(file: object) -> argparse.ArgumentParser:
    """One parser that knows every verb, as none is needed elsewhere: they are loaded one at a time."""
    parser = argparse.ArgumentParser(prog=PROGRAM)
    verbs = parser.add_subparsers()
    for verb, summary in VERBS.items():
        module = importlib.import_module(f"infernet.cli.{verb.replace('-', '_')}")
        of_verb = verbs.add_parser(verb, help=_plain(summary))
        module.add_arguments(of_verb)
        of_verb.add_argument("--json", action="store_true", help="print the result as one JSON object")
        for action in of_verb._actions:  # there is no public way to look at them
            if action.help is not None and action.help is not argparse.SUPPRESS:
                action.help = _plain(action.help % {"default": action.default})
            if action.dest == "model" and verb in _WITH_MODEL_FILE:
                action.complete = file  # type: ignore[attr-defined]  # how shtab is told
    return parser


def _plain(text: str) -> str:
    return text.translate(_PLAIN)
