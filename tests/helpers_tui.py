"""A live view without a terminal, fed by a test: what its screen shows, as text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from textual.pilot import Pilot

from infernet.tui.app import LiveView
from infernet.tui.feed import Gpus, LogLines, News, Snapshot
from infernet.tui.model import GpuRow
from infernet.tui.panels import Look

SMALL = (80, 24)
LARGE = (120, 40)

# What a stranger may have called himself: markup, escapes, a new line, another direction, wide and joined letters.
HOSTILE = "[bold red]x[/] \x1b[2J\x1b]0;title\x07\nroot# \u202egnp.exe 漢字漢字 e\u0301\u0301 [@click=app.leave()]go[/]"


class FakeSource:
    """A double of the feed: a test tells what it would, and sees what was wished for."""

    def __init__(self) -> None:
        self.tell: Callable[[News], object] = lambda _news: None
        self.wishes: list[str] = []

    def start(self, tell: Callable[[News], object]) -> None:
        self.tell = tell

    def stop(self) -> None:
        self.wishes.append("stop")

    def refresh(self) -> None:
        self.wishes.append("refresh")

    def drain(self) -> None:
        self.wishes.append("drain")


def screen_of(view: LiveView) -> list[str]:
    """The lines of the screen as somebody sees them."""
    return ["".join(strip.text).rstrip() for strip in view.screen._compositor.render_strips()]


class Watched:
    """A live view that runs, and its source."""

    def __init__(self, view: LiveView, source: FakeSource, pilot: Pilot[None]) -> None:
        self.view = view
        self.source = source
        self.pilot = pilot

    async def told(self, *news: News) -> None:
        """Tell it, and wait until that is drawn."""
        for each in news:
            self.source.tell(each)
        await self.drawn()

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.drawn()

    async def drawn(self) -> None:
        await self.pilot.pause()
        self.view._draw()
        await self.pilot.pause()

    @property
    def screen(self) -> str:
        return "\n".join(screen_of(self.view)) + "\n"


@asynccontextmanager
async def watched(size: tuple[int, int] = SMALL, *, has_colour: bool = True) -> AsyncIterator[Watched]:
    """A live view as long as the block lasts."""
    source = FakeSource()
    view = LiveView(source, Look(has_colour))
    async with view.run_test(size=size) as pilot:
        yield Watched(view, source, pilot)


def status(**changes: Any) -> dict[str, Any]:
    """What a provider that is well says of itself."""
    return {
        "name": "attic",
        "role": "provider",
        "npub": "npub1attic",
        "version": "0.1.0",
        "uptime_s": 7384.2,
        "ends_in_s": None,
        "hours": None,
        "engine": {"state": "ready", "last_error": ""},
        "models": ["smollm2-135m-instruct"],
        "coordinator": {"url": "https://coordinator.example", "state": "connected", "last_error": ""},
        "coordinator_url": "https://coordinator.example",
        "reached": {"reachability": "reached"},
        "money": {"earned_uusd": 1_230_000, "unclaimed_uusd": 4_500, "unclaimed_elsewhere_uusd": 0, "trouble": ""},
        "peers": 2,
        "peers_known": 3,
        "jobs_asked": 0,
        "jobs_running": 2,
        "jobs_waiting": 1,
        "counts": {"jobs": {"completed": 41, "failed": 1}},
    } | changes


def job(**changes: Any) -> dict[str, Any]:
    return {
        "asker": "ab12cd34" * 8,
        "model": "smollm2-135m-instruct",
        "waits": False,
        "is_paid": True,
        "prompt_tokens": 27,
        "output_tokens": 130,
        "age_s": 4.2,
        "tokens_per_s": 31.25,
    } | changes


def peer(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "node_id": f"{number:02x}" * 32,
        "name": f"node-{number}",
        "role": "provider",
        "availability": "available",
        "connected": True,
        "how": "direct",
        "round_trip_ms": 12.4,
        "load": 3,
        "age_s": 4.0,
        "models": ["tiny-135m"],
    } | changes


def snapshot(number: int = 0, **changes: Any) -> dict[str, Any]:
    """The snapshots of successive seconds."""
    return {
        "at_s": 100.0 + number,
        "wall_ms": 1_700_000_000_000 + 1000 * number,
        "status": status(),
        "output_tokens": 1000 + 31 * number + number % 7 * 4,
        "jobs": [job(), job(asker="99" * 32, waits=True, output_tokens=0, tokens_per_s=0, age_s=0.5)],
        "jobs_left_out": 0,
        "peers": [
            peer(1),
            peer(2, how="relay", role="aggregator"),
            peer(3, how=None, connected=False, round_trip_ms=None),
        ],
        "peers_left_out": 0,
    } | changes


CARDS = (
    GpuRow(0, "NVIDIA GeForce RTX 4090", 87, 14_000_000_000, 25_757_220_864, 71, ""),
    GpuRow(1, "AMD Radeon", None, None, 17_179_869_184, None, ""),
    GpuRow(2, "NVIDIA A2", None, None, None, None, "NVIDIA A2: fell silent on the bus"),
)


def line(level: str, event: str, number: int = 0, **fields: Any) -> str:
    """A line of the log as a node writes it."""
    timestamp = f"2026-11-29T12:00:{number % 60:02}.123456Z"
    return json.dumps({"timestamp": timestamp, "level": level, "event": event, **fields})


LOG = LogLines(
    [
        line("info", "node.started", 1, version="0.1.0"),
        line("info", "coordinator.linked", 2),
        line("warning", "engine.slow_cancel", 3, duration_ms=1200),
        line("error", "store.failed", 4, reason="the disk is full"),
    ]
)


async def busy(view: Watched, **changes: Any) -> None:
    """Half a minute of work."""
    await view.told(*(Snapshot(snapshot(number)) for number in range(30)), Snapshot(snapshot(30, **changes)))
    await view.told(Gpus(CARDS), LOG)


def hostile_snapshot() -> Mapping[str, Any]:
    """Every text is what a stranger may have written."""
    link = {"url": HOSTILE, "state": HOSTILE, "last_error": HOSTILE}
    texts = dict.fromkeys(("name", "role", "npub", "version", "coordinator_url"), HOSTILE)
    engine = {"state": HOSTILE, "last_error": HOSTILE}
    hours = {"words": HOSTILE}
    money = {"earned_uusd": 10**30, "unclaimed_uusd": float("nan"), "trouble": HOSTILE}
    return snapshot(
        status=status(
            **texts, coordinator=link, engine=engine, hours=hours, money=money, models=[HOSTILE] * 40, uptime_s=1e300
        ),
        jobs=[job(model=HOSTILE, asker=HOSTILE, age_s=float("inf"), tokens_per_s=1e99, prompt_tokens=-5)] * 300,
        peers=[peer(name=HOSTILE, node_id=HOSTILE, role=HOSTILE, how=HOSTILE, models=[HOSTILE] * 9, load=10**20)] * 300,
        jobs_left_out=7,
        peers_left_out=10**40,
    )
