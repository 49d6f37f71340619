"""The plan of which model runs on which cards: what it must keep whatever the numbers are, and what it decides."""

from __future__ import annotations

from itertools import combinations
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from infernet.engines.placement import SPREAD_BYTES, NoPlace, Placed, Room, Wish, plan

GB = 10**9


def wishes(**needed: int) -> list[Wish]:
    return [Wish(model, size) for model, size in needed.items()]


SIZES = st.integers(0, 100 * GB)
WISHES = st.lists(SIZES, max_size=6).map(lambda sizes: [Wish(f"m{n}", size) for n, size in enumerate(sizes)])
ROOMS = st.lists(st.tuples(SIZES, st.booleans()), max_size=6).map(
    lambda rooms: [Room(f"c{n}", free, part) for n, (free, part) in enumerate(rooms)]
)


@given(WISHES, ROOMS, SIZES)
def test_nothing_is_given_twice_and_every_model_has_a_place_or_a_reason(
    wanted: list[Wish], rooms: list[Room], processor_bytes: int
) -> None:
    found = plan(wanted, rooms, processor_bytes)
    assert found.keys() == {wish.model for wish in wanted}
    placed = [one for one in found.values() if isinstance(one, Placed)]
    for room in rooms:
        assert sum(one.on_cards.get(room.card, 0) for one in placed) <= room.free_bytes
    assert sum(one.on_processor_bytes for one in placed) <= processor_bytes
    for wish in wanted:
        one = found[wish.model]
        if isinstance(one, NoPlace):
            assert wish.model in one.reason
            assert "\n" not in one.reason
        elif one.on_cards:
            extra = (len(one.on_cards) - 1) * SPREAD_BYTES
            assert sum(one.on_cards.values()) >= wish.needed_bytes + extra
            assert one.on_processor_bytes == 0
        else:
            assert one.on_processor_bytes == wish.needed_bytes


@given(WISHES, ROOMS, SIZES, st.randoms(use_true_random=False))
def test_the_order_in_which_things_are_told_changes_nothing(
    wanted: list[Wish],
    rooms: list[Room],
    processor_bytes: int,
    random: Random,
) -> None:
    found = plan(wanted, rooms, processor_bytes)
    random.shuffle(wanted)
    random.shuffle(rooms)
    assert plan(wanted, rooms, processor_bytes) == found


@given(SIZES, ROOMS)
def test_one_model_gets_the_fewest_cards_that_hold_it(needed: int, rooms: list[Room]) -> None:
    one = plan([Wish("m", needed)], rooms, 0)["m"]
    whole = [room for room in rooms if not room.is_part]
    counts = [1] if any(room.free_bytes >= needed for room in rooms) else []
    counts += [
        count
        for count in range(2, len(whole) + 1)
        if any(
            sum(room.free_bytes for room in some) >= needed + (count - 1) * SPREAD_BYTES
            and min(room.free_bytes for room in some) > SPREAD_BYTES
            for some in combinations(whole, count)
        )
    ]
    if isinstance(one, Placed) and one.on_cards:
        assert len(one.on_cards) == min(counts)
    else:
        assert not counts


def test_the_largest_comes_first_and_each_goes_where_it_fills_best() -> None:
    found = plan(wishes(small=7 * GB, large=20 * GB, middle=10 * GB), [Room("a", 24 * GB), Room("b", 12 * GB)], 0)
    assert found["large"] == Placed({"a": 20 * GB})
    assert found["middle"] == Placed({"b": 10 * GB})
    assert isinstance(found["small"], NoPlace)


def test_what_one_card_does_not_hold_is_spread_by_what_is_free() -> None:
    found = plan(wishes(large=30 * GB), [Room("a", 24 * GB), Room("b", 12 * GB), Room("c", 4 * GB)], 0)["large"]
    assert isinstance(found, Placed)
    assert found.on_cards.keys() == {"a", "b"}
    assert found.on_cards["a"] > found.on_cards["b"]


def test_a_part_of_a_card_is_never_one_of_several() -> None:
    parts = [Room("a", 20 * GB, is_part=True), Room("b", 20 * GB, is_part=True)]
    assert plan(wishes(fits=20 * GB), parts, 0)["fits"] == Placed({"a": 20 * GB})
    assert isinstance(plan(wishes(large=30 * GB), parts, 0)["large"], NoPlace)


def test_the_processor_takes_what_its_memory_holds_and_the_rest_is_told_what_is_missing() -> None:
    found = plan(wishes(one=6 * GB, two=5 * GB), [Room("a", 4 * GB)], 8 * GB)
    assert found["one"] == Placed({}, 6 * GB)
    two = found["two"]
    assert isinstance(two, NoPlace)
    assert two.reason == (
        "two needs 5.0 GB, and beside the other models 4.0 GB of one GPU and 2.0 GB of this machine are left: serve "
        "fewer models, smaller ones, or with fewer slots or less context"
    )
