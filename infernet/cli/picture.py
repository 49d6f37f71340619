"""QR codes on a terminal, for cameras of telephones."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import Final

from infernet.cli.command import warn

_QUIET_ZONE: Final = 2


def draw(texts: Sequence[str]) -> None:
    """The picture of the first of these that the terminal is large enough for; a warning where it is for none."""
    if not _has_blocks(sys.stdout.encoding):
        warn(f"no picture: it cannot be drawn in {sys.stdout.encoding}: set a locale of UTF-8, such as LC_ALL=C.UTF-8")
        return
    import segno

    # A screen is not scratched: little correction is enough.
    codes = [segno.make(text, error="l", boost_error=False, micro=False) for text in texts]
    columns, lines = shutil.get_terminal_size()
    for code in codes:
        width, height = code.symbol_size(border=_QUIET_ZONE)
        if width <= columns and (height + 1) // 2 < lines:
            code.terminal(sys.stdout, border=_QUIET_ZONE, compact=True)
            return
    width, height = codes[-1].symbol_size(border=_QUIET_ZONE)
    warn(f"this terminal is too small for the picture: it needs {width} columns and {(height + 1) // 2 + 1} lines")


def _has_blocks(encoding: str) -> bool:
    """Whether it has the characters of which a picture is made: what it lacks would come out as question marks."""
    try:
        "█▄▀".encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
