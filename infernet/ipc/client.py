"""Talking to the node that runs here: JSON lines over a Unix socket that only this user can reach. The client's side.

    -> {"cmd": "status"}                        <- {"ok": true, "data": {...}}
    -> {"cmd": "chat", "payload": {...}}        <- {"ok": true, "event": "text", "data": {...}}   several, then
                                                <- {"ok": true, "event": "done", ...} or {"ok": false, "error": ...}

Commands: ping, status, stats, metrics, peers, subscribe, join, why, pause, resume, drain, shutdown, chat, money, claim,
close-leases.
Closing the connection cancels a chat. subscribe answers with an event `snapshot` every `interval_s`, until the
connection is closed; who does not read is hung up on. Errors have the names that existing tools know. Standard library
only, so that commands which just ask start fast.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final

from infernet.host.files import FilesError, require_private_directory

LINE_BYTES_MAX: Final = 4 * 1024 * 1024
CALL_TIMEOUT_S: Final = 3.0
ALIVE_TIMEOUT_S: Final = 0.5
# The node dials every address of an invite, and says how that went.
JOIN_TIMEOUT_S: Final = 30.0
_READ_BYTES: Final = 64 * 1024


class IpcError(Exception):
    """The running node did not do what it was asked. `code` is the name of the error for programs."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class NotRunning(IpcError):
    """No node listens on the socket."""

    def __init__(self) -> None:
        super().__init__("daemon-unreachable", "no node is running here: run `infernet start`")


class Refused(IpcError):
    """The node answered, and refused. `cause` says more, for programs; `data` is what came with it."""

    def __init__(self, error: str, cause: str | None, data: dict[str, Any]) -> None:
        super().__init__(error, error)
        self.cause = cause
        self.data = data


def call(path: Path, command: str, payload: object = None, *, timeout_s: float = CALL_TIMEOUT_S) -> Any:
    """One command and the data of its answer. Raises IpcError."""
    reply = next(_replies(path, command, payload, timeout_s=timeout_s, silence_s=timeout_s))
    return reply.get("data")


def stream(path: Path, command: str, payload: object, *, silence_s: float) -> Generator[tuple[str, dict[str, Any]]]:
    """A command that answers with several events: (name, data), to the last one. Closing the iterator cancels.

    Raises IpcError, also when nothing comes for `silence_s`.
    """
    for reply in _replies(path, command, payload, timeout_s=CALL_TIMEOUT_S, silence_s=silence_s):
        event, data = reply.get("event"), reply.get("data")
        if not isinstance(event, str) or not isinstance(data, dict):
            raise IpcError("bad-response", "the running node answers in a form that this version does not know")
        yield event, data
        if event == "done":
            return


def is_alive(path: Path) -> bool:
    """Whether a node answers on the socket now."""
    try:
        call(path, "ping", timeout_s=ALIVE_TIMEOUT_S)
    except IpcError:
        return False
    return True


def _replies(
    path: Path, command: str, payload: object, *, timeout_s: float, silence_s: float
) -> Iterator[dict[str, Any]]:
    """Send one command and give every reply, until the reader stops. Raises IpcError, for a refusal too."""
    request: dict[str, object] = {"cmd": command}
    if payload is not None:
        request["payload"] = payload
    line = json.dumps(request).encode() + b"\n"
    if len(line) > LINE_BYTES_MAX:
        raise IpcError("write-failed", f"the question is too long: at most {LINE_BYTES_MAX // 1024 // 1024} MiB")
    with _connect(path, timeout_s) as connection:
        try:
            connection.sendall(line)
        except TimeoutError:
            raise _timeout(timeout_s) from None
        except OSError as error:
            raise IpcError("write-failed", f"the running node does not listen ({error.strerror})") from None
        for reply in _lines(connection, silence_s):
            yield _checked(reply)
    raise IpcError("connection-closed", "the node here went away in the middle: see `infernet status` and its log")


def _connect(path: Path, timeout_s: float) -> socket.socket:
    try:
        # Somebody else's socket under our path would get to read the questions.
        require_private_directory(path.parent, create=False)
    except FilesError as error:
        raise IpcError("daemon-unreachable", str(error)) from None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        raise NotRunning from None
    except TimeoutError:
        connection.close()
        raise _timeout(timeout_s) from None
    except OSError as error:
        connection.close()
        raise IpcError("daemon-unreachable", f"cannot reach the node here ({error.strerror}): {path}") from None
    return connection


def _lines(connection: socket.socket, silence_s: float) -> Iterator[bytes]:
    """Whole lines, to the end of the connection. Raises IpcError when nothing more comes for `silence_s`."""
    buffer = bytearray()
    deadline = time.monotonic() + silence_s
    while True:
        end = buffer.find(b"\n")
        if end >= 0:
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            yield line
            # The reader's own time does not count.
            deadline = time.monotonic() + silence_s
            continue
        if len(buffer) > LINE_BYTES_MAX:
            raise IpcError("bad-response", "the node here answers with a line that never ends")
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data = connection.recv(_READ_BYTES)
        except TimeoutError:
            raise _timeout(silence_s) from None
        except OSError:
            data = b""
        if not data:
            return
        buffer += data


def _checked(line: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict) or not isinstance(reply.get("ok"), bool):
        raise IpcError("bad-response", "the node here answers in a form that this version does not know")
    if not reply["ok"]:
        cause, data = reply.get("cause"), reply.get("data")
        raise Refused(
            str(reply.get("error")), str(cause) if cause is not None else None, data if isinstance(data, dict) else {}
        )
    return reply


def _timeout(timeout_s: float) -> IpcError:
    return IpcError("daemon-timeout", f"the node here did not answer within {timeout_s:g} s: see its log")
