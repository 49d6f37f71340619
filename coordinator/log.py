"""Logging on stderr, without prompts, answers, secrets or query strings: one JSON object per line, or, on a terminal, a
line for people.

Code of ours never passes a text of a job to the log; the processor here is the second line of defence, and it also
covers what libraries log.
"""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import sys
from collections.abc import Mapping, MutableMapping
from traceback import walk_tb
from typing import Any, Final

import structlog

from protocol.formats.text import clean_line

REDACTED: Final = "[redacted]"
VALUE_CHARACTERS_MAX: Final = 500
# Longer than values are, for an exception names many places.
TEXT_CHARACTERS_MAX: Final = 4000
# Names under which a text of a job, or a secret, could be passed by mistake.
FORBIDDEN_NAMES: Final = frozenset(
    {
        "answer", "api_key", "authorization", "body", "bytes", "content", "cookie", "data", "headers", "input",
        "inputs", "json", "messages", "nsec", "password", "prompt", "query", "query_string", "request", "secret",
        "text", "token", "x-infernet-auth",
    }
)  # fmt: skip
_SECRETS: Final = re.compile(r"nsec1[a-z0-9]+|(?i:bearer)\s+\S+")
_QUERY: Final = re.compile(r"(https?://[^\s?\"']+|/[\w./-]*)\?\S*")


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drop forbidden values, mask secrets, cut what is long, in every log line."""
    for name, value in list(event.items()):
        if name != "exception":
            event[name] = REDACTED if name.lower() in FORBIDDEN_NAMES else _clean(value)
    return event


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        value = _QUERY.sub(r"\1", _SECRETS.sub(REDACTED, value))
        return value[:VALUE_CHARACTERS_MAX]
    if isinstance(value, bytes):
        return REDACTED
    if isinstance(value, Mapping):
        return {k: REDACTED if str(k).lower() in FORBIDDEN_NAMES else _clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    return value


def _format_exception(exc_info: Any) -> str:
    """Where it happened and of which type. The message is left out: it may quote what was being handled.

    Messages of the operating system and of SQLite say what an operator needs and quote no job.
    """
    kind, error, traceback = exc_info
    frames = [f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}" for frame, line in walk_tb(traceback)]
    said = f": {error}" if isinstance(error, OSError | sqlite3.Error) else ""
    return " < ".join([f"{kind.__name__}{said}", *reversed(frames)])


def _render_for_people(_logger: Any, _method: str, event: Mapping[str, Any]) -> str:
    rest = " ".join(
        f"{name}={_quoted(value)}"
        for name, value in event.items()
        if name not in ("timestamp", "level", "event", "logger") and value not in (None, "")
    )
    time, what = str(event.get("timestamp", ""))[11:19], clean_line(str(event.get("event", "")), TEXT_CHARACTERS_MAX)
    return f"{time} {event.get('level', ''):7} {what}  {rest}".rstrip()


def _quoted(value: Any) -> str:
    # What strangers sent may be in it, and the terminal must not obey it.
    text = clean_line(str(value), TEXT_CHARACTERS_MAX)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[\s\"=]", text) else text


def configure(level: str) -> None:
    """Send every logger of this process, ours and the libraries', through the same processors to stderr."""
    shared: list[Any] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.ExceptionRenderer(_format_exception),
                redact,
                _render_for_people if sys.stderr.isatty() else structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # These say at info what our access log says already, or at debug every SQL statement.
    for name in ("hypercorn.error", "hypercorn.access", "aiosqlite", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
