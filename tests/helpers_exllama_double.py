"""Test doubles of ExLlamaV2 and ExLlamaV3: they take what the recorded signatures take, and run no model.

Whoever calls one with a parameter that the real library does not name fails. The generator answers with what a test
told it; texts are tokenised by their characters. The double exists for tests alone.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from infernet.engines.exllama_library import Library
from protocol.records import Sampling
from tests.helpers_signatures import signature_of

# Parameters that a library passes on by `**kwargs`, and to whom.
_PASSED_ON = {"cache/cache.py:Cache": "cache/quant.py:CacheLayer_quant"}


def bound(library: str, called: str, *arguments: Any, **named: Any) -> dict[str, Any]:
    """The arguments by their names. Raises TypeError for what the real library does not name."""
    signature = signature_of(library, called)
    taken: dict[str, Any] = dict(signature.bind(*arguments, **named).arguments)
    bag = taken.pop("kwargs", {})
    known = signature_of(library, _PASSED_ON[called]).parameters if called in _PASSED_ON else {}
    if not set(bag) <= set(known):
        raise TypeError(f"{called} has no {sorted(set(bag) - set(known))}")
    return taken | bag


class Calls:
    """Classes and functions that note how they were called."""

    def __init__(self, library: str) -> None:
        self.library = library
        self.made: list[tuple[str, dict[str, Any]]] = []

    def noting(self, called: str, result: Any = None) -> Callable[..., Any]:
        """Something to call in place of `file:name`."""

        def call(*arguments: Any, **named: Any) -> Any:
            self.made.append((called.partition(":")[2], bound(self.library, called, *arguments, **named)))
            return result

        return call

    def of(self, name: str) -> dict[str, Any]:
        """The arguments of the only call of this name."""
        (arguments,) = [arguments for called, arguments in self.made if called == name]
        return arguments


class Ids:
    """In place of a tensor of one row."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __getitem__(self, row: int) -> Ids:
        assert row == 0
        return self

    def tolist(self) -> list[int]:
        """The row."""
        return list(self.ids)


class GeneratorDouble:
    """A generator that gives what it is told to, one list of results a turn; each job is a number.

    `turns` are functions of the jobs that are in; `hold` lets a test stop it before a turn.
    """

    def __init__(self, *turns: Callable[[list[int]], list[dict[str, Any]]]) -> None:
        self.turns = list(turns)
        self.jobs: dict[int, Any] = {}
        self.cancelled: list[int] = []
        self.may_turn = threading.Event()
        self.may_turn.set()
        self.entered = threading.Event()
        self.threads: set[int] = set()

    def enqueue(self, job: Any) -> int:
        """Take a job; one that is an exception is raised."""
        self.threads.add(threading.get_ident())
        if isinstance(job, Exception):
            raise job
        serial = len(self.jobs) + len(self.cancelled) + 100
        self.jobs[serial] = job
        return serial

    def iterate(self) -> list[dict[str, Any]]:
        """One turn; the last one of those that were given is repeated."""
        self.threads.add(threading.get_ident())
        self.entered.set()
        assert self.may_turn.wait(30)
        turn = self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]
        results = turn(sorted(self.jobs))
        for result in results:
            if result["eos"]:
                self.jobs.pop(result["serial"], None)
        return results

    def cancel(self, job: Any) -> None:
        """Forget a job."""
        self.threads.add(threading.get_ident())
        serial = next(number for number, known in self.jobs.items() if known is job)
        del self.jobs[serial]
        self.cancelled.append(serial)

    def num_remaining_jobs(self) -> int:
        """How many are in."""
        return len(self.jobs)


def streamed(serial: int, text: str = "", ids: list[int] | None = None, **others: Any) -> dict[str, Any]:
    """The result of one token."""
    result = {"serial": serial, "stage": "streaming", "eos": False} | others
    return result | ({"text": text} if text else {}) | ({"token_ids": Ids(ids)} if ids else {})


def character_library(generator: GeneratorDouble) -> Library:
    """A library whose tokens are characters, with control tokens of one character each: none is in a text."""
    return Library(
        generator=generator,
        encode=lambda text, _special: [ord(character) for character in text],
        decode=lambda ids, _special: "".join(map(chr, ids)),
        make_job=lambda prompt, tokens, sampling, ends: (tuple(prompt), tokens, sampling, tuple(ends)),
        vocabulary_size=sys.maxunicode,
        end_token=2,
    )


def install(monkeypatch: pytest.MonkeyPatch, library: str, *, has_flash_attention: bool = True) -> Calls:
    """Put a double in place of one of the libraries, and of torch."""
    calls = Calls(library)
    torch = ModuleType("torch")
    cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 2, mem_get_info=lambda _number: (20 * 1024**3, 24 * 1024**3)
    )
    for name, value in {"cuda": cuda, "tensor": lambda ids, **_: Ids(ids), "long": "long"}.items():
        setattr(torch, name, value)
    monkeypatch.setitem(sys.modules, "torch", torch)
    modules = _exllamav2(calls, has_flash_attention) if library == "exllamav2" else _exllamav3(calls)
    for name, content in modules.items():
        module = ModuleType(name)
        for attribute, value in content.items():
            setattr(module, attribute, value)
        monkeypatch.setitem(sys.modules, name, module)
        package, _, last = name.rpartition(".")
        if package:
            setattr(sys.modules[package], last, module)
    return calls


def _tokenizer(calls: Calls, file: str, owner: str) -> Any:
    return SimpleNamespace(
        encode=calls.noting(f"{file}:{owner}.encode", [Ids([5, 6])]),
        decode=calls.noting(f"{file}:{owner}.decode", "text"),
        actual_vocab_size=512,
        eos_token_id=2,
    )


def _exllamav2(calls: Calls, has_flash_attention: bool) -> dict[str, dict[str, Any]]:
    model = SimpleNamespace(
        **{name: calls.noting(f"model.py:ExLlamaV2.{name}") for name in ("load", "load_tp", "load_autosplit")}
    )
    caches = ("ExLlamaV2Cache", "ExLlamaV2Cache_TP", "ExLlamaV2Cache_Q4", "ExLlamaV2Cache_Q6", "ExLlamaV2Cache_Q8")
    file = "generator/dynamic.py"
    tokenizer = _tokenizer(calls, "tokenizer/tokenizer.py", "ExLlamaV2Tokenizer")
    settings = calls.noting("generator/sampler.py:ExLlamaV2Sampler.Settings", "settings")
    top = {
        "ExLlamaV2Config": calls.noting("config.py:ExLlamaV2Config", SimpleNamespace()),
        "ExLlamaV2": calls.noting("model.py:ExLlamaV2", model),
        "ExLlamaV2Tokenizer": calls.noting("tokenizer/tokenizer.py:ExLlamaV2Tokenizer", tokenizer),
        **{name: calls.noting(f"cache.py:{name}", name) for name in caches},
    }
    generator = {
        "ExLlamaV2DynamicGenerator": calls.noting(f"{file}:ExLlamaV2DynamicGenerator", GeneratorDouble(lambda _: [])),
        "ExLlamaV2DynamicJob": calls.noting(f"{file}:ExLlamaV2DynamicJob", "job"),
        "ExLlamaV2Sampler": SimpleNamespace(Settings=settings),
    }
    dynamic = {
        "_tensor_hash_checksum": calls.noting(f"{file}:_tensor_blake2b_checksum", b"computed"),
        "ext_c": SimpleNamespace(count_match=lambda *_: 7, sample_basic=lambda: "sampled"),
    }
    return {
        "exllamav2": top,
        "exllamav2.attn": {"has_flash_attn_with_paged": has_flash_attention},
        "exllamav2.generator": generator,
        "exllamav2.generator.dynamic": dynamic,
    }


def _exllamav3(calls: Calls) -> dict[str, dict[str, Any]]:
    model = SimpleNamespace(load=calls.noting("model/model.py:Model.load_gen"))
    hashing = calls.noting("generator/pagetable.py:_tensor_blake2b_checksum", b"computed")
    tokenizer = _tokenizer(calls, "tokenizer/tokenizer.py", "Tokenizer")
    top = {
        "Config": SimpleNamespace(from_directory=calls.noting("model/config.py:Config.from_directory", "config")),
        "Model": SimpleNamespace(from_config=calls.noting("model/model.py:Model.from_config", model)),
        "Cache": calls.noting("cache/cache.py:Cache", "cache"),
        "CacheLayer_fp16": "exact",
        "CacheLayer_quant": "quantised",
        "Tokenizer": SimpleNamespace(
            from_config=calls.noting("tokenizer/tokenizer.py:Tokenizer.from_config", tokenizer)
        ),
        "Generator": calls.noting("generator/generator.py:Generator", GeneratorDouble(lambda _: [])),
        "Job": calls.noting("generator/job.py:Job", "job"),
        "ComboSampler": calls.noting("generator/sampler/presets.py:ComboSampler", "sampler"),
    }
    extension = SimpleNamespace(count_match_tensor=lambda *_: 7, partial_strings_match=lambda: "matched")
    return {
        "exllamav3": top,
        "exllamav3.generator": {},
        "exllamav3.generator.pagetable": {"tensor_hash_checksum": hashing},
        "exllamav3.generator.job": {"tensor_hash_checksum": hashing, "ext": extension},
    }


def wished(**changes: int) -> Sampling:
    """How an asker wants tokens drawn."""
    fields = {"temperature_milli": 700, "top_p_milli": 900, "min_p_milli": 50, "top_k": 40, "seed": 7}
    penalties = {"presence_penalty_milli": 100, "frequency_penalty_milli": 200, "repetition_penalty_milli": 1100}
    return Sampling(**(fields | penalties | changes))
