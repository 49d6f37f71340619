"""The log: JSON lines without prompts, answers, secrets and queries, whoever writes them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from typing import Any

import pytest

from coordinator import log

CANARY = "CANARY-TEXT"


def redacted(**event: Any) -> dict[str, Any]:
    return dict(log.redact(None, "info", dict(event)))


@pytest.mark.parametrize("name", ["prompt", "messages", "text", "content", "Authorization", "X-Infernet-Auth", "body"])
def test_forbidden_names_are_redacted_wherever_they_are(name: str) -> None:
    assert CANARY not in json.dumps(
        redacted(event="x", **{name: CANARY}, nested={"a": {name: CANARY}}, l=[{name: CANARY}])
    )


@pytest.mark.parametrize(
    "value",
    ["key nsec1qqqsyqcyq5rqwzqf", "Bearer abc.def", "GET /api/chat?q=secret HTTP", "http://host/x?token=1", b"raw"],
)
def test_secrets_and_queries_are_cut_out_of_values(value: Any) -> None:
    text = json.dumps(redacted(event="x", detail=value))
    for word in ("nsec1", "abc.def", "secret", "token=1", "raw"):
        assert word not in text


def test_harmless_values_stay_and_long_ones_are_cut() -> None:
    event = redacted(event="request", route="/api/nodes", status=200, peer="01020304", detail="y" * 1000)
    assert (event["route"], event["status"], event["peer"]) == ("/api/nodes", 200, "01020304")
    assert len(event["detail"]) == log.VALUE_CHARACTERS_MAX


PROGRAM = f"""
import logging, sqlite3, structlog
from coordinator import log
log.configure("info")
ours, theirs = structlog.get_logger("ours"), logging.getLogger("quart.app")
ours.info("plain", number=7, prompt="{CANARY}")
theirs.warning("from a library: %s", "a value\\nwith a line break")
def fail(prompt):
    raise ValueError("could not handle " + prompt)
for error in (lambda: fail("{CANARY}"), lambda: sqlite3.connect("/nonexistent/x")):
    try:
        error()
    except Exception:
        ours.exception("went_wrong")
        theirs.exception("went wrong")
"""


def test_every_line_is_json_and_exceptions_tell_where_but_not_what() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == ""
    assert CANARY not in done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in lines[:2]] == ["plain", "from a library: a value\nwith a line break"]
    assert {line["level"] for line in lines[2:]} == {"error"}
    assert all("fail" in line["exception"] and line["exception"].startswith("ValueError") for line in lines[2:4])
    assert all("unable to open database file" in line["exception"] for line in lines[4:])


def test_the_test_run_itself_is_not_reconfigured() -> None:
    assert not any(type(handler).__name__ == "ProcessorFormatter" for handler in logging.getLogger().handlers)


def test_on_a_terminal_lines_are_for_people_and_the_terminal_obeys_none_of_them() -> None:
    program = """
import structlog
from coordinator import log
log.configure("info")
structlog.get_logger("ours").info("peer.named", name="x\\x1b[2J\\ny", code="busy", detail="")
"""
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            subprocess.run([sys.executable, "-c", program], stderr=theirs, timeout=60, check=True)
        finally:
            os.close(theirs)
        line = terminal.read(4096).decode()
    assert line[8:] == ' info    peer.named  name="x y" code=busy\r\n'
