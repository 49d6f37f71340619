"""Telling a service manager how this process is: systemd's datagrams to $NOTIFY_SOCKET, as sd_notify(3) describes them.

The signs of life come from a task of the event loop: a loop that stands still sends none, and systemd then restarts the
node. A process that no manager started tells nobody, and nothing here ever fails it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping, MutableMapping
from typing import Final

import structlog
import trio

from infernet.host.files import reason_of

log = structlog.get_logger(__name__)

_SOCKET: Final = "NOTIFY_SOCKET"
_WATCHDOG: Final = ("WATCHDOG_USEC", "WATCHDOG_PID")
_MICROSECONDS: Final = 1_000_000
# Two chances to be heard in each interval, and no more than a sign a second.
_SIGNS_PER_INTERVAL: Final = 2
_INTERVAL_S_MIN: Final = 1.0
# `sun_path` without its final zero.
_PATH_BYTES_MAX: Final = 107
_STATUS_CHARACTERS_MAX: Final = 200


class Notifier:
    """Sends what there is to say. Without an address it says nothing."""

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        self._address = address
        self._watchdog_s = watchdog_s

    @classmethod
    def of(cls, environ: MutableMapping[str, str], pid: int) -> Notifier:
        """The one for whoever started this process; its variables are taken, so that no child speaks for us."""
        address = _address(environ.pop(_SOCKET, ""))
        watchdog_s = _watchdog_s({name: environ.pop(name, "") for name in _WATCHDOG}, pid)
        return cls(address, watchdog_s if address is not None else None)

    def ready(self, status: str) -> None:
        """The node is there from now on."""
        self._send("READY=1", f"MAINPID={os.getpid()}", _status(status))

    def status(self, text: str) -> None:
        """What it does, for people."""
        self._send(_status(text))

    def stopping(self) -> None:
        """The node is about to end, and does not come back."""
        self._send("STOPPING=1", _status("ending"))

    async def run(self) -> None:
        """Send signs of life until cancelled; returns at once where nobody waits for any."""
        if self._watchdog_s is None:
            return
        while True:
            self._send("WATCHDOG=1")
            await trio.sleep(max(_INTERVAL_S_MIN, self._watchdog_s / _SIGNS_PER_INTERVAL))

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as datagrams:
                # A manager that does not read must not stop the loop: then this sign is lost, and the next one counts.
                datagrams.setblocking(False)
                datagrams.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.debug("notify.failed", reason=reason_of(error))


def _address(text: str) -> str | None:
    """A path, or a name in the abstract namespace; None for what is neither."""
    with contextlib.suppress(ValueError):
        if text[:1] in ("/", "@") and 1 < len(os.fsencode(text)) <= _PATH_BYTES_MAX and "\0" not in text:
            return "\0" + text[1:] if text.startswith("@") else text
    return None


def _watchdog_s(variables: Mapping[str, str], pid: int) -> float | None:
    """How long systemd waits for a sign of life; None when it does not, or waits for those of another process."""
    usec, of_pid = (variables[name] for name in _WATCHDOG)
    if not usec.isascii() or not usec.isdigit() or len(usec) > 15 or int(usec) == 0:
        return None
    if of_pid and of_pid != str(pid):
        return None
    return int(usec) / _MICROSECONDS


def _status(text: str) -> str:
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return f"STATUS={line[:_STATUS_CHARACTERS_MAX]}"
