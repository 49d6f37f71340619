"""What a node says of its models in a few words, whatever it says."""

from __future__ import annotations

from infernet.cli.said import all_in_words, in_words

FULL = {"quantisation": "Q4_K_M", "engine": "vllm", "prompt_tokens_per_s": 640, "tokens_per_s": 56, "aliases": ["x"]}
NOTHING = dict.fromkeys(FULL)


def test_what_is_said_of_one_model() -> None:
    assert in_words(FULL) == "Q4_K_M, vllm, 56 tokens/s"
    assert in_words(NOTHING | {"tokens_per_s": 7}) == "7 tokens/s"
    assert in_words(NOTHING) == in_words({}) == in_words(None) == ""


def test_of_several_models_each_is_named() -> None:
    assert all_in_words({"a": FULL}, ["a"]) == "Q4_K_M, vllm, 56 tokens/s"
    several = {"a": FULL, "b": NOTHING, "c": NOTHING | {"engine": "ollama"}}
    assert all_in_words(several, ["a", "b", "c"]) == "a: Q4_K_M, vllm, 56 tokens/s; c: ollama"
    assert all_in_words(None, ["a"]) == ""  # by a node of before
