"""docs/json.md tells of every verb and action, and of no other; what tests see printed is compared with it."""

from __future__ import annotations

import importlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.cli.__main__ import GROUPS, VERBS
from infernet.cli.command import make_parser
from tests.helpers_cli import Outcome
from tests.helpers_json_shapes import PAGE, check, differ, documented, named, section_of

# It needs a terminal, and refuses --json: tests/infernet/cli/test_tui.py.
WITHOUT_JSON = {"tui"}
# Its words choose between a table and JSON, and that is the same for all of them.
WITHOUT_ACTIONS = {"gpu"}
KINDS = {"string", "integer", "number", "boolean", "null", "any"}
SHAPE = {
    "name": "string",
    "age_s": "number",
    "pid?": "integer | null",
    "link": {"?": "null", "url": "string"},
    "models": ["string", "?"],
    "prices": {"*": "integer"},
}
PRINTED = {"name": "a", "age_s": 1, "pid": None, "link": None, "models": None, "prices": {"b": 1}}


def sections(verb: str) -> list[str]:
    """The sections that a verb must have, by its parser."""
    actions = make_parser(verb, importlib.import_module(f"infernet.cli.{verb}"))._actions
    choices = next((list(action.choices or ()) for action in actions if action.dest == "action"), [])
    return [f"{verb} {choice}" for choice in choices] if choices and verb not in WITHOUT_ACTIONS else [verb]


def test_every_verb_and_action_has_a_section_and_nothing_else_has() -> None:
    wanted = [section for verb in VERBS if verb not in WITHOUT_JSON for section in sections(verb)]
    assert sorted(documented()) == sorted(wanted)


def test_verbs_are_in_the_order_of_the_help() -> None:
    text = PAGE.read_text("utf-8")
    assert [title for title in re.findall(r"^## (.+)$", text, re.MULTILINE) if title in GROUPS] == list(GROUPS)
    verbs = list(dict.fromkeys(section.split()[0] for section in documented()))
    assert verbs == [verb for verb in VERBS if verb not in WITHOUT_JSON]


@pytest.mark.parametrize("section", documented())
def test_shapes_name_types_and_sections_that_there_are(section: str) -> None:
    for word in texts(documented()[section]):
        if word.startswith("infernet "):
            assert named(word)
        else:
            assert word == "?" or set(word.split(" | ")) <= KINDS, word


def texts(shape: Any) -> list[str]:
    if isinstance(shape, dict):
        return [text for item in shape.values() for text in texts(item)]
    return [text for item in shape for text in texts(item)] if isinstance(shape, list) else [shape]


@pytest.mark.parametrize(
    ("words", "section"),
    [
        (("status", "--json"), "status"),
        (("wallet", "--json"), "wallet show"),
        (("wallet", "--limit", "3", "history"), "wallet history"),
        (("cluster", "--json"), "cluster status"),
        (("payments", "--json"), "payments list"),
        (("gpu", "json"), "gpu"),
    ],
)
def test_a_command_line_belongs_to_a_section(words: tuple[str, ...], section: str) -> None:
    assert section_of(words) == section


def test_a_verb_without_a_section_is_told_of() -> None:
    with pytest.raises(AssertionError, match="no section of dance"):
        section_of(("dance",))


# ---------------------------------------------------------------- what the comparison finds


def test_what_is_of_a_shape_differs_in_nothing() -> None:
    assert list(differ(PRINTED, SHAPE)) == []
    assert list(differ(PRINTED | {"link": {"url": "x"}, "models": [], "prices": {}}, SHAPE)) == []
    assert list(differ({key: PRINTED[key] for key in PRINTED if key != "pid"}, SHAPE)) == []


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"more": 1}, ".more is not told of"),
        ({"name": None}, ".name is null, not string"),
        ({"age_s": True}, ".age_s is boolean, not number"),
        ({"pid": 1.5}, ".pid is number, not integer | null"),
        ({"link": {"url": 1}}, ".link.url is integer, not string"),
        ({"link": []}, ".link is list, not an object"),
        ({"models": ["a", 1]}, ".models[] is integer, not string"),
        ({"models": {}}, ".models is object, not a list"),
        ({"prices": {"b": "1"}}, ".prices.b is string, not integer"),
        ({"prices": None}, ".prices is null, not an object"),
    ],
)
def test_what_is_not_of_a_shape_is_found(change: dict[str, Any], difference: str) -> None:
    assert list(differ(PRINTED | change, SHAPE)) == [difference]


def test_a_missing_key_is_found_unless_a_double_has_answered() -> None:
    printed = {key: value for key, value in PRINTED.items() if key != "name"} | {"link": {}}
    assert list(differ(printed, SHAPE)) == [".name is missing", ".link.url is missing"]
    assert list(differ(printed, SHAPE, may_lack=True)) == []


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_is_of_no_shape_that_could_be_missed(value: Any) -> None:
    assert list(differ(value, "any")) == []


def test_keys_of_another_section_are_there_too() -> None:
    started = list(differ({"log_file": None}, documented()["start"]))
    assert ".node_id is missing" in started
    assert not any("log_file" in difference for difference in started)
    assert list(differ([], "infernet status")) == ["it is list, not an object"]
    assert list(differ({"url": 1, "state": "", "last_error": ""}, "infernet status .coordinator")) == [
        ".url is integer, not string"
    ]
    with pytest.raises(KeyError):
        named("infernet status .weather")


def test_answers_of_commands_are_compared_and_errors_are_not() -> None:
    answer = {"stopped": True, "pid": 1, "how": "asked"}
    stop = ("stop", "--json")
    assert Outcome(0, json.dumps(answer), "", stop).json == answer
    with pytest.raises(AssertionError, match=r"infernet stop: \.now is not told of"):
        _ = Outcome(0, json.dumps(answer | {"now": 1}), "", stop).json
    with pytest.raises(AssertionError, match=r"\.pid is missing"):
        check(stop, {"stopped": True, "how": "asked"})
    assert Outcome(0, '{"stopped": true}', "", stop, by_double=True).json == {"stopped": True}
    assert Outcome(1, '{"error": "no node", "running": false}', "", stop).json["running"] is False
    assert Outcome(0, "[1]", "").json == [1], "what is no command of ours"
