"""Reading the node's log file, whose lines are JSON objects: the last ones, those that come, and all of it for people.

Whatever is in the file is taken for foreign: native code writes to it, too. The file is begun anew when it grows large
(`infernet/log.py`), and then lies beside itself as `.1`, and later as `.2`: whoever follows it must not lose a line.
"""

from __future__ import annotations

import json
import os
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, Final, Self

from protocol.formats.text import clean_line

#: Of a longer line this much is read.
LINE_BYTES_MAX: Final = 64 * 1024
#: Of a file that native code has filled, the end is read.
FILE_BYTES_MAX: Final = 32 * 1024 * 1024
#: Older files that are looked for beside the log.
OLDER_FILES_MAX: Final = 9
_SHOWN_CHARACTERS_MAX: Final = 4000
_VALUE_CHARACTERS_MAX: Final = 1000
_FIELDS_SHOWN_MAX: Final = 64
_READ_BYTES: Final = 64 * 1024
_SHOWN_FIRST: Final = ("timestamp", "level", "event", "logger")


# ---------------------------------------------------------------- what a line says


def read_event(line: str) -> dict[str, Any] | None:
    """The event that a line of the log holds; None when it is a line of something else."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def for_people(line: str) -> str:
    """One line of the log as one line that a terminal can be shown. Instants are in UTC."""
    event = read_event(line)
    if event is None:
        return clean_line(line, _SHOWN_CHARACTERS_MAX)
    instant, level, name = (clean_line(str(event.get(key, "")), 200) for key in _SHOWN_FIRST[:3])
    when = f"{instant[:10]} {instant[11:19]}" if instant[10:11] == "T" else instant
    fields = [(key, value) for key, value in event.items() if key not in _SHOWN_FIRST and value not in (None, "")]
    rest = " ".join(f"{clean_line(key, 64)}={_quoted(value)}" for key, value in fields[:_FIELDS_SHOWN_MAX])
    shown = f"{when} {level:7} {name}  {rest}".strip()
    return shown if len(shown) <= _SHOWN_CHARACTERS_MAX else shown[:_SHOWN_CHARACTERS_MAX] + "…"


def _quoted(value: Any) -> str:
    is_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
    text = clean_line(",".join(value) if is_list else str(value), _VALUE_CHARACTERS_MAX)
    return json.dumps(text, ensure_ascii=False) if any(letter in ' "=' for letter in text) else text


def for_programs(line: str) -> str:
    """One line of the log as one JSON object: as it is, or as the text of one."""
    event = read_event(line)
    if event is None:
        return json.dumps({"text": line})
    # JSON allows letters in a text that a terminal obeys: those are escaped.
    return line if line.isprintable() else json.dumps(event)


# ---------------------------------------------------------------- where the lines are


class LogReader:
    """Reads a log from its last lines on, over every change of files. Raises OSError when there is no log."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._newest = self._open_newest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._newest.close()

    def last(self, count: int, *, with_unfinished: bool = False) -> list[str]:
        """The last lines so far; older files are read as far as the newest has too few."""
        newest = deque(self._newest.whole(), maxlen=count)
        if with_unfinished:
            newest.extend(self._newest.unfinished())
        parts = [newest]
        known = {self._newest.identity}
        for name in _older_names(self._path):
            if sum(map(len, parts)) >= count:
                break
            try:
                file = _Lines(name)
            except FileNotFoundError:
                break
            with file:
                # One that has been renamed since the newest was opened comes by once more.
                if file.identity not in known:
                    known.add(file.identity)
                    parts.append(deque((*file.whole(), *file.unfinished()), maxlen=count))
        lines = [line for part in reversed(parts) for line in part]
        return lines[len(lines) - min(count, len(lines)) :]

    def new(self) -> Iterator[str]:
        """The whole lines that have come since the last look, from every file that was begun meanwhile."""
        self._newest.begin_again_if_cut()
        yield from self._newest.whole()
        for file in self._newer():
            # What was written after the last look and before the change.
            yield from self._newest.whole()
            yield from self._newest.unfinished()
            self._newest.close()
            self._newest = file
            yield from file.whole()

    def _open_newest(self) -> _Lines:
        # A crash between renaming the file and beginning the next leaves the older one only.
        for name in (self._path, *_older_names(self._path)):
            with suppress(FileNotFoundError):
                return _Lines(name)
        raise FileNotFoundError(2, os.strerror(2), str(self._path))

    def _newer(self) -> list[_Lines]:
        """The files that were begun after the one that is open, the oldest first. All of them are held open meanwhile:
        only then is none taken for another that has its place on the disk.
        """
        found: list[_Lines] = []
        is_known = False
        for name in (self._path, *_older_names(self._path)):
            try:
                file = _Lines(name)
            except FileNotFoundError:
                continue
            if file.identity == self._newest.identity:
                file.close()
                is_known = True
                break
            if any(file.identity == other.identity for other in found):
                file.close()  # it was renamed while we looked
            else:
                found.append(file)
        if not is_known:
            # Ours was removed, or is too old by now: go on with the newest alone.
            for file in found[1:]:
                file.close()
            del found[1:]
        return found[::-1]


class _Lines:
    """The lines of one file, as far as it has been written. Raises OSError."""

    def __init__(self, path: Path) -> None:
        # Without waiting, should somebody have put a pipe there.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._file = FileIO(descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            self._file.close()
            raise FileNotFoundError(2, os.strerror(2), str(path))
        self.identity = (status.st_dev, status.st_ino)
        self._rest = b""
        if status.st_size > FILE_BYTES_MAX:
            self._file.seek(status.st_size - FILE_BYTES_MAX)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def whole(self) -> Iterator[str]:
        """The lines that are there now and have an end."""
        while data := self._file.read(_READ_BYTES):
            *ended, begun = data.split(b"\n")
            for piece in ended:
                line, self._rest = (self._rest + piece)[:LINE_BYTES_MAX], b""
                yield line.decode("utf-8", "replace")
            self._rest = (self._rest + begun)[:LINE_BYTES_MAX]

    def unfinished(self) -> Iterator[str]:
        """What nothing more will be added to."""
        if self._rest:
            line, self._rest = self._rest, b""
            yield line.decode("utf-8", "replace")

    def begin_again_if_cut(self) -> None:
        """Somebody emptied the file in its place."""
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)
            self._rest = b""


def _older_names(path: Path) -> list[Path]:
    return [path.with_name(f"{path.name}.{number}") for number in range(1, OLDER_FILES_MAX + 1)]
