"""protocol/events.py and protocol/effects.py: the two vocabularies are complete, immutable, and silent about texts."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest
from msgspec import Struct

from protocol import effects, events
from protocol.effects import JobText, RunEngine
from protocol.errors import Refusal
from protocol.events import EngineText
from protocol.ids import JobId, RunId
from protocol.jobs import default_sampling
from protocol.records import ChatMessage, ChunkBody, JobRequest, Kind, SealedPrompt

STRUCTS: set[type[Struct]] = {
    cls
    for module in (events, effects)
    for _, cls in inspect.getmembers(module, inspect.isclass)
    if issubclass(cls, Struct) and cls.__module__ == module.__name__
}
PARTS = {events.Offer, effects.Served}  # what SetOffer and JobDone carry


def test_every_struct_is_an_event_or_an_effect_and_never_both() -> None:
    into, out = set(get_args(events.Event)), set(get_args(effects.Effect))
    assert not into & out
    assert into | out | PARTS == STRUCTS


@pytest.mark.parametrize("cls", sorted(STRUCTS, key=str))
def test_nobody_can_change_an_event_after_it_happened(cls: type[Struct]) -> None:
    assert cls.__struct_config__.frozen


def test_every_struct_says_when_it_happens() -> None:
    assert all(cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}(") for cls in STRUCTS)


@pytest.mark.parametrize(
    "value",
    [
        EngineText(RunId(1), "confidential", 3),
        JobText(JobId(bytes(16)), "confidential", 3),
        ChatMessage("user", "confidential"),
        ChunkBody("confidential"),
        JobRequest(prompt="confidential", continuation="confidential", stop=("confidential",)),
        SealedPrompt(b"confidential" + bytes(20), JobRequest(prompt="confidential")),
        RunEngine(
            RunId(1),
            Kind.CHAT,
            "m",
            JobRequest(messages=(ChatMessage("user", "confidential"),)),
            default_sampling(1),
            1,
            1,
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_repr_shows_a_prompt_or_an_answer(value: object) -> None:
    assert "confidential" not in repr(value)
    assert "confidential" not in f"{value} {[value]} {Refusal.BUSY}"
