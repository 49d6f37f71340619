"""How results look: tables on a terminal, plain columns in a pipe, JSON when asked. Foreign text is always cleaned."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import IO, Any

from infernet.cli.layout import cells, padded, table, terminal_width
from protocol.formats.text import clean_line


def print_json(value: Any) -> None:
    """One JSON object. Everything beyond ASCII is escaped, so that it cannot do anything to a terminal."""
    print(json.dumps(value, indent=2))


def is_styled(stream: IO[str]) -> bool:
    """Whether what goes there may be bold or dim: on a terminal, where nobody asked for none (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows under headings."""
    texts = [[_cell(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        _print_aligned([[column.upper() for column in columns], *texts])
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for line, is_heading in table(columns, texts, terminal_width()):
        # As Text, so that square brackets in a name are not taken for markup.
        console.print(Text(line, style="bold" if is_heading and is_styled(sys.stdout) else ""), soft_wrap=True)


def print_fields(fields: Sequence[tuple[str, object]]) -> None:
    """Names and values, one pair per line, several values below each other; what is empty is left out."""
    rows: list[list[str]] = []
    for name, value in fields:
        values = value if isinstance(value, (list, tuple)) else [] if value in (None, "") else [value]
        rows += [[f"  {name}" if number == 0 else "", _cell(item)] for number, item in enumerate(values)]
    _print_aligned(rows)


def _print_aligned(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)] if rows else []
    for row in rows:
        print("  ".join(padded(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(item) for item in value) or "-"
    # SPEC 01: The receiver MUST clean every text of a heartbeat before it shows it: it is a stranger's.
    return clean_line(str(value)) or "-"


def size(count: int) -> str:
    """A number of bytes for people, to three digits."""
    amount, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.3g} {unit}"


def duration(seconds: float) -> str:
    """A duration for people: the two largest units."""
    seconds = max(0, round(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
