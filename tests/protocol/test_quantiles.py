"""protocol/quantiles.py against closed forms: the binomial sum for whole parameters, powers where one of them is 1."""

from __future__ import annotations

import math

import pytest

from protocol.quantiles import beta_cumulative, beta_quantile

WHOLE = (1, 2, 3, 7, 30, 100)
SHARES = (0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)


def binomial_tail(x: float, a: int, b: int) -> float:
    """The same probability as a sum: at least a successes in a + b - 1 trials (DLMF 8.17.5)."""
    n = a + b - 1
    return sum(math.comb(n, j) * x**j * (1 - x) ** (n - j) for j in range(a, n + 1))


@pytest.mark.parametrize("a", WHOLE)
@pytest.mark.parametrize("b", WHOLE)
def test_it_is_the_binomial_tail(a: int, b: int) -> None:
    for x in SHARES:
        assert beta_cumulative(x, a, b) == pytest.approx(binomial_tail(x, a, b), abs=1e-12)


def test_the_ends() -> None:
    assert beta_cumulative(0.0, 2.5, 3.5) == 0
    assert beta_cumulative(1.0, 2.5, 3.5) == 1
    assert beta_cumulative(0.5, 4.2, 4.2) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.95])
def test_quantiles_of_powers(probability: float) -> None:
    for n in (1, 1.5, 10, 201, 1000):
        assert beta_quantile(probability, n, 1) == pytest.approx(probability ** (1 / n), abs=1e-9)
        assert beta_quantile(probability, 1, n) == pytest.approx(1 - (1 - probability) ** (1 / n), abs=1e-9)


def test_quantile_and_probability_are_inverse() -> None:
    for a in (1, 1.125, 3.7, 40, 201, 1000):
        for b in (1, 1.125, 3.7, 40, 201, 1000):
            for probability in (0.05, 0.3, 0.95):
                x = beta_quantile(probability, a, b)
                assert beta_cumulative(x, a, b) == pytest.approx(probability, abs=1e-8)
