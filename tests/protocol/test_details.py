"""What is said of a provider's models travels in extensions; what is not as it must be is nothing said."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from protocol import constants as c
from protocol.codec import encode_value
from protocol.details import (
    EXTENSION_ALIASES,
    EXTENSION_DETAILS,
    NOTHING_SAID,
    Said,
    aliases_of,
    extensions_of,
    in_steps,
    said_of,
    speeds_of,
)
from protocol.directory import Directory
from protocol.errors import LocalProtocolError
from protocol.records import EngineKind, Heartbeat
from tests.helpers_machines import record_of
from tests.helpers_records import NOW_MS, OFFER, heartbeat

SECOND = replace(OFFER, name="second")
FULL = Said("Q4_K_M", EngineKind.LLAMA_CPP, 640, 56, ("tiny", "little"))


def saying(said: dict[str, Said]) -> Heartbeat:
    return heartbeat(models=(OFFER, SECOND), extensions=extensions_of((OFFER, SECOND), said))


@pytest.mark.parametrize(
    ("measured", "said"),
    [(0.2, 1), (1.9, 1), (7.9, 7), (9.0, 8), (11.9, 10), (59.0, 56), (63.9, 56), (64.0, 64), (1e9, 57_344)],
)
def test_a_speed_is_said_in_coarse_steps_and_never_rounded_up(measured: float, said: int) -> None:
    assert in_steps(measured) == said
    assert in_steps(said) == said


def test_what_is_said_of_each_model_is_heard_of_it_and_of_no_other() -> None:
    beat = saying({"second": FULL})
    assert [kind for kind, _ in beat.extensions] == [EXTENSION_DETAILS, EXTENSION_ALIASES]
    assert said_of(beat, "second") == FULL
    assert speeds_of(beat, SECOND) == (640, 56)
    assert said_of(beat, OFFER.name) == said_of(beat, "nobody's") == NOTHING_SAID
    assert speeds_of(beat, OFFER) == (0, 0)
    assert aliases_of(beat) == {"tiny": "second", "little": "second"}


def test_who_has_nothing_to_say_writes_no_extension() -> None:
    assert extensions_of((OFFER,), {}) == extensions_of((OFFER,), {OFFER.name: NOTHING_SAID}) == ()
    assert extensions_of((OFFER,), {"gone": FULL}) == ()


def test_aliases_that_are_names_or_come_twice_are_left_out() -> None:
    said = {OFFER.name: Said(aliases=("a", "second", "a")), "second": Said(aliases=("a", "b"))}
    assert aliases_of(saying(said)) == {"a": OFFER.name, "b": "second"}
    assert said_of(saying(said), OFFER.name).aliases == ("a",)


def test_a_provider_of_32_models_says_all_details_and_as_many_aliases_as_fit() -> None:
    models = tuple(replace(OFFER, name=f"model-{index}") for index in range(c.HEARTBEAT_MODELS_MAX))
    said = {
        offer.name: Said("x" * 16, EngineKind.LM_STUDIO, 57_344, 57_344, tuple(f"{offer.name}-{n}" for n in range(4)))
        for offer in models
    }
    beat = heartbeat(models=models, extensions=extensions_of(models, said))
    assert all(len(value) <= c.EXTENSION_BYTES_MAX for _, value in beat.extensions)
    assert all(said_of(beat, offer.name).quantisation == "x" * 16 for offer in models)
    assert len(aliases_of(beat)) == c.HEARTBEAT_ALIASES_MAX


def test_long_aliases_are_left_out_and_short_ones_behind_them_said() -> None:
    models = tuple(replace(OFFER, name=f"model-{index}") for index in range(10))
    said = {offer.name: Said(aliases=(f"{index}" + "x" * 120,)) for index, offer in enumerate(models[:-1])}
    beat = heartbeat(models=models, extensions=extensions_of(models, said | {"model-9": Said(aliases=("short",))}))
    found = aliases_of(beat)
    assert found["short"] == "model-9"
    assert len(found) == 9


@pytest.mark.parametrize("wrong", [Said("x" * 17), Said("Q4·K"), Said(tokens_per_s=9), Said(aliases=("x" * 129,))])
def test_what_others_would_ignore_is_not_signed(wrong: Said) -> None:
    with pytest.raises(LocalProtocolError):
        extensions_of((OFFER,), {OFFER.name: wrong})


def test_nonsense_is_nothing_said_and_the_record_is_kept() -> None:
    directory = Directory()
    extensions = ((EXTENSION_DETAILS, b"\xc1"), (EXTENSION_ALIASES, encode_value(((0, (OFFER.name,)),))))
    heard = directory.add(record_of("a", extensions=extensions), NOW_MS)
    assert heard is not None
    assert said_of(heard, OFFER.name) == NOTHING_SAID
    assert directory.models() == [OFFER.name]
    # One bad extension does not spoil the other.
    mixed = directory.add(
        record_of("a", sequence=8, extensions=(extensions[0], (EXTENSION_ALIASES, encode_value(((0, ("tiny",)),))))),
        NOW_MS,
    )
    assert mixed is not None
    assert said_of(mixed, OFFER.name) == Said(aliases=("tiny",))


def test_extensions_that_are_not_known_yet_stand_beside_ours() -> None:
    (details,) = extensions_of((OFFER,), {OFFER.name: Said("F16")})
    beat = heartbeat(extensions=((1, b"place"), details, (7, b"new"), (129, b"")))
    assert said_of(beat, OFFER.name).quantisation == "F16"
