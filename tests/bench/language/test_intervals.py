from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.language.intervals import bound_mean, clustered_share, token_error
from bench.stats.binomial import clopper_pearson


def moody(rng: np.random.Generator, num_windows: int) -> NDArray[np.float64]:
    """Skewed figures with a mean of 1, whose windows differ in scale as texts do; neighbours are a little alike."""
    moods = rng.normal(size=num_windows)
    for index in range(1, num_windows):
        moods[index] = 0.2 * moods[index - 1] + math.sqrt(1 - 0.2**2) * moods[index]
    scales = np.exp(0.35 * moods - 0.35**2 / 2)
    return np.asarray(scales[:, None] * np.exp(rng.normal(size=(num_windows, 60)) - 0.5))


@pytest.mark.parametrize("num_windows", [10, 40])
def test_bounds_over_windows_hold_where_those_over_tokens_do_not(num_windows: int) -> None:
    rng, num_runs = np.random.default_rng(0), 300
    num_above = num_below = num_naive = 0
    for _ in range(num_runs):
        values = moody(rng, num_windows)
        bounds = bound_mean(values, confidence=0.95)
        assert bounds is not None
        num_above += bounds.lower > 1
        num_below += bounds.upper < 1
        num_naive += values.mean() + 1.645 * token_error(values) < 1
    assert num_above <= 0.08 * num_runs
    assert num_below <= 0.1 * num_runs
    assert num_naive > 0.15 * num_runs


def test_bounds_of_a_share_hold_where_windows_differ() -> None:
    rng, num_runs = np.random.default_rng(0), 400
    num_above = num_below = num_naive = 0
    for _ in range(num_runs):
        rates = 0.14 * np.exp(0.4 * rng.normal(size=12) - 0.4**2 / 2)
        happened = rng.random((12, 255)) < rates[:, None]
        bounds = clustered_share(happened, confidence=0.95)
        assert bounds is not None
        num_above += bounds.lower > 0.14
        num_below += bounds.upper < 0.14
        num_naive += clopper_pearson(int(happened.sum()), happened.size, 0.9)[1] < 0.14
    assert num_above <= 0.08 * num_runs
    assert num_below <= 0.1 * num_runs
    assert num_naive > 0.15 * num_runs


def test_no_change_among_many_tokens_bounds_the_share_but_not_at_nothing() -> None:
    none, every = np.zeros((10, 255), dtype=bool), np.ones((10, 255), dtype=bool)
    bounds, opposite = clustered_share(none, confidence=0.95), clustered_share(every, confidence=0.95)
    assert bounds is not None
    assert opposite is not None
    assert bounds.lower == 0
    assert bounds.upper == pytest.approx(1 - 0.05 ** (1 / 10))
    assert opposite.lower == pytest.approx(1 - bounds.upper)


def test_a_change_that_few_windows_have_in_full_is_not_excluded_by_windows_without() -> None:
    rng, num_runs = np.random.default_rng(0), 400
    num_below = 0
    for _ in range(num_runs):
        happened = np.repeat(rng.random((12, 1)) < 0.02, 255, axis=1)
        bounds = clustered_share(happened, confidence=0.95)
        assert bounds is not None
        num_below += bounds.upper < 0.02
    assert num_below <= 0.05 * num_runs


def test_equal_windows_have_no_spread_and_few_have_no_bounds() -> None:
    same = bound_mean(np.full((10, 5), 0.25), confidence=0.95)
    assert same is not None
    assert same.lower == pytest.approx(0.25)
    assert same.upper == pytest.approx(0.25)
    assert bound_mean(np.ones((7, 5)), confidence=0.95) is None
    assert clustered_share(np.ones((7, 5), dtype=bool), confidence=0.95) is None


def test_the_same_values_give_the_same_bounds() -> None:
    values = moody(np.random.default_rng(3), 20)
    assert bound_mean(values, confidence=0.9) == bound_mean(values, confidence=0.9)
