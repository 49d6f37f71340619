"""What the ExLlama libraries look like, as facts: the parameters of what we call, and the words in what they answer.

The record beside the tests of the engines was taken from the wheels on PyPI, whose versions and hashes it names. It
holds names and nothing of their code. To take it again, for other versions:

    python -m tests.helpers_signatures exllamav2-0.3.2-py3-none-any.whl exllamav3-1.6.5-py3-none-any.whl
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sys
import zipfile
from pathlib import Path
from typing import Any, Final

RECORD: Final = Path(__file__).parent / "infernet" / "engines" / "exllama_signatures.json"

_CACHES_V2: Final = ("ExLlamaV2Cache", "ExLlamaV2Cache_TP")
# library -> file -> what of it we call (a class: its constructor)
CALLED: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "exllamav2": {
        "config.py": ("ExLlamaV2Config",),
        "model.py": ("ExLlamaV2", "ExLlamaV2.load", "ExLlamaV2.load_tp", "ExLlamaV2.load_autosplit"),
        "cache.py": (*_CACHES_V2, "ExLlamaV2Cache_Q4", "ExLlamaV2Cache_Q6", "ExLlamaV2Cache_Q8"),
        "tokenizer/tokenizer.py": ("ExLlamaV2Tokenizer", "ExLlamaV2Tokenizer.encode", "ExLlamaV2Tokenizer.decode"),
        "generator/sampler.py": ("ExLlamaV2Sampler.Settings",),
        "generator/dynamic.py": (
            *("ExLlamaV2DynamicGenerator", "ExLlamaV2DynamicGenerator.enqueue", "ExLlamaV2DynamicGenerator.iterate"),
            *("ExLlamaV2DynamicGenerator.cancel", "ExLlamaV2DynamicGenerator.num_remaining_jobs"),
            *("ExLlamaV2DynamicJob", "_tensor_blake2b_checksum"),
        ),
    },
    "exllamav3": {
        "model/config.py": ("Config.from_directory",),
        "model/model.py": ("Model.from_config", "Model.load_gen"),
        "cache/cache.py": ("Cache",),
        "cache/quant.py": ("CacheLayer_quant",),
        "tokenizer/tokenizer.py": ("Tokenizer.from_config", "Tokenizer.encode", "Tokenizer.decode"),
        "generator/sampler/presets.py": ("ComboSampler",),
        "generator/generator.py": (
            *("Generator", "Generator.enqueue", "Generator.iterate", "Generator.cancel"),
            "Generator.num_remaining_jobs",
        ),
        "generator/job.py": ("Job",),
        "generator/pagetable.py": ("_tensor_blake2b_checksum",),
    },
}
# library -> file -> names and texts that must be in it: what a package gives away, what is read, set and replaced, and
# the keys and words of results
WORDS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "exllamav2": {
        "__init__.py": (
            *("ExLlamaV2", "ExLlamaV2Config", "ExLlamaV2Tokenizer", *_CACHES_V2),
            *("ExLlamaV2Cache_Q4", "ExLlamaV2Cache_Q6", "ExLlamaV2Cache_Q8"),
        ),
        "generator/__init__.py": ("ExLlamaV2DynamicGenerator", "ExLlamaV2DynamicJob", "ExLlamaV2Sampler"),
        "config.py": ("max_seq_len",),
        "attn.py": ("has_flash_attn_with_paged",),
        "tokenizer/tokenizer.py": ("actual_vocab_size", "eos_token_id"),
        "generator/dynamic.py": (
            *("_tensor_hash_checksum", "ext_c", "count_match"),
            *("serial", "stage", "started", "prefill", "streaming", "curr_progress", "max_progress"),
            *("eos", "eos_reason", "stop_token", "max_new_tokens", "new_tokens", "text", "token_ids", "held"),
        ),
    },
    "exllamav3": {
        "__init__.py": (
            *("Cache", "CacheLayer_fp16", "CacheLayer_quant", "Config", "Generator", "Job", "Model", "Tokenizer"),
            # Of the samplers, all: it gives away what their package does.
            "*",
        ),
        "generator/sampler/__init__.py": ("ComboSampler",),
        "tokenizer/tokenizer.py": ("actual_vocab_size", "eos_token_id"),
        "generator/pagetable.py": ("tensor_hash_checksum",),
        "generator/generator.py": ("serial", "stage", "started", "error", "eos"),
        "generator/job.py": (
            *("tensor_hash_checksum", "ext", "count_match_tensor", "prefill", "streaming", "curr_progress"),
            *("max_progress", "eos_reason", "stop_token", "max_new_tokens", "new_tokens", "text", "token_ids", "held"),
        ),
    },
}


def taken_from(wheel: Path) -> dict[str, Any]:
    """The record of one wheel."""
    library, version = wheel.name.split("-")[:2]
    with zipfile.ZipFile(wheel) as archive:
        trees = {name: ast.parse(archive.read(f"{library}/{name}")) for name in {*CALLED[library], *WORDS[library]}}
    called = {
        f"{file}:{name}": parameters(trees[file], name) for file, names in CALLED[library].items() for name in names
    }
    words = {file: sorted(set(names) & _words_in(trees[file])) for file, names in WORDS[library].items()}
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return {"version": version, "wheel": wheel.name, "sha256": digest, "called": called, "words": words}


def parameters(tree: ast.Module, name: str) -> list[str]:
    """The parameters of a function or a constructor: `a`, `a=` with a default, `*a`, `**a`; without self."""
    body: list[ast.stmt] = tree.body
    for part in name.split("."):
        found = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part]
        assert found, f"there is no {name}"
        node = found[0]
        body = node.body
    if isinstance(node, ast.ClassDef):
        constructors = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        if not constructors:
            fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            return [f"{ast.unparse(item.target)}{'=' if item.value is not None else ''}" for item in fields]
        node = constructors[0]
    given = node.args
    names = [*given.posonlyargs, *given.args]
    without = len(names) - len(given.defaults)
    listed = [f"{argument.arg}{'=' if at >= without else ''}" for at, argument in enumerate(names)]
    listed += [f"*{given.vararg.arg}"] if given.vararg else []
    listed += [f"{argument.arg}=" for argument in given.kwonlyargs]
    listed += [f"**{given.kwarg.arg}"] if given.kwarg else []
    return [parameter for parameter in listed if parameter != "self"]


def _words_in(tree: ast.Module) -> set[str]:
    words = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.Constant(value=str(word)):
                words.add(word)
            case ast.alias(name=name, asname=word):
                words.add(word or name)
    return words


def recorded() -> dict[str, dict[str, Any]]:
    """The record."""
    record: dict[str, dict[str, Any]] = json.loads(RECORD.read_text("utf-8"))
    return record


def signature_of(library: str, called: str) -> inspect.Signature:
    """The recorded signature of `file:name`."""
    kinds = inspect.Parameter
    listed = []
    for text in recorded()[library]["called"][called]:
        if text.startswith("**"):
            listed.append(kinds(text[2:], kinds.VAR_KEYWORD))
        elif text.startswith("*"):
            listed.append(kinds(text[1:], kinds.VAR_POSITIONAL))
        else:
            default = None if text.endswith("=") else kinds.empty
            listed.append(kinds(text.rstrip("="), kinds.POSITIONAL_OR_KEYWORD, default=default))
    return inspect.Signature(listed)


def main() -> None:
    """Write the record anew."""
    record = {path.name.split("-")[0]: taken_from(path) for path in map(Path, sys.argv[1:])}
    RECORD.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
