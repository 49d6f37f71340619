"""protocol/affinity.py: the next turn of a conversation finds who read the last one, and nothing tells what it was."""

from __future__ import annotations

from protocol.affinity import ENTRIES_MAX, LIFETIME_S, PREFIX_CHARACTERS_MIN, PREFIXES_PER_PROMPT_MAX, Affinity
from protocol.records import ChatMessage, JobRequest
from tests.helpers_records import OFFER, signing_key

A, B = signing_key("a").node, signing_key("b").node
LONG = "x" * PREFIX_CHARACTERS_MIN


def chat(*contents: str) -> JobRequest:
    roles = ("user", "assistant")
    return JobRequest(messages=tuple(ChatMessage(roles[i % 2], text) for i, text in enumerate(contents)))


def test_the_next_turn_finds_who_read_the_last_one() -> None:
    affinity = Affinity(bytes(32))
    affinity.remember(affinity.prefixes(chat(LONG)), OFFER.name, A, 10.0)
    following = affinity.prefixes(chat(LONG, "an answer", "and then?"))
    assert affinity.provider_of(following, OFFER.name, 11.0) == A
    assert affinity.provider_of(affinity.prefixes(chat(LONG + "!", "an answer", "and then?")), OFFER.name, 11.0) is None


def test_the_longest_beginning_wins_and_the_newest_of_equals() -> None:
    affinity = Affinity(bytes(32))
    affinity.remember(affinity.prefixes(chat(LONG)), OFFER.name, A, 0.0)
    affinity.remember(affinity.prefixes(chat(LONG, "answer", "question")), OFFER.name, B, 1.0)
    affinity.remember(affinity.prefixes(chat(LONG)), OFFER.name, A, 2.0)
    longer = affinity.prefixes(chat(LONG, "answer", "question", "answer", "more"))
    assert affinity.provider_of(longer, OFFER.name, 3.0) == B
    assert affinity.provider_of(affinity.prefixes(chat(LONG, "other")), OFFER.name, 3.0) == A


def test_it_is_of_one_model_and_expires() -> None:
    affinity = Affinity(bytes(32))
    prefixes = affinity.prefixes(chat(LONG))
    affinity.remember(prefixes, OFFER.name, A, 0.0)
    assert affinity.provider_of(prefixes, None, 1.0) is None
    assert affinity.provider_of(prefixes, OFFER.name, LIFETIME_S - 1) == A
    assert affinity.provider_of(prefixes, OFFER.name, LIFETIME_S) is None


def test_what_half_the_world_says_is_no_bond() -> None:
    affinity = Affinity(bytes(32))
    assert affinity.prefixes(chat("You are a helpful assistant.")) == ()
    assert affinity.prefixes(JobRequest(inputs=("embed this",))) == ()


def test_completions_share_what_they_begin_with() -> None:
    affinity = Affinity(bytes(32))
    affinity.remember(affinity.prefixes(JobRequest(prompt="a" * 3000)), None, A, 0.0)
    assert affinity.provider_of(affinity.prefixes(JobRequest(prompt="a" * 2500 + "b" * 500)), None, 1.0) == A
    assert affinity.provider_of(affinity.prefixes(JobRequest(prompt="b" + "a" * 3000)), None, 1.0) is None


def test_cuts_between_messages_matter() -> None:
    affinity = Affinity(bytes(32))
    assert set(affinity.prefixes(chat(LONG, "ab"))).isdisjoint(affinity.prefixes(chat(LONG + "assistant\nab")))


def test_hashes_tell_nothing_without_the_salt() -> None:
    request = chat(LONG)
    assert Affinity(bytes(32)).prefixes(request) == Affinity(bytes(32)).prefixes(request)
    assert set(Affinity(b"\x01" * 32).prefixes(request)).isdisjoint(Affinity(bytes(32)).prefixes(request))


def test_it_is_bounded() -> None:
    affinity = Affinity(bytes(32))
    many = affinity.prefixes(chat(*[LONG] * (2 * PREFIXES_PER_PROMPT_MAX)))
    assert len(many) == PREFIXES_PER_PROMPT_MAX
    for number in range(ENTRIES_MAX + 10):
        affinity.remember((number.to_bytes(16, "big"),), None, A, 0.0)
    assert len(affinity) == ENTRIES_MAX
    assert affinity.provider_of(((5).to_bytes(16, "big"),), None, 1.0) is None


def test_a_lone_surrogate_is_only_text() -> None:
    assert len(Affinity(bytes(32)).prefixes(chat(LONG + "\ud800"))) == 1
