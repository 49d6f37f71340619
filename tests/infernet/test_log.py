"""infernet/log.py: nothing secret gets into the log, by whatever door it comes."""

from __future__ import annotations

import ast
import io
import json
import logging
import stat
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from infernet import log as logs
from infernet.log import FIELDS, REDACTED, WITHHELD, configure, describe, scrub
from protocol.envelope import SigningKey
from protocol.errors import BadFrame
from protocol.ids import bech32_encode, npub, peer_id, short
from tests.helpers_log import logging_restored

ROOT = Path(__file__).resolve().parents[2]
CANARY = "the-prompt-of-somebody"
# The same each time: the names of tests hold it.
KEY = SigningKey(bytes(range(1, 33)), bytes)
NSEC = bech32_encode("nsec", KEY.secret_bytes())
HEX = KEY.secret_bytes().hex()
AUTH = "eyJ2IjoxLCJwdWJrZXkiOiJmOTMwOGEw" * 8

our_log = structlog.get_logger("infernet.test")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    with logging_restored():
        yield


@pytest.fixture
def output() -> io.StringIO:
    stream = io.StringIO()
    configure("debug", stream=stream)
    return stream


def lines(output: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


def test_in_a_pipe_each_event_is_one_json_object(output: io.StringIO) -> None:
    our_log.info("peer.connected", peer=short(KEY.node), port=46337, retry_in_s=1.5, reason=None, addresses=["/ip4/1"])
    (line,) = lines(output)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "info",
        "event": "peer.connected",
        "logger": "infernet.test",
        "peer": short(KEY.node),
        "port": 46337,
        "retry_in_s": 1.5,
        "reason": None,
        "addresses": ["/ip4/1"],
    }


def test_on_a_terminal_lines_are_for_people() -> None:
    stream = Terminal()
    configure("info", stream=stream)
    our_log.info("peer.connected", peer="abcd", reason="two words", detail="")
    our_log.debug("not shown")
    (line,) = stream.getvalue().splitlines()
    assert line[8:] == ' info    peer.connected  peer=abcd reason="two words"'


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_the_owner_says_how_lines_look_wherever_they_go(stream: io.StringIO, tmp_path: Path) -> None:
    configure("info", stream=stream, form="text")
    our_log.info("peer.connected", peer="abcd")
    configure("info", stream=stream, form="json")
    our_log.info("peer.connected", peer="abcd")
    text, as_json = stream.getvalue().splitlines()
    assert text[8:] == " info    peer.connected  peer=abcd"
    assert json.loads(as_json)["peer"] == "abcd"
    # What reads the file wants JSON.
    configure("info", file=tmp_path / "log", form="text")
    our_log.info("peer.connected", peer="abcd")
    assert json.loads((tmp_path / "log").read_text())["peer"] == "abcd"


@pytest.mark.parametrize("name", ["prompt", "answer", "text", "messages", "headers", "key", "request", "anything"])
def test_a_field_that_is_not_on_the_list_is_withheld(output: io.StringIO, name: str) -> None:
    our_log.info("job.opened", **{name: CANARY})
    assert CANARY not in output.getvalue()
    assert lines(output)[0][name] == WITHHELD


@pytest.mark.parametrize("value", [b"raw " + CANARY.encode(), {"x": CANARY}, [1, CANARY], object(), KEY, [b"x"]])
def test_a_value_that_is_not_plain_is_withheld(output: io.StringIO, value: object) -> None:
    our_log.info("job.opened", detail=value)
    assert CANARY not in output.getvalue()
    assert lines(output)[0]["detail"] == WITHHELD


@pytest.mark.parametrize(
    "secret",
    [
        NSEC,
        NSEC.upper(),
        HEX,
        HEX.upper(),
        "0x" + HEX,
        f"Authorization: Bearer {CANARY}",
        f"bearer {CANARY}",
        f"X-Infernet-Auth: {CANARY}",
        f"x-infernet-auth={CANARY}",
        f'{{"prompt": "{CANARY}"}}',
        f"messages=[{{'role': 'user', 'content': '{CANARY}'}}]",
        f"token={CANARY}",
        f"https://host/path?key={CANARY}",
        f"https://user:{CANARY}@host/path",
        AUTH,
    ],
)
@pytest.mark.parametrize("door", ["field", "event", "foreign", "argument"])
def test_what_looks_like_a_secret_is_struck_out(output: io.StringIO, secret: str, door: str) -> None:
    if door == "field":
        our_log.info("it.failed", reason=f"because of {secret} it failed")
    elif door == "event":
        our_log.info(f"failed with {secret}")
    elif door == "foreign":
        logging.getLogger("some.library").warning(f"failed with {secret}")  # noqa: G004 - what a library may do
    else:
        logging.getLogger("infernet.transport").debug("failed with %s", secret)
    written = output.getvalue()
    assert written.count("\n") == 1
    for canary in (CANARY, NSEC, NSEC.upper(), HEX, HEX.upper(), AUTH):
        assert canary not in written
    assert "failed" in written or "because" in written


def test_public_forms_of_a_key_and_plain_words_stay() -> None:
    for text in (npub(KEY.node), peer_id(KEY.node), short(KEY.node), "12 tokens in 3 s", "/ip4/1.2.3.4/tcp/46337"):
        assert scrub(text) == text


def test_an_exception_is_told_by_type_and_place_and_not_by_its_text(output: io.StringIO) -> None:
    local = CANARY

    def inner() -> None:
        raise ValueError(f"bad input {local!r}")

    try:
        inner()
    except ValueError:
        our_log.exception("job.failed", error="ValueError")
        logging.getLogger("foreign").exception("it failed")
    written = output.getvalue()
    assert CANARY not in written
    assert "Traceback" not in written
    for line in lines(output):
        assert line["exception"].startswith("ValueError at test_log.py:")
        assert "inner" in line["exception"]


def test_the_text_of_our_own_exceptions_is_told_and_their_causes_too() -> None:
    try:
        try:
            raise KeyError(CANARY)
        except KeyError as error:
            raise BadFrame(f"the frame is too long, {HEX}") from error
    except BadFrame as error:
        text = describe(ExceptionGroup("several", [error]))
    assert f"BadFrame (the frame is too long, {REDACTED}) at test_log.py:" in text
    assert "; from KeyError at" in text
    assert CANARY not in text
    assert "no such file" in describe(FileNotFoundError(2, "No such file or directory", CANARY))


def test_a_newline_or_an_escape_cannot_forge_a_line(output: io.StringIO) -> None:
    our_log.info("peer.named", name='x\n{"level": "error"}\x1b[2J')
    assert len(output.getvalue().splitlines()) == 1
    assert lines(output)[0]["name"] == 'x {"level": "error"}'


def test_libraries_are_heard_from_warning_on(output: io.StringIO) -> None:
    logging.getLogger("httpx").info("HTTP Request: GET")
    logging.getLogger("library").debug("x")
    logging.getLogger("library").warning("y")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("z", UserWarning, stacklevel=1)
    assert [line["logger"] for line in lines(output)] == ["library", "py.warnings"]


def test_a_log_file_is_private_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES_MAX", 2000)
    path = tmp_path / "daemon.log"
    configure("info", file=path)
    for number in range(200):
        our_log.info("event", count=number)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["daemon.log", "daemon.log.1", "daemon.log.2", "daemon.log.3"]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    assert all(file.stat().st_size <= 2000 for file in files)
    assert json.loads(path.read_text().splitlines()[-1])["count"] == 199


def logged_fields(source: str) -> Iterator[str]:
    """The names under which a module logs values."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="log" | "logger"), attr=method), keywords=keywords) if (
                method in ("debug", "info", "warning", "error", "exception", "critical")
            ):
                yield from (keyword.arg or "**" for keyword in keywords)
            case _:
                pass


def test_everything_that_our_code_logs_is_on_the_list() -> None:
    logging_options = {"exc_info", "stack_info", "stacklevel"}
    unknown = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / "infernet").rglob("*.py"))
        for name in logged_fields(path.read_text("utf-8"))
        if name not in FIELDS | logging_options
    ]
    assert unknown == []
    assert list(logged_fields("log.info('x', prompt=1)\nlogger.debug('y', exc_info=True)")) == ["prompt", "exc_info"]


def test_what_is_not_logged_goes_into_the_new_file_when_the_old_one_is_full(tmp_path: Path) -> None:
    """A native library writes to standard error, which a detached node has sent to its log."""
    log = tmp_path / "daemon.log"
    program = f"""
import logging, os, sys
from pathlib import Path
from infernet import log
log.FILE_BYTES_MAX = 300
log.configure("info", file=Path({str(log)!r}))
for number in range(3):
    logging.getLogger("infernet").info("word " * 40)
    os.write(2, b"native %d\\n" % number)
"""
    with log.open("wb") as file:
        subprocess.run([sys.executable, "-c", program], check=True, stderr=file, cwd=ROOT)
    texts = [log.with_name(name).read_text() for name in ("daemon.log", "daemon.log.1", "daemon.log.2")]
    assert [[number for number in range(3) if f"native {number}" in text] for text in texts] == [[2], [1], [0]]
