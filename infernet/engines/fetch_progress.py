"""How far a download has come, as people see it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from infernet.engines.models import ReportProgress


@contextmanager
def shown_progress(console: Console, name: str) -> Iterator[ReportProgress]:
    """A bar on a terminal, a line for each tenth in a pipe, and where NO_COLOR asks for no control sequence."""
    if not console.is_terminal or console.no_color:
        yield _TenthPrinter(console, name).show
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _TenthPrinter:
    """Prints progress as plain lines, but not many."""

    def __init__(self, console: Console, name: str) -> None:
        self._console = console
        self._name = name
        self._shown = 0

    def show(self, done: int, total: int | None) -> None:
        tenth = 10 * done // total if total else 0
        if tenth > self._shown:
            self._shown = tenth
            self._console.print(f"{self._name}: {done / 1e6:.0f} of {(total or 0) / 1e6:.0f} MB")
