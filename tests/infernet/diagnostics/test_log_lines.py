"""infernet/diagnostics/log_lines.py: the events it shows are all that our code logs, and no others."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from infernet.diagnostics.log_lines import EVENTS, redacted
from infernet.diagnostics.redactor import Redactor

ROOT = Path(__file__).resolve().parents[3]
METHODS = ("debug", "info", "warning", "error", "exception", "critical")


def events_in(source: str) -> Iterator[str]:
    """The names of what a module logs, itself or by way of a note."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=method), args=[first, *_]) if (
                method in METHODS
            ):
                found = first
            case ast.Call(func=ast.Name(id="Note") | ast.Attribute(attr="Note"), args=[first, *_]):
                found = first
            case _:
                continue
        for part in ast.walk(found):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.value


def test_every_event_of_our_code_is_on_the_list_and_nothing_else_is() -> None:
    logged = {
        event
        for package in ("infernet", "protocol")
        for path in (ROOT / package).rglob("*.py")
        if "sim" not in path.relative_to(ROOT).parts
        for event in events_in(path.read_text("utf-8"))
    }
    missing, gone = sorted(logged - EVENTS), sorted(EVENTS - logged)
    assert (missing, gone) == ([], []), "put it into EVENTS, or take it out: a report shows these names as they are"


def test_nothing_is_logged_past_the_list() -> None:
    """A logger of the standard library takes any text; only what holds back those of libraries may know it."""
    users = {
        path.relative_to(ROOT).as_posix()
        for package in ("infernet", "protocol")
        for path in (ROOT / package).rglob("*.py")
        if "getLogger" in path.read_text("utf-8")
    }
    assert users == {"infernet/log.py", "infernet/discovery/dht_host.py", "infernet/transport/libp2p_library.py"}


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            '{"timestamp": "2026-11-29T10:00:00.5Z", "level": "warning", "event": "peer.fault"}',
            "2026-11-29T10:00:00Z warning peer.fault",
        ),
        ('{"timestamp": "yesterday", "level": "loud", "event": "x.example"}', "<host-1>"),
        (
            '{"event": "job.refused", "count": 3, "pid": 7, "code": "busy", "port": 46337}',
            'job.refused count=3 code="busy" port=46337',
        ),
        ('{"event": "job.refused", "count": 1e300, "score": -1.5, "dropped": true}', "job.refused score=-1.5"),
        ('{"event": "job.refused", "logger": "infernet.node"}', "job.refused logger=infernet.node"),
        ('{"event": "job.refused", "logger": "infernet.alice"}', "job.refused"),
        ('{"event": "dht.begun", "addresses": ["/ip4/1.2.3.4", {"a": 1}]}', "dht.begun addresses=<multiaddr-1>"),
        ('{"event": 7, "detail": {"a": "b"}}', ""),
        ("[1, 2]", "[1, 2]"),
        ("[" * 10_000, "[" * 399 + "…"),
        ('"alice7"', '"<text>"'),
    ],
)
def test_lines(line: str, shown: str) -> None:
    assert redacted(line, Redactor()) == shown
