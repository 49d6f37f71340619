"""Every call of the ExLlama libraries in our code, and every name of theirs, against the record of the real wheels.

The code is read and not run, so that what no double is asked for is looked at, too. That the record is what the wheels
say is for the nightly test beside it (`test_exllama_loading.py`); its versions and hashes are in the record.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import pytest

from infernet.engines import exllama_pump, exllama_v2, exllama_v3
from infernet.engines.contract import ExllamaOptions
from tests.helpers_exllama_double import bound, wished
from tests.helpers_signatures import recorded

# Names in our code that hold nothing of the libraries. Whatever else has an attribute is looked up.
OURS: Final = frozenset({"config", "options", "sampling", "torch"})


@dataclass(frozen=True)
class Use:
    """How our code for a release names what it holds: packages by the files that list them, objects by their class."""

    module: ModuleType
    packages: dict[str, tuple[str, ...]]
    objects: dict[str, str]
    #: Arguments that are spread out over a call, by the function of ours that makes them.
    spread: dict[str, list[dict[str, Any]]]
    #: Classes that a name of ours stands for.
    classes: dict[str, list[str]]
    #: What a public method only passes on to.
    passed_on: dict[str, str]


def spread_of(make: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
    """What it makes of every way of drawing tokens."""
    return [make(wished()), make(wished(temperature_milli=0))]


LAYERS: Final = SimpleNamespace(CacheLayer_fp16="exact", CacheLayer_quant="quantised")
USES: Final = {
    "exllamav2": Use(
        exllama_v2,
        packages={"exllama": ("__init__.py",), "generators": ("generator/__init__.py",), "attn": ("attn.py",)},
        objects={
            "settings": "config.py:ExLlamaV2Config",
            "model": "model.py:ExLlamaV2",
            "tokenizer": "tokenizer/tokenizer.py:ExLlamaV2Tokenizer",
            "self._generator": "generator/dynamic.py:ExLlamaV2DynamicGenerator",
        },
        spread={"sampler_settings": spread_of(exllama_v2.sampler_settings)},
        classes={"cache_class": list(exllama_v2._CACHES.values())},
        passed_on={},
    ),
    "exllamav3": Use(
        exllama_v3,
        packages={"exllama": ("__init__.py", "generator/sampler/__init__.py")},
        objects={
            "model": "model/model.py:Model",
            "tokenizer": "tokenizer/tokenizer.py:Tokenizer",
            "self._generator": "generator/generator.py:Generator",
        },
        spread={
            "sampler_arguments": spread_of(exllama_v3.sampler_arguments),
            "cache_arguments": [exllama_v3.cache_arguments(LAYERS, bits) for bits in (16, 8, 4)],
            "load_arguments": [
                exllama_v3.load_arguments(ExllamaOptions(3)),
                exllama_v3.load_arguments(ExllamaOptions(3, gpu_split_gb=(1.0,), tensor_parallel=True)),
            ],
        },
        classes={},
        passed_on={"model/model.py:Model.load": "model/model.py:Model.load_gen"},
    ),
}


def tree_of(module: ModuleType) -> ast.Module:
    assert module.__file__ is not None
    return ast.parse(Path(module.__file__).read_text("utf-8"))


def chain(node: ast.expr) -> str | None:
    """A dotted name as it stands there; None for the attribute of a result."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr) if (before := chain(value)) is not None:
            return f"{before}.{attr}"
    return None


class Reader:
    """Looks up what our code for one release uses."""

    def __init__(self, library: str) -> None:
        self.library = library
        self.use = USES[library]
        self.called: dict[str, Any] = recorded()[library]["called"]
        self.words: dict[str, list[str]] = recorded()[library]["words"]
        #: What of the record was called.
        self.seen: list[str] = []

    def read(self, tree: ast.Module, only: str = "") -> None:
        """Look up everything below a node that starts with a name of the library's, or with this one alone."""
        callees = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                self._call(node, only)
            elif isinstance(node, ast.Attribute) and id(node) not in callees and id(node) not in inner:
                name = chain(node)
                if name is not None and self._is_theirs(name, only):
                    self._word(name)

    def _is_theirs(self, name: str, only: str) -> bool:
        return name.startswith(only + ".") if only else name.partition(".")[0] not in OURS

    def _call(self, node: ast.Call, only: str) -> None:
        name = chain(node.func)
        if name in self.use.classes:
            found = [self._exported(each) for each in self.use.classes[name]]
        elif name is not None and "." in name and self._is_theirs(name, only):
            found = [self._callee(name)]
        else:
            return
        for called in found:
            for named in self._arguments(node):
                bound(self.library, called, *node.args, **named)
        self.seen += found

    def _arguments(self, node: ast.Call) -> Iterator[dict[str, Any]]:
        """The named arguments, once for each form of those that are spread out."""
        plain = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg is not None}
        spread = [keyword.value for keyword in node.keywords if keyword.arg is None]
        if not spread:
            yield plain
        for value in spread:
            assert isinstance(value, ast.Call)
            maker = chain(value.func)
            assert maker in self.use.spread, f"nobody here knows what **{maker}() is"
            for more in self.use.spread[maker]:
                yield plain | more

    def _callee(self, name: str) -> str:
        owner, _, attribute = name.rpartition(".")
        if owner in self.use.objects:
            called = f"{self.use.objects[owner]}.{attribute}"
        else:
            called = self._exported(name.partition(".")[2], name.partition(".")[0])
        called = self.use.passed_on.get(called, called)
        assert called in self.called, f"{name} is called, and the record has no {called}"
        return called

    def _exported(self, name: str, package: str = "exllama") -> str:
        """What a package gives away under this name, by the file in which it is made."""
        assert package in self.use.packages, f"nobody here knows what {package} is"
        given = {word for file in self.use.packages[package] for word in self.words[file]}
        assert name.partition(".")[0] in given, f"{package} of {self.library} gives no {name}"
        found = [called for called in self.called if called.partition(":")[2] == name]
        assert len(found) == 1, f"{name} is called, and the record has {found}"
        return found[0]

    def _word(self, name: str) -> None:
        owner, _, attribute = name.rpartition(".")
        files = self.use.packages.get(owner) or (self.use.objects[owner].partition(":")[0],)
        given = {word for file in files for word in self.words.get(file, ())}
        assert attribute in given, f"{name} is used, and {files} of {self.library} have no such name"


def read(library: str, source: str = "") -> list[str]:
    """All of one release that our code uses, or that this code does; fails where the record has no such thing."""
    reader = Reader(library)
    if source:
        reader.read(ast.parse(source))
        return reader.seen
    reader.read(tree_of(USES[library].module))
    reader.read(tree_of(exllama_pump), only="self._generator")
    return reader.seen


@pytest.mark.parametrize("library", ["exllamav2", "exllamav3"])
def test_everything_that_our_code_calls_is_in_the_wheel_and_takes_what_it_is_given(library: str) -> None:
    seen = set(read(library))
    # And there is nothing in the record that nobody calls, but what stands for the functions that are replaced.
    unused = set(recorded()[library]["called"]) - seen
    assert {called.partition(":")[2] for called in unused} <= {"_tensor_blake2b_checksum", "CacheLayer_quant"}


@pytest.mark.parametrize(
    ("library", "source"),
    [
        ("exllamav2", "exllama.ExLlamaV2Config(path, rope=1)"),
        ("exllamav2", "model.load_all(cache)"),
        ("exllamav2", "exllama.ExLlamaV2Cache_Q5(model)"),
        ("exllamav2", "cache_class(model, bits=4)"),
        ("exllamav2", "settings.max_length = 1"),
        ("exllamav2", "other.load()"),
        ("exllamav3", "exllama.Cache(model, max_num_tokens=1, bits=4)"),
        ("exllamav3", "exllama.Cache(max_num_tokens=1)"),
        ("exllamav3", "model.load(**unheard_of())"),
        ("exllamav3", "layer = exllama.CacheLayer_fp8"),
        ("exllamav3", "tokenizer.vocabulary"),
    ],
)
def test_what_the_wheel_does_not_have_is_found(library: str, source: str) -> None:
    with pytest.raises((AssertionError, KeyError, TypeError)):
        read(library, source)


@pytest.mark.parametrize("library", ["exllamav2", "exllamav3"])
def test_the_record_says_what_it_was_taken_from(library: str) -> None:
    record = recorded()[library]
    assert record["wheel"] == f"{library}-{record['version']}-py3-none-any.whl"
    assert len(bytes.fromhex(record["sha256"])) == 32
    assert record["version"] in (USES[library].module.__doc__ or ""), "the code says which release it was written for"
