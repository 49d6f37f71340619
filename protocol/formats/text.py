"""Makes text from strangers safe to show: answers of a model, names of nodes and models, error texts.

A terminal obeys what it is shown. Text that a stranger wrote could move the cursor, change the title, write to the
clipboard or show words in an order that they are not in. What is removed here:

- control characters: C0 but newline and tab, DEL, C1
- escape sequences whole: ESC, CSI, and the strings of OSC, DCS, SOS, PM and APC with what is in them (ECMA-48)
- bidirectional overrides, embeddings and isolates (UAX 9: U+202A..E, U+2066..9)
- tag characters, which are invisible and can carry hidden text (U+E0000..7F)
- lone surrogates, which no output can encode; they become U+FFFD

An answer arrives in pieces and a sequence may be split over two of them, so the cleaner is a state machine.
"""

from __future__ import annotations

import re
import unicodedata
from enum import Enum, auto
from typing import Final

from protocol import constants as c

# A sequence longer than this is none: what follows is shown again. No real one comes near (links aside).
SEQUENCE_CHARACTERS_MAX: Final = 1024

_SUSPECT: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)
_WHITE_SPACE: Final = re.compile(r"\s+")
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
# Unicode categories that a name has no use for: control, format, surrogate, private use.
_NOT_IN_NAMES: Final = frozenset({"Cc", "Cf", "Cs", "Co"})
# The two joiners are format characters that some scripts, and many emoji, cannot be written without.
_JOINERS: Final = "\u200c\u200d"

_STRING_STARTS_7BIT: Final = frozenset("P]X^_")
_STRING_STARTS_8BIT: Final = frozenset("\x90\x9d\x98\x9e\x9f")
_CSI_8BIT: Final = "\x9b"
_STRING_END_8BIT: Final = "\x9c"
_ESCAPE: Final = "\x1b"
_BELL: Final = "\x07"
# CAN and SUB abort a sequence in every terminal.
_ABORTS: Final = frozenset("\x18\x1a")


class _State(Enum):
    TEXT = auto()
    ESCAPE = auto()
    CSI = auto()
    STRING = auto()
    STRING_ESCAPE = auto()


class TerminalCleaner:
    """Cleans a text that arrives in pieces. What it gives for all pieces is what it gives for the whole."""

    __slots__ = ("_length", "_state")

    def __init__(self) -> None:
        self._state = _State.TEXT
        self._length = 0

    def feed(self, piece: str) -> str:
        """What of the next piece may be shown."""
        if self._state is _State.TEXT and _SUSPECT.search(piece) is None:
            return piece
        return "".join(self._step(character) for character in piece)

    def _step(self, character: str) -> str:
        """Take one character; give what is to be shown for it, which is itself or nothing."""
        if self._state is _State.TEXT:
            return self._in_text(character)
        self._length += 1
        # A sequence that never ends must not eat the answer: it is over at the end of its line at the latest.
        if character == "\n" or character in _ABORTS or self._length > SEQUENCE_CHARACTERS_MAX:
            self._state = _State.TEXT
            return self._in_text(character)
        self._in_sequence(character)
        return ""

    def _in_text(self, character: str) -> str:
        if character == _ESCAPE:
            self._enter(_State.ESCAPE)
        elif character == _CSI_8BIT:
            self._enter(_State.CSI)
        elif character in _STRING_STARTS_8BIT:
            self._enter(_State.STRING)
        elif "\ud800" <= character <= "\udfff":
            return _REPLACEMENT
        elif _SUSPECT.match(character) is None:
            return character
        return ""

    def _in_sequence(self, character: str) -> None:
        if self._state is _State.STRING:
            if character == _ESCAPE:
                self._state = _State.STRING_ESCAPE
            elif character in (_BELL, _STRING_END_8BIT):
                self._state = _State.TEXT
        elif self._state is _State.STRING_ESCAPE and character == "\\":
            self._state = _State.TEXT
        elif character == _ESCAPE:
            self._enter(_State.ESCAPE)
        elif self._state is _State.CSI:
            # Parameters and intermediates are 0x20..0x3F; the first character after them ends the sequence.
            if not " " <= character <= "?":
                self._state = _State.TEXT
        else:
            self._after_escape(character)

    def _after_escape(self, character: str) -> None:
        if character == "[":
            self._enter(_State.CSI)
        elif character in _STRING_STARTS_7BIT:
            self._enter(_State.STRING)
        elif not " " <= character <= "/":
            # Intermediates (0x20..0x2F) are followed by one final character, as in `ESC ( B`.
            self._state = _State.TEXT

    def _enter(self, state: _State) -> None:
        self._state = state
        self._length = 0


def clean_text(text: str) -> str:
    """A whole text, safe to show on a terminal; newlines and tabs stay."""
    return TerminalCleaner().feed(text)


def clean_line(text: str, characters_max: int = c.TEXT_CHARACTERS_MAX) -> str:
    """A text as one line of limited length: for tables, error messages and logs, where a newline would forge a line.

    Longer ones end in an ellipsis. Format characters go too, but for the joiners.
    """
    shown = "".join(
        character
        for character in _WHITE_SPACE.sub(" ", clean_text(text))
        if character in _JOINERS or unicodedata.category(character) not in _NOT_IN_NAMES
    )
    shown = " ".join(shown.split())
    return shown if len(shown) <= characters_max else shown[: characters_max - 1].rstrip() + "…"


def clean_name(text: str) -> str:
    """The name of a node or a model as one short line; empty when nothing of it can be shown."""
    return clean_line(text, c.NAME_CHARACTERS_MAX).strip(_JOINERS)
