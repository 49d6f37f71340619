"""A provider's word about its speed counts among strangers, up to the middle of those that are compared."""

from __future__ import annotations

from msgspec.structs import replace

from protocol.ranking import STRANGER, Need, Standing
from protocol.stated import NOTHING_STATED, STATED_FACTOR_MAX, Stated, believed, is_open

NEED = Need(prompt_bytes=6_000, output_tokens=100, is_free=True, price_in_uusd_max=None, price_out_uusd_max=None)
MEASURED = replace(STRANGER, jobs=5.0, first_token_s=0.4, tokens_per_s=25.0)


def rates(*stated: int, known: tuple[Standing, ...] = ()) -> list[float]:
    """What is counted on of strangers that state these rates, after those that are known."""
    everybody = [*known, *[STRANGER] * len(stated)]
    told = [*[Stated(0, 1000)] * len(known), *(Stated(0, rate) for rate in stated)]
    return [standing.tokens_per_s for standing in believed(everybody, told, NEED)]


def firsts(*prompt_rates: int) -> list[float]:
    told = [Stated(rate, 0) for rate in prompt_rates]
    return [standing.first_token_s for standing in believed([STRANGER] * len(told), told, NEED)]


def test_where_nobody_states_anything_everything_is_as_it_was() -> None:
    known = [STRANGER, MEASURED]
    assert believed(known, [NOTHING_STATED, NOTHING_STATED], NEED) is known
    assert believed([], [], NEED) == []


def test_what_speaks_against_its_provider_is_believed_and_the_rest_up_to_the_middle() -> None:
    assert rates(5, 20, 32, 56, 3) == [5, 20, 20, 20, 3]


def test_a_lone_boast_gains_nothing_over_those_who_are_silent() -> None:
    assert rates(1000) == [STRANGER.tokens_per_s * STATED_FACTOR_MAX]  # nobody is there to be compared with
    assert rates(0, 1000) == [STRANGER.tokens_per_s] * 2
    assert rates(0, 0, 0, 1000, 1000, 0) == [STRANGER.tokens_per_s] * 6


def test_many_liars_gain_a_bounded_factor() -> None:
    assert rates(1000, 1000, 1000, 0) == [40.0, 40.0, 40.0, STRANGER.tokens_per_s]


def test_silence_is_not_lowered_by_what_others_state() -> None:
    assert rates(3, 3, 3, 0) == [3, 3, 3, STRANGER.tokens_per_s]


def test_what_was_measured_wins_over_what_is_stated() -> None:
    counted = believed([MEASURED, STRANGER], [Stated(10_000, 1000), NOTHING_STATED], NEED)
    assert list(counted) == [MEASURED, STRANGER]
    # And it is one of those in whose middle the others are believed.
    assert rates(1000, 1000, known=(MEASURED,)) == [25.0, 40.0, 40.0]
    assert rates(1000, 12, known=(MEASURED,)) == [25.0, 25.0, 12]


def test_a_figure_that_was_measured_leaves_the_other_one_open() -> None:
    half = replace(STRANGER, first_token_s=0.4)
    (counted,) = believed([half], [Stated(1, 24)], NEED)
    assert (counted.first_token_s, counted.tokens_per_s) == (0.4, 24)


def test_a_prompt_takes_as_long_as_its_provider_says_and_no_less_than_in_the_middle() -> None:
    # 1,000 tokens or so: 10 s at 100 a second.
    assert firsts(100) == [10.0]
    assert firsts(100, 500, 2000) == [10.0, 2.0, 2.0]
    assert firsts(0, 56_000) == [STRANGER.first_token_s] * 2
    assert firsts(56_000) == [STRANGER.first_token_s / STATED_FACTOR_MAX]


def test_all_else_that_is_known_stays() -> None:
    tired = replace(STRANGER, rest_s=7.0, open_jobs=2, jobs=3.0)
    (counted,) = believed([tired], [Stated(0, 24)], NEED)
    assert counted == replace(tired, tokens_per_s=24.0)


def test_what_is_stated_is_of_use_while_a_figure_is_missing() -> None:
    assert is_open(STRANGER)
    assert is_open(replace(MEASURED, tokens_per_s=STRANGER.tokens_per_s))
    assert is_open(replace(MEASURED, first_token_s=STRANGER.first_token_s))
    assert not is_open(MEASURED)
