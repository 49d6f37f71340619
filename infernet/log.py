"""The node's log: events with named fields, for people on a terminal and as JSON lines everywhere else.

No prompt, answer, key or token may reach it. Our code never passes one; this page is the second line of defence, and
covers what libraries log too: only fields on a list are written, only plain values, and what looks like a secret
inside a text is struck out. Exceptions are told by type and place; their texts only where they are our own, because
a library's may quote its input.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import os
import re
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, Final

import structlog

from protocol.formats.text import clean_line

REDACTED: Final = "[redacted]"
WITHHELD: Final = "[withheld]"
VALUE_CHARACTERS_MAX: Final = 300
FILE_BYTES_MAX: Final = 5 * 1024 * 1024
FILES_KEPT: Final = 3
FRAMES_MAX: Final = 8
CAUSES_MAX: Final = 4

#: What may be logged under a name. A test holds every call in our code against this list.
FIELDS: Final = frozenset(
    {
        "address", "addresses", "advice", "attempt", "banned", "bytes", "claimed_uusd", "code", "connections",
        "coordinator", "count", "detail", "dropped", "duration_ms", "duration_s", "engine", "entry", "error", "event",
        "exception", "fingerprint", "host", "ip", "job", "kind", "lease", "leases_given", "leases_ours", "level",
        "link", "logger", "model", "name", "node", "npub", "output_tokens", "path", "peer",
        "peer_id", "pid", "port", "prompt_tokens", "protocol", "reachability", "reason", "restarts", "retry_in_s",
        "role", "run", "score", "slots", "source", "state", "status", "stream", "timestamp", "until", "url",
        "version",
    }
)  # fmt: skip

# Loggers of ours. All others are heard from `warning` on: what they say below that is about their own insides.
_OURS: Final = ("infernet", "protocol")
_SECRETS: Final = re.compile(
    r"nsec1[02-9ac-hj-np-z]+"
    r"|[0-9a-f]{64,}"
    r"|\b(?:bearer|basic)\s+\S+"
    r"|\b(?:x-infernet-auth|authorization|cookie|set-cookie|api[_-]?key|password|secret|token|nsec|prompt|messages"
    r"|content)\b[\"']?\s*[:=]\s*.+"
    r"|[\w-]{160,}={0,2}",
    re.IGNORECASE,
)
_QUERY: Final = re.compile(r"(\w+://[^\s?#\"']*)[?#][^\s\"']*")
_USER_INFO: Final = re.compile(r"(\w+://)[^\s/@]+@")


def scrub(text: str) -> str:
    """A text without what looks like a secret, on one line of limited length."""
    text = _USER_INFO.sub(r"\1", _QUERY.sub(r"\1", text))
    return clean_line(_SECRETS.sub(REDACTED, text), VALUE_CHARACTERS_MAX)


def keep_what_is_allowed(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: withhold fields that are not on the list, and strike out secrets in those that are."""
    for name, value in event.items():
        event[name] = _plain(value) if name in FIELDS else WITHHELD
    return event


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return [scrub(item) for item in value[:16]]
    return WITHHELD  # bytes may be keys, and the repr of an object anything


def describe(error: BaseException) -> str:
    """An exception in one line: type and place, and its text where the class is ours. Causes follow."""
    parts: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(parts) < CAUSES_MAX:
        parts.append(_describe_one(seen))
        seen = seen.exceptions[0] if isinstance(seen, BaseExceptionGroup) else seen.__cause__ or seen.__context__
    return "; from ".join(parts)


def _describe_one(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES_MAX:]
    places = " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    text = ""
    if type(error).__module__.partition(".")[0] in _OURS:
        text = f" ({scrub(str(error))})"
    elif isinstance(error, OSError) and error.strerror:
        text = f" ({error.strerror.lower()})"
    return f"{type(error).__name__}{text} at {places or 'an unknown place'}"


def _describe_exception(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: what `log.exception` adds becomes one line without the values of variables."""
    given = event.pop("exc_info", None)
    error = given[1] if isinstance(given, tuple) else sys.exc_info()[1] if given is True else given
    if isinstance(error, BaseException):
        event["exception"] = describe(error)
    return event


def _render_json(_logger: Any, _method: str, event: Mapping[str, Any]) -> str:
    first = {name: event[name] for name in ("timestamp", "level", "event") if name in event}
    return json.dumps(first | dict(event), ensure_ascii=False)


def _render_for_people(_logger: Any, _method: str, event: Mapping[str, Any]) -> str:
    rest = " ".join(
        f"{name}={_quoted(value)}"
        for name, value in event.items()
        if name not in ("timestamp", "level", "event", "logger") and value not in (None, "")
    )
    time = str(event.get("timestamp", ""))[11:19]
    return f"{time} {event.get('level', ''):7} {event.get('event', '')}  {rest}".rstrip()


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[\s\"=]", text) else text


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.name.partition(".")[0] in _OURS


class _PrivateFile(logging.handlers.RotatingFileHandler):
    """A log file that only its owner can read, and that is begun anew when it grows large."""

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding="utf-8", opener=_open_private)

    def doRollover(self) -> None:  # noqa: N802 - the name that the library gives it
        """Begin the file anew, also for what is not logged and goes into it by way of standard output or error."""
        before = os.fstat(self.stream.fileno()) if self.stream is not None else None
        super().doRollover()
        if before is None or self.stream is None:
            return
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):  # closed: then nothing goes into it
                if os.path.samestat(os.fstat(descriptor), before):
                    os.dup2(self.stream.fileno(), descriptor)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def configure(level: str, *, stream: IO[str] | None = None, file: Path | None = None, form: str = "auto") -> None:
    """Send every logger of this process through the rules of this page, to a file or a stream (default: stderr).

    On a terminal lines are for people; anywhere else each is one JSON object. `form` says otherwise of a stream, `text`
    or `json`; the file is for programs of ours that read it. Raises OSError for the file.
    """
    stream = sys.stderr if stream is None else stream
    handler: logging.Handler
    if file is not None:
        handler = _PrivateFile(file, maxBytes=FILE_BYTES_MAX, backupCount=FILES_KEPT, encoding="utf-8")
    else:
        handler = logging.StreamHandler(stream)
    for_people = file is None and (form == "text" or (form == "auto" and stream.isatty()))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_annotate(),
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _describe_exception,
                keep_what_is_allowed,
                _render_for_people if for_people else _render_json,
            ],
        )
    )
    handler.addFilter(_Filter())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_annotate(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for old in root.handlers:
        old.close()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # A handler that fails must not print the record, with all it holds, to stderr.
    logging.raiseExceptions = False
    logging.captureWarnings(True)


def _annotate() -> list[Any]:
    return [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
