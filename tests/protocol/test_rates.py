"""Buckets of tokens: a burst, then a steady rate, per key, for a bounded number of keys."""

from __future__ import annotations

from protocol.rates import Rates


def test_a_burst_and_then_the_rate() -> None:
    rates: Rates[str] = Rates(2.0, 3)
    assert [rates.take("a", 100.0) for _ in range(4)] == [True, True, True, False]
    assert not rates.take("a", 100.4)
    assert rates.take("a", 100.5)
    assert not rates.take("a", 100.5)


def test_a_long_silence_earns_no_more_than_the_burst() -> None:
    rates: Rates[str] = Rates(10.0, 2)
    rates.take("a", 0.0)
    assert [rates.take("a", 1000.0) for _ in range(3)] == [True, True, False]


def test_keys_do_not_pay_for_each_other() -> None:
    rates: Rates[str] = Rates(1.0, 1)
    assert rates.take("a", 0.0)
    assert rates.take("b", 0.0)
    assert not rates.take("a", 0.0)


def test_the_key_that_was_quiet_for_longest_is_forgotten_first() -> None:
    rates: Rates[str] = Rates(0.001, 1, keys_max=2)
    for key in ("a", "b", "a", "c"):
        rates.take(key, 0.0)
    assert rates.take("b", 0.0)  # forgotten when "c" came, so its bucket is full again
    assert not rates.take("c", 0.0)


def test_what_is_given_back_can_be_taken_again_and_fills_no_bucket_beyond_its_burst() -> None:
    rates: Rates[str] = Rates(0.001, 1)
    rates.give_back("a")
    assert rates.take("a", 0.0)
    rates.give_back("a")
    rates.give_back("a")
    assert [rates.take("a", 0.0) for _ in range(2)] == [True, False]
