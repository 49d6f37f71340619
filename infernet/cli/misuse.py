"""What is wrong with a command line, in words for people: argparse says it in those of who wrote the program."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Collection, Sequence
from typing import Final

_REQUIRED: Final = re.compile(r"^the following arguments are required: (.+)$", re.DOTALL)
_UNKNOWN: Final = re.compile(r"^unrecognized arguments: (.+)$", re.DOTALL)
_TOGETHER: Final = re.compile(r"^argument (\S+): not allowed with argument (\S+)$")
_ABOUT_ONE: Final = re.compile(r"^argument (\S+): (.+)$", re.DOTALL)
_NO_NUMBER: Final = re.compile(r"^invalid (int|float) value: ")
_WORD_CHARACTERS_MAX: Final = 40


def no_such_choice(action: argparse.Action, word: str, flag: str) -> str:
    """A word that is none of those that are taken here; what there is, and which one may have been meant."""
    choices = [str(choice) for choice in action.choices or ()]
    near = _near(word, choices)
    if action.option_strings:
        return f"{flag} must be {listed(choices, 'or')}{near}"
    there = f"{near} There" if near else ": there"
    return f"there is no {action.dest} {word[:_WORD_CHARACTERS_MAX]!r}{there} {_are(choices)}"


def worded(message: str, actions: Sequence[argparse.Action], words: Sequence[str]) -> str:
    """The same complaint for people; one that is not known stays as it is. `words` are the command line."""
    if match := _REQUIRED.match(message):
        missing = match[1].split(", ")
        return "; ".join(_missing(action) for action in actions if _name(action) in missing) or message
    if match := _UNKNOWN.match(message):
        return _unknown(match[1], actions)
    if match := _TOGETHER.match(message):
        return f"{_typed(match[1], words)} and {_typed(match[2], words)} do not go together"
    if match := _ABOUT_ONE.match(message):
        return _about_one(_typed(match[1], words), match[2])
    return message


def listed(names: Sequence[str], last: str) -> str:
    """Names within a sentence."""
    return f" {last} ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else "nothing"


def _name(action: argparse.Action) -> str:
    """As argparse calls it."""
    return "/".join(action.option_strings) or str(action.metavar or action.dest)


def _missing(action: argparse.Action) -> str:
    if action.choices is None:
        return f"{_name(action)} is missing"
    choices = listed([str(choice) for choice in action.choices], "or")
    return f"say what to do: {choices}" if action.dest == "action" else f"name a {action.dest}: {choices}"


def _unknown(words: str, actions: Sequence[argparse.Action]) -> str:
    first = words.split(" ")[0]
    if not first.startswith("-"):
        return f"{first[:_WORD_CHARACTERS_MAX]!r} is one word too many"
    flag = first.partition("=")[0]
    known = [option for action in actions for option in action.option_strings if action.help != argparse.SUPPRESS]
    return f"there is no {flag[:_WORD_CHARACTERS_MAX]}{_near(flag, known)}"


def _about_one(name: str, complaint: str) -> str:
    if complaint.startswith("expected"):
        return f"{name} needs a value"
    if complaint.startswith("ignored explicit argument"):
        return f"{name} takes no value"
    if match := _NO_NUMBER.match(complaint):
        return f"{name} must be a {'whole number' if match[1] == 'int' else 'number'}"
    return f"{name}: {complaint}"


def _typed(name: str, words: Sequence[str]) -> str:
    """Of a flag with several names the one that was given."""
    names = name.split("/")
    given = {word.partition("=")[0] for word in words}
    return next((each for each in names if each in given), names[0])


def _near(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _are(choices: Sequence[str]) -> str:
    return f"{'is' if len(choices) == 1 else 'are'} {listed(choices, 'and')}"
