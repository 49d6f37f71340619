"""What a check is, what it may say, and what checks tell each other.

A check looks and says what it found; it repairs nothing, and writes nothing outside a temporary folder. What one
finds out and others need goes into the `Situation`; a check that names another in `needs` runs after it, and not at
all where that one failed or was skipped. So one fault shows as one failure.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import psutil
import trio

from infernet.config import Config, LoadedConfig
from protocol.ids import NodeId

DEADLINE_S: Final = 5.0


class Status(StrEnum):
    """How a check ended. `SKIP` says that there was nothing to look at, or that it could not be looked at now."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True)
class Finding:
    """What a check says: how it ended, one line of what was found, one line of what to do about it."""

    status: Status
    found: str
    fix: str = ""


def ok(found: str) -> Finding:
    """All is well."""
    return Finding(Status.OK, found)


def warn(found: str, fix: str) -> Finding:
    """It works, and the owner should know."""
    return Finding(Status.WARN, found, fix)


def fail(found: str, fix: str) -> Finding:
    """Something does not work."""
    return Finding(Status.FAIL, found, fix)


def skip(found: str) -> Finding:
    """There is nothing to say."""
    return Finding(Status.SKIP, found)


class Part(StrEnum):
    """What a check costs; whoever runs the doctor can leave out all but `LOCAL`."""

    LOCAL = "local"
    NETWORK = "network"
    ENGINE = "engine"


@dataclass(frozen=True)
class Machine:
    """What checks read of the machine, so that a test can put another machine in its place."""

    statvfs: Callable[[Path], os.statvfs_result] = os.statvfs
    available_bytes: Callable[[], int] = lambda: int(psutil.virtual_memory().available)
    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000


@dataclass
class Situation:
    """What is known so far. Each field is set by the check that its comment names."""

    environ: Mapping[str, str]
    machine: Machine = field(default_factory=Machine)
    #: Where the files are (`config.home`).
    places: Config | None = None
    #: All settings (`config.readable`).
    loaded: LoadedConfig | None = None
    #: Who this node is (`key.whole`).
    node: NodeId | None = None
    #: The process that runs this node (`node.running`), and what it says of itself (`ipc.answers`).
    pid: int | None = None
    status: dict[str, Any] | None = None
    #: The model's file (`model.present`).
    model_file: Path | None = None
    #: What the coordinator says of itself, and when: before the question and after the answer
    #: (`coordinator.reachable`).
    coordinator: dict[str, Any] | None = None
    asked_ms: tuple[int, int] = (0, 0)
    #: What trying the addresses to listen on gave: host -> errno, 0 for none (`port.hosts`).
    binding: dict[str, int] | None = None
    #: Whether the running node answers on its port (`port.listen`).
    listens: bool = False
    #: What the engine answered (`engine.loads`).
    answer: Finding | None = None

    @property
    def here(self) -> Config:
        """The folders of this node; for checks that need `config.home`."""
        assert self.places is not None
        return self.places

    @property
    def config(self) -> Config:
        """All settings; for checks that need `config.readable`."""
        assert self.loaded is not None
        return self.loaded.config


Examine = Callable[[Situation], Awaitable[Finding]]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row of the table. `looks` and `remedy` are for the troubleshooting page, in whole sentences.

    It runs after those in `needs`, if they went well, and after those in `after`, however they went.
    """

    id: str
    title: str
    looks: str
    remedy: str
    examine: Examine
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    deadline_s: float = DEADLINE_S
    part: Part = Part.LOCAL


def in_thread(look: Callable[[Situation], Finding]) -> Examine:
    """A check that waits for a disk or a resolver, which may take for ever: it is then left behind."""

    async def examine(situation: Situation) -> Finding:
        return await trio.to_thread.run_sync(look, situation, abandon_on_cancel=True)

    return examine


def own_address(status: Mapping[str, Any]) -> str | None:
    """Where this machine itself reaches the running node: over loopback, if it listens there."""
    told = status.get("addresses")
    addresses = [each for each in told if isinstance(each, str)] if isinstance(told, list) else []
    return next(
        (each for each in addresses if each.startswith(("/ip4/127.", "/ip6/::1/"))), next(iter(addresses), None)
    )


def text_of(fields: Mapping[str, Any], name: str) -> str:
    """A text that another process sent; empty when it is none."""
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def part_of(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part of what another process sent; empty when it is none."""
    value = fields.get(name)
    return value if isinstance(value, dict) else {}
