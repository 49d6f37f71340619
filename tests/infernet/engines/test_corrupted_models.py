"""Damaged models whose hash nobody knows: each is refused in one line or serves; who asks lives."""

from __future__ import annotations

import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import trio

from infernet.engines.contract import EngineUnavailable
from infernet.engines.isolated import IsolatedEngine
from protocol.events import EngineFailed, EngineFinished
from protocol.records import Kind
from tests.helpers_engine import chat
from tests.infernet.engines.conftest import running, starter_config

pytestmark = [pytest.mark.anyio, pytest.mark.model, pytest.mark.slow]

# Up to here the starter model's file has its keys and the places of its tensors; then come weights.
HEADER_BYTES = 1_800_000
# The first keys, whose every bit counts.
BEGINNING_BYTES = 600

Damage = Callable[[random.Random], tuple[int, bytes]]


def flipped(draw: random.Random) -> tuple[int, bytes]:
    """One byte of the header."""
    return draw.randrange(4, HEADER_BYTES), draw.randbytes(1)


def early(draw: random.Random) -> tuple[int, bytes]:
    """A byte of the first keys: lengths, kinds, counts."""
    return draw.randrange(BEGINNING_BYTES), draw.randbytes(1)


def huge(draw: random.Random) -> tuple[int, bytes]:
    """A number of 64 bits that is far too large, where one may stand."""
    return draw.randrange(8, BEGINNING_BYTES), struct.pack("<Q", draw.choice([2**31, 2**40, 2**63, 2**64 - 1]))


def wiped(draw: random.Random) -> tuple[int, bytes]:
    """A page of the disk that reads as nothing."""
    return draw.randrange(HEADER_BYTES // 4096) * 4096, bytes(4096)


def weights(draw: random.Random) -> tuple[int, bytes]:
    """Noise among the weights: what a check of the format cannot see."""
    return draw.randrange(HEADER_BYTES, 90_000_000), draw.randbytes(100_000)


ROUNDS = 24
DAMAGES: tuple[Damage, ...] = (flipped, early, huge, wiped, weights)


@pytest.fixture(scope="module")
def model(starter_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the starter model under a name that no hash is known for."""
    path = tmp_path_factory.mktemp("store") / "owners-own.gguf"
    shutil.copyfile(starter_model_path, path)
    return path


@contextmanager
def damaged(path: Path, damage: Damage, draw: random.Random) -> Iterator[None]:
    """Damage a file, and put it right again."""
    with path.open("r+b") as file:
        offset, data = damage(draw)
        whole = os.pread(file.fileno(), len(data), offset)
        os.pwrite(file.fileno(), data, offset)
    # No marker of an earlier look at it.
    for beside in path.parent.iterdir():
        if beside != path:
            beside.unlink()
    yield
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), whole, offset)


async def outcome(path: Path) -> str:
    """What came of serving it."""
    engine, came = IsolatedEngine(starter_config(path, fingerprint=None)), "neither"
    try:
        with trio.fail_after(60):
            async with running(engine) as bench:
                run = bench.start(Kind.CHAT, chat("What is the capital of France?"), tokens=8)
                end = await bench.recorder.end_of(run)
                assert isinstance(end, EngineFinished | EngineFailed)
                came = "answered" if isinstance(end, EngineFinished) else "failed its job"
    except* EngineUnavailable as group:
        (error,) = group.exceptions
        assert str(error).isprintable()  # one line, then, too
        assert len(str(error)) < 1000
        came = "refused"
    return came


@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.nightly) for n in range(1, ROUNDS))])
async def test_a_damaged_model_costs_nothing_but_itself(model: Path, number: int) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    seen: dict[str, str] = {}
    for damage in DAMAGES:
        with damaged(model, damage, random.Random(f"{damage.__name__} {number}")):
            seen[damage.__name__] = await outcome(model)
    print(seen)  # noqa: T201 - `pytest -rP` shows what became of each
    # Noise among the weights is for a hash to find.
    assert seen["weights"] != "refused"
    # Nothing of any of them runs on, and the file as it was is served.
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    assert await outcome(model) == "answered"
