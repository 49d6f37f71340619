"""model-details.json: extensions 3 and 5 of a heartbeat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgpack
from msgspec.structs import replace

from _vectors_common import PROVIDER, Vector, file, invalid, valid
from _vectors_identity import heartbeat
from protocol.details import EXTENSION_ALIASES, EXTENSION_DETAILS, Said, extensions_of, said_of
from protocol.envelope import sign_record
from protocol.records import EngineKind, Heartbeat, ModelOffer

_DETAILS = [[0, "Q4_K_M", 1, 640, 56], [1, "F16", 1, 0, 0]]
_ALIASES = [[0, ["smollm2", "SmolLM2-135M-Instruct"]], [1, ["bge"]]]


def model_details() -> Vector:
    """model-details.json."""
    return file(
        "What a heartbeat says of its models, which are `models` in this order. Of what is not valid the receiver "
        "ignores the whole value of that extension, and keeps the heartbeat. `said` is what it knows then, by model.",
        [*_good(), *_bad()],
    )


def _good() -> Iterator[Vector]:
    plain = heartbeat()
    full = Said("Q4_K_M", EngineKind.LLAMA_CPP, 640, 56, ("smollm2", "SmolLM2-135M-Instruct"))
    for comment, said in (
        (
            "everything that can be said of both models",
            {"smollm2:135m": full, "bge-small": Said("F16", aliases=("bge",))},
        ),
        (
            "of the second model alone, and no alias",
            {"bge-small": Said("exl2 4.0bpw", EngineKind.EXLLAMA_V2, 57_344, 1)},
        ),
        ("aliases alone", {"smollm2:135m": Said(aliases=("smollm2",))}),
    ):
        yield _valid(comment, plain, said)
    name = "x" * 128
    many = {
        f"m{index}": Said(
            "sixteen letters.", EngineKind.LM_STUDIO, 57_344, 57_344, tuple(f"{name[:60]}{index}-{n}" for n in range(4))
        )
        for index in range(32)
    }
    offers = tuple(ModelOffer(each, bytes(32), plain.models[0].kinds, 512, 1, 0, 0, 0) for each in many)
    yield _valid("32 models: all details fit, and aliases as far as there is room", heartbeat(models=offers), many)
    unknown = msgpack.packb([[0, "", 255, 0, 8]])
    yield _read("an engine that is not known yet", heartbeat(extensions=((EXTENSION_DETAILS, unknown),)))


def _valid(comment: str, plain: Heartbeat, said: dict[str, Said]) -> Vector:
    extended = heartbeat(models=plain.models, extensions=extensions_of(plain.models, said))
    return _read(comment, extended)


def _read(comment: str, extended: Heartbeat) -> Vector:
    signed = sign_record(extended, PROVIDER)
    return valid(
        comment,
        models=[offer.name for offer in extended.models],
        extensions=[[kind, value] for kind, value in extended.extensions],
        said={offer.name: said_of(extended, offer.name) for offer in extended.models},
        body=signed.body,
        signature=signed.signature,
    )


def _bad() -> Iterator[Vector]:
    def bad(comment: str, kind: int, value: bytes, **changes: Any) -> Vector:
        extended = heartbeat(extensions=((kind, value),), **changes)
        signed = sign_record(extended, PROVIDER)
        names = [offer.name for offer in extended.models]
        return invalid(comment, models=names, extensions=[[kind, value]], body=signed.body, signature=signed.signature)

    def details(comment: str, entries: Sequence[Any]) -> Vector:
        return bad(comment, EXTENSION_DETAILS, msgpack.packb(entries))

    def aliases(comment: str, entries: Sequence[Any]) -> Vector:
        return bad(comment, EXTENSION_ALIASES, msgpack.packb(entries))

    yield details("no entry", [])
    yield details("a model that is not offered", [[2, "Q8_0", 1, 0, 0]])
    yield details("one model twice", [_DETAILS[0], _DETAILS[0]])
    yield details("models that do not ascend", _DETAILS[::-1])
    yield details("a field less", [[0, "Q8_0", 1, 0]])
    yield details("a field more", [[0, "Q8_0", 1, 0, 0, 0]])
    yield details("a speed between two steps", [[0, "Q8_0", 1, 9, 0]])
    yield details("a speed beyond the highest", [[0, "Q8_0", 1, 0, 65_536]])
    yield details("a speed below 0", [[0, "Q8_0", 1, -1, 0]])
    yield details("a speed that is no integer", [[0, "Q8_0", 1, 8.0, 0]])
    yield details("a quantisation of 17 characters", [[0, "x" * 17, 1, 0, 0]])
    yield details("a quantisation that is not ASCII", [[0, "Q4\N{MIDDLE DOT}K", 1, 0, 0]])
    yield details("a quantisation with a line feed", [[0, "Q8_0\n", 1, 0, 0]])
    yield details("an engine beyond 255", [[0, "Q8_0", 256, 0, 0]])
    yield bad("no array", EXTENSION_DETAILS, msgpack.packb("Q8_0"))
    yield bad("no MessagePack", EXTENSION_DETAILS, b"\xc1")
    yield bad("bytes after the value", EXTENSION_DETAILS, msgpack.packb(_DETAILS) + b"\0")
    yield bad("a place that takes two bytes", EXTENSION_DETAILS, b"\x91\x95\xcc\x00\xa0\x01\x00\x08")
    yield aliases("no entry of aliases", [])
    yield aliases("an entry without aliases", [[0, []]])
    yield aliases("five aliases of one model", [[0, ["a", "b", "c", "d", "e"]]])
    yield aliases("an alias twice", [[0, ["a"]], [1, ["a"]]])
    yield aliases("an alias that is the name of another model", [[0, ["bge-small"]]])
    yield aliases("an alias that is the name of the same model", [[0, ["smollm2:135m"]]])
    yield aliases("an empty alias", [[0, [""]]])
    yield aliases("an alias of 129 characters", [[0, ["x" * 129]]])
    yield aliases("aliases of a model that is not offered", [[2, ["a"]]])
    yield aliases("aliases of models that do not ascend", _ALIASES[::-1])
    offers = tuple(replace(heartbeat().models[0], name=f"model {index}") for index in range(9))
    many = [[index, [f"{index}{n}" for n in "abcd"]] for index in range(8)] + [[8, ["x"]]]
    yield bad("33 aliases", EXTENSION_ALIASES, msgpack.packb(many), models=offers)
