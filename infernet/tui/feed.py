"""Where the live view has its news from: the node's socket, its log file, and the drivers of GPUs.

Each is waited for in a thread of its own, which tells what it has found and ends with the process: a driver that hangs
holds up nobody, and a node that went away is looked for again every second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from infernet.cli.logs import no_log
from infernet.config import Config
from infernet.hardware.contract import Card
from infernet.hardware.detect import find_cards
from infernet.host.files import reason_of
from infernet.ipc import client as ipc
from infernet.log_lines import LogReader
from infernet.tui.model import LOG_LINES_MAX, GpuRow
from protocol.formats.text import clean_line

AGAIN_S: Final = 1.0
# As long as a node may take that is busy, beside what lies between two snapshots.
SILENCE_S: Final = 5.0
# Drivers are asked by tools and in processes of their own, which costs more than a look at a socket.
GPUS_AGAIN_S: Final = 5.0
NO_GPUS_AGAIN_S: Final = 60.0
DRAIN_LIMIT_S: Final = 3600.0
_NEW_LINES_MAX: Final = 2000


@dataclass(frozen=True)
class Snapshot:
    """The node says how things are."""

    data: dict[str, Any]


@dataclass(frozen=True)
class Away:
    """There is no node to be seen, and why."""

    why: str


@dataclass(frozen=True)
class LogLines:
    """More of the log, raw, or why there is none."""

    lines: Sequence[str]
    trouble: str = ""


@dataclass(frozen=True)
class Gpus:
    """The GPUs of this machine."""

    rows: Sequence[GpuRow]


@dataclass(frozen=True)
class Told:
    """What came of something that the user wanted."""

    text: str


News = Snapshot | Away | LogLines | Gpus | Told


class Feed:
    """The threads. `tell` is called from them with each piece of news."""

    def __init__(self, config: Config, interval_s: float, find: Callable[[], Sequence[Card]] = find_cards) -> None:
        self._config = config
        self._interval_s = interval_s
        self._find = find
        self._stopped = threading.Event()
        self._wake = threading.Event()
        self._tell: Callable[[News], object] = lambda _news: None

    def start(self, tell: Callable[[News], object]) -> None:
        """Begin to tell."""
        self._tell = tell
        for work in (self._watch_node, self._watch_log, self._watch_gpus):
            self._spawn(work)

    def stop(self) -> None:
        """Tell nothing more; the threads end by themselves."""
        self._stopped.set()
        self._wake.set()

    def refresh(self) -> None:
        """Ask the node anew, now, or look for it at once."""
        self._wake.set()
        self._spawn(self._look)

    def drain(self) -> None:
        """Let the node finish its jobs and end."""
        self._spawn(self._drain)

    def _spawn(self, work: Callable[[], None]) -> None:
        threading.Thread(
            target=self._guarded, args=(work,), name=f"tui-{work.__name__.strip('_')}", daemon=True
        ).start()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - what leaves a thread is a traceback across the screen
            self._post(Told(f"something unexpected went wrong ({type(error).__name__}): a part of this may be old"))

    def _post(self, news: News) -> None:
        if not self._stopped.is_set():
            self._tell(news)

    # ------------------------------------------------------------ the node

    def _watch_node(self) -> None:
        while not self._stopped.is_set():
            self._wake.clear()
            try:
                self._read_snapshots()
            except ipc.NotRunning:
                self._post(Away("no node is running here: `infernet start` in another terminal"))
            except ipc.Refused as error:
                self._post(Away(_explained(error)))
            except ipc.IpcError as error:
                self._post(Away(str(error)))
            self._wake.wait(AGAIN_S)

    def _read_snapshots(self) -> None:
        with closing(self._subscribe()) as events:
            for name, data in events:
                if self._stopped.is_set():
                    return
                if name == "snapshot":
                    self._post(Snapshot(data))

    def _look(self) -> None:
        """One snapshot, beside those that come anyway."""
        # What goes wrong is told by whoever waits for the others.
        with suppress(ipc.IpcError), closing(self._subscribe()) as events:
            for name, data in events:
                if name == "snapshot":
                    self._post(Snapshot(data))
                    return

    def _subscribe(self) -> Generator[tuple[str, dict[str, Any]]]:
        payload = {"interval_s": self._interval_s}
        return ipc.stream(self._config.socket_path, "subscribe", payload, silence_s=self._interval_s + SILENCE_S)

    def _drain(self) -> None:
        try:
            payload = {"limit_s": DRAIN_LIMIT_S}
            with closing(
                ipc.stream(self._config.socket_path, "drain", payload, silence_s=ipc.CALL_TIMEOUT_S)
            ) as reports:
                next(reports, None)
        except ipc.IpcError as error:
            self._post(Told(f"not drained: {error}"))
        else:
            self._post(Told("the node takes no new jobs, and ends when those that run have ended"))

    # ------------------------------------------------------------ beside the node

    def _watch_log(self) -> None:
        path = self._config.log_file
        while not self._stopped.is_set():
            try:
                self._follow(path)
            except FileNotFoundError:
                self._post(LogLines((), no_log(path)))
            except OSError as error:
                reason = reason_of(error)
                self._post(LogLines((), f"the log {path} cannot be read ({reason})"))
            self._stopped.wait(AGAIN_S)

    def _follow(self, path: Path) -> None:
        with LogReader(path) as reader:
            self._post(LogLines(reader.last(LOG_LINES_MAX)))
            while not self._stopped.wait(min(self._interval_s, AGAIN_S)):
                lines: list[str] = []
                for line in reader.new():
                    lines.append(line)
                    if len(lines) >= _NEW_LINES_MAX:
                        del lines[:-LOG_LINES_MAX]
                if lines:
                    self._post(LogLines(lines[-LOG_LINES_MAX:]))

    def _watch_gpus(self) -> None:
        while not self._stopped.is_set():
            rows = [as_row(card) for card in self._find()]
            self._post(Gpus(rows))
            self._stopped.wait(GPUS_AGAIN_S if rows else NO_GPUS_AGAIN_S)


def as_row(card: Card) -> GpuRow:
    """What is shown of a card: not what names this very one."""
    return GpuRow(
        index=card.index,
        model=clean_line(card.model, 200),
        busy_percent=card.utilisation_percent,
        used_bytes=card.vram_used_bytes,
        memory_bytes=card.vram_bytes,
        temperature_c=card.temperature_c,
        trouble=clean_line(f"{card.model}: {card.trouble}", 200) if card.trouble else "",
    )


def _explained(error: ipc.Refused) -> str:
    if str(error).startswith("unknown-cmd"):
        return "the running node is older than this program: `infernet stop`, then `infernet start`"
    if str(error) == "too-many-subscribers":
        return "too many watch this node already: end another `infernet tui`"
    return f"the running node does not tell: {error}"
