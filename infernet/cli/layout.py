"""Text that fits a terminal, whatever its width: no word, address or name is ever broken, so that it can be copied.

What does not fit in its place is moved below, and what fits nowhere is left to the terminal, which breaks it without
a line's end. Widths are in cells, of which an emoji has two.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Final

GAP: Final = 2
#: Texts of the program are written for this width, and are no wider on any terminal.
WRITTEN_FOR: Final = 120
# A size or a time: its parts belong together.
_SHORT: Final = 12
_INDENT: Final = 4
# A text of several words in less looks like a ladder.
_ROOM_MIN: Final = 20
_EMPTY: Final = "-"
# A line as it is written here has at least so much in it, unless it is the last of its paragraph.
_FULL: Final = 100
_ITEM: Final = re.compile(r"[a-z-]+: ")
_TWO_PARTS: Final = re.compile(r"( +\S+(?: \S+)*)  +(\S.*)")


def cells(text: str) -> int:
    """How wide a text is."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def padded(text: str, width: int) -> str:
    """The text with spaces behind it, up to this width."""
    return text + " " * (width - cells(text))


def terminal_width() -> int:
    """How wide this terminal is, or is taken to be."""
    return max(1, shutil.get_terminal_size().columns)


def wrapped(text: str, width: int) -> list[str]:
    """The text in lines of this width, broken at spaces alone; a longer word has a line of its own. Never empty."""
    lines = [""]
    for word in text.split(" "):
        line = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and cells(line) > width:
            lines.append(word)
        else:
            lines[-1] = line
    return lines


# ---------------------------------------------------------------- tables


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[tuple[str, bool]]:
    """The lines of a table of this width, and of each whether it is the heading.

    Columns that find no place are moved below their rows, and so are single cells that are wider than most of their
    column; where most columns would be, each row is a list of fields.
    """
    least = [max(map(_least, column)) for column in zip(columns, *rows, strict=True)]
    stay = list(range(len(columns)))
    # The first says which row it is, and stays.
    while len(stay) > 1 and (over := _total(least[number] for number in stay) - width) > 0:
        widest = max(stay[1:], key=lambda number: least[number])
        room = max(least[widest] - over, _ROOM_MIN, _least(columns[widest]))
        fitting = sum(_least(row[widest]) <= room for row in rows)
        if room < least[widest] and 2 * fitting > len(rows):
            least[widest] = room
        else:
            stay.remove(widest)
    if 2 * len(stay) < len(columns) or least[0] > width:
        yield from ((line, False) for line in _fields(columns, rows, width))
        return
    shown = [[row[number] if _least(row[number]) <= least[number] else "" for number in stay] for row in rows]
    heading = [columns[number] for number in stay]
    natural = [max(map(cells, column)) for column in zip(heading, *shown, strict=True)]
    widths = _narrowed(natural, [least[number] for number in stay], width)
    for line in _row(heading, widths):
        yield line, True
    for row, texts in zip(rows, shown, strict=True):
        for line in _row(texts, widths):
            yield line, False
        for number, column in enumerate(columns):
            if number not in stay or not texts[stay.index(number)]:
                yield from ((line, False) for line in _below(column, row[number], _INDENT, 0, width))


def _least(text: str) -> int:
    """How narrow its column may become."""
    return cells(text) if cells(text) <= _SHORT else max(map(cells, text.split(" ")))


def _total(widths: Iterator[int]) -> int:
    return sum(width + GAP for width in widths) - GAP


def _narrowed(natural: list[int], least: list[int], width: int) -> list[int]:
    """The widths of columns that fit: the widest ones give way first, and none below what it needs."""
    widths = list(natural)
    while _total(iter(widths)) > width:
        widest = max((n for n in range(len(widths)) if widths[n] > least[n]), key=lambda n: widths[n], default=None)
        if widest is None:
            break
        widths[widest] -= 1
    return widths


def _row(texts: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    columns = [wrapped(text, width) for text, width in zip(texts, widths, strict=True)]
    for number in range(max(map(len, columns))):
        parts = (
            padded(lines[number] if number < len(lines) else "", width)
            for lines, width in zip(columns, widths, strict=True)
        )
        yield (" " * GAP).join(parts).rstrip()


def _fields(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    label_width = max(map(cells, columns))
    for count, row in enumerate(rows):
        if count:
            yield ""
        for column, text in zip(columns, row, strict=True):
            yield from _below(column, text, 0, label_width, width)


def _below(label: str, text: str, indent: int, label_width: int, width: int) -> Iterator[str]:
    """A value with its name before it; nothing of one that is empty."""
    if text in ("", _EMPTY):
        return
    before = " " * indent + padded(label, label_width) + " " * GAP if label else " " * indent
    first, *others = wrapped(text, max(1, width - cells(before)))
    yield before + first
    for line in others:
        yield " " * cells(before) + line


# ---------------------------------------------------------------- texts of the program


def fitted(text: str, width: int) -> str:
    """A text that was written for WRITTEN_FOR columns, for this many: prose flows, lists keep their form."""
    if width >= WRITTEN_FOR:
        return text
    return "\n".join(line for paragraph in _flowing(text) for line in _fit(paragraph, width))


def usage_fitted(program: str, usage: str, width: int) -> str:
    """The line that says how a verb is used, broken between its flags."""
    if cells(f"usage: {program} {usage}") <= width:
        return f"{program} {usage}"
    parts = [""]
    for word in usage.split(" "):
        # What stands in brackets belongs together.
        is_inside = parts[-1].count("[") > parts[-1].count("]")
        parts = [*parts[:-1], f"{parts[-1]} {word}"] if is_inside else [*parts, word]
    indent = " " * len("usage: infernet ")
    lines = [program]
    for part in parts[1:]:
        if cells(f"usage: {lines[-1]} {part}" if len(lines) == 1 else f"{lines[-1]} {part}") > width:
            lines.append(indent + part)
        else:
            lines[-1] += f" {part}"
    return "\n".join(lines)


def _flowing(text: str) -> Iterator[str]:
    """Lines as they were before they were broken: where one is nearly full, the next one goes on with it."""
    joined = ""
    for line in text.split("\n"):
        is_prose = line[:1].strip() and joined[:1].strip()
        last = joined[joined.rfind("\n") + 1 :]
        if is_prose and len(last) >= _FULL and not _ITEM.match(line):
            joined += f"\n{line}"
            continue
        if joined:
            yield joined.replace("\n", " ")
        joined = line
        if not line:
            yield ""
    if joined:
        yield joined.replace("\n", " ")


def _fit(line: str, width: int) -> list[str]:
    if cells(line) <= width:
        return [line]
    if parts := _TWO_PARTS.fullmatch(line):
        # A command and what it does, or a verb: the second part goes beside the first, or below it.
        column = parts.start(2)
        head, tail = line[:column], parts[2]
        if column > width // 2:
            return [parts[1], *(" " * 6 + each for each in wrapped(tail, max(1, width - 6)))]
        first, *others = wrapped(tail, width - column)
        return [head + first, *(" " * column + each for each in others)]
    return [line] if line.startswith(" ") else wrapped(line, width)
