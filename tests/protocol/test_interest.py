"""What is of interest: everything while there is room, else the models served and asked for lately."""

from __future__ import annotations

from protocol import constants as c
from protocol.directory import Directory
from protocol.interest import ASKED_MAX, ASKED_S, Interests, scope_of
from protocol.messages import Interest
from tests.helpers_machines import now, record_of
from tests.helpers_records import NOW_MS


def full_directory(count: int = 8) -> Directory:
    directory = Directory(records_max=count)
    for number in range(count):
        directory.add(record_of(str(number), expires_at_ms=NOW_MS + 1000 * (number + 1)), NOW_MS)
    return directory


def test_everything_is_of_interest_while_there_is_room() -> None:
    interests = Interests(Directory())
    interests.serve(["a"])
    assert not interests.refresh(now())
    assert interests.ours is None
    assert interests.message() == Interest(1, ())


def test_a_full_directory_narrows_the_interest_to_what_is_served_and_asked() -> None:
    interests = Interests(full_directory())
    interests.serve(["b", "a", "b"])
    interests.ask("z", now())
    assert interests.refresh(now())
    assert interests.message() == Interest(0, ("a", "b", "z"))
    assert not interests.refresh(now())
    assert interests.models(now()) == ["z", "b", "a"]


def test_only_a_roomy_directory_widens_it_again() -> None:
    directory = full_directory(8)
    interests = Interests(directory)
    interests.refresh(now())
    directory.expire(NOW_MS + 1000)
    assert not interests.refresh(now())
    assert interests.ours == frozenset()
    directory.expire(NOW_MS + 2000)
    assert interests.refresh(now())
    assert interests.ours is None


def test_what_was_asked_long_ago_is_of_no_interest_any_more() -> None:
    interests = Interests(full_directory())
    interests.ask("z", now())
    interests.refresh(now())
    assert interests.ours == {"z"}
    interests.ask("y", now(ASKED_S - 1.0))
    assert interests.refresh(now(ASKED_S))
    assert interests.ours == {"y"}


def test_only_so_many_models_are_remembered_and_the_latest_first() -> None:
    interests = Interests(full_directory())
    for number in range(40):
        interests.ask(f"model-{number}", now(float(number)))
    interests.ask("model-30", now(100.0))
    assert interests.models(now(100.0)) == ["model-30", *(f"model-{n}" for n in range(39, 23, -1) if n != 30)]
    assert len(interests.models(now(100.0))) == ASKED_MAX
    interests.serve([f"served-{number}" for number in range(40)])
    assert len(interests.models(now(100.0))) == c.INTEREST_MODELS_MAX
    assert "model-30" in interests.models(now(100.0))


def test_a_scope_is_read_as_it_was_said() -> None:
    assert scope_of(Interest(1, ("a",))) is None
    assert scope_of(Interest(0, ())) == frozenset()
    assert scope_of(Interest(0, ("a", "b"))) == {"a", "b"}
