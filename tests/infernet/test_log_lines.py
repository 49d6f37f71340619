"""infernet/log_lines.py: no line is lost over a change of files, and none does anything to a terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.log_lines import LINE_BYTES_MAX, LogReader, for_people, for_programs


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "daemon.log"


@pytest.fixture
def reader(log: Path) -> Iterator[LogReader]:
    log.touch()
    with LogReader(log) as reader:
        yield reader


def write(log: Path, *lines: str, end: str = "\n") -> None:
    with log.open("a") as file:
        file.write("\n".join(lines) + end)


def rotate(log: Path, keep: int = 3) -> None:
    """As the handler of the library does it."""
    for number in range(keep, 0, -1):
        older = log if number == 1 else log.with_name(f"{log.name}.{number - 1}")
        if older.exists():
            older.replace(log.with_name(f"{log.name}.{number}"))


def test_the_last_lines_reach_into_older_files(log: Path) -> None:
    for part in (["a", "b"], ["c", "d"], ["e"]):
        rotate(log)
        write(log, *part)
    with LogReader(log) as reader:
        assert reader.last(4) == ["b", "c", "d", "e"]
    for count, lines in ((0, []), (1, ["e"]), (2, ["d", "e"]), (99, ["a", "b", "c", "d", "e"])):
        with LogReader(log) as reader:
            assert reader.last(count) == lines


def test_after_a_crash_in_the_middle_of_a_change_the_older_file_is_read(log: Path) -> None:
    write(log, "a")
    rotate(log)
    with LogReader(log) as reader:
        assert reader.last(9) == ["a"]
        write(log, "b")
        assert list(reader.new()) == ["b"]


def test_following_loses_nothing_over_changes_of_files(log: Path, reader: LogReader) -> None:
    write(log, "a")
    assert list(reader.new()) == ["a"]
    write(log, "b")
    rotate(log)
    assert list(reader.new()) == ["b"]
    assert list(reader.new()) == []
    write(log, "c")
    rotate(log)
    write(log, "d")
    rotate(log)
    write(log, "e")
    assert list(reader.new()) == ["c", "d", "e"]


def test_what_has_no_end_is_shown_when_it_gets_one_or_never_will(log: Path, reader: LogReader) -> None:
    write(log, "half", end="")
    assert list(reader.new()) == []
    write(log, " a line", "another", end="")
    assert list(reader.new()) == ["half a line"]
    rotate(log)
    write(log, "new")
    assert list(reader.new()) == ["another", "new"]


def test_the_last_words_of_native_code_need_no_newline(log: Path) -> None:
    write(log, "a", "b", end="")
    with LogReader(log) as reader:
        assert reader.last(1, with_unfinished=True) == ["b"]


def test_a_file_that_is_emptied_in_its_place_is_read_from_its_start(log: Path, reader: LogReader) -> None:
    write(log, "a long line")
    list(reader.new())
    log.write_text("b\n")
    assert list(reader.new()) == ["b"]


def test_a_file_that_was_removed_is_followed_by_the_next_one(log: Path, reader: LogReader) -> None:
    write(log, "a")
    rotate(log)
    log.with_name("daemon.log.1").unlink()
    assert list(reader.new()) == ["a"]
    write(log, "b")
    assert list(reader.new()) == ["b"]


def test_what_is_no_file_is_no_log(log: Path) -> None:
    os.mkfifo(log)
    with pytest.raises(FileNotFoundError):
        LogReader(log)


def test_a_line_without_end_takes_no_more_memory_than_one_may(log: Path) -> None:
    write(log, "x" * (3 * LINE_BYTES_MAX), "next")
    with LogReader(log) as reader:
        assert list(map(len, reader.last(2))) == [LINE_BYTES_MAX, 4]


@given(
    st.lists(
        st.tuples(st.sampled_from(["write", "rotate", "look"]), st.text("ab", min_size=1, max_size=3)), max_size=30
    )
)
def test_whatever_happens_every_line_comes_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str]]
) -> None:
    log = tmp_path_factory.mktemp("log") / "daemon.log"
    log.touch()
    written: list[str] = []
    seen: list[str] = []
    with LogReader(log) as reader:
        for step, line in steps:
            if step == "write":
                write(log, line)
                written.append(line)
            elif step == "rotate":
                rotate(log, keep=9)
                log.touch()
                # Looked at more often than files fall out at the far end.
                seen += reader.new()
            else:
                seen += reader.new()
        seen += reader.new()
    assert seen == written


EVENT = {"timestamp": "2026-11-29T09:34:17.5Z", "level": "warning", "event": "peer.banned", "logger": "infernet.x"}


def test_an_event_in_words() -> None:
    line = json.dumps(EVENT | {"ip": "192.0.2.1", "reason": "two words", "detail": "", "addresses": ["a", "b"]})
    shown = """2026-11-29 09:34:17 warning peer.banned  ip=192.0.2.1 reason="two words" addresses=a,b"""
    assert for_people(line) == shown


@pytest.mark.parametrize(
    "line",
    [
        "native \x1b[2Jwords\x07",
        json.dumps(EVENT | {"reason": "\x1b]0;title\x07", "\x1b[31m": "\u202egnp"}),
        json.dumps({"event": "\x9b2J", "timestamp": "\x1b[2J", "level": ["\x1b"]}, ensure_ascii=False),
        json.dumps({"event": {"deep": [None, 1.5, "\x1b[1m"]}}),
        "[1, 2]",
        "[" * 50_000,
        "null",
        "",
    ],
)
def test_nothing_in_a_line_reaches_the_terminal_as_more_than_text(line: str) -> None:
    shown = for_people(line)
    assert "\n" not in shown
    assert shown.replace("\u200d", "").isprintable()
    program = for_programs(line)
    assert program.isprintable()
    assert isinstance(json.loads(program), dict)


@given(st.text())
def test_any_text_is_one_line_and_any_event_stays_what_it_is(text: str) -> None:
    event = EVENT | {"reason": text}
    line = json.dumps(event, ensure_ascii=False)
    assert "\n" not in for_people(line)
    assert json.loads(for_programs(line)) == event


def test_a_line_that_is_an_event_is_given_to_programs_as_it_is() -> None:
    line = '{"event":  "x", "name": "Jürgen"}'
    assert for_programs(line) == line
