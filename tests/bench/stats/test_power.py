from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from statsmodels.stats.power import TTestPower

from bench.stats.percentiles import bound_percentile
from bench.stats.power import (
    largest_slow_rate,
    required_mean_pairs,
    required_ratio_pairs,
    required_requests,
    smallest_mean_difference,
    smallest_ratio,
)


@pytest.mark.parametrize("effect", [0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize(("confidence", "power"), [(0.95, 0.8), (0.99, 0.9), (0.9, 0.5)])
def test_required_pairs_are_statsmodels_within_one(effect: float, confidence: float, power: float) -> None:
    exact = TTestPower().solve_power(effect_size=effect, alpha=1 - confidence, power=power, alternative="larger")
    assert required_mean_pairs(effect, 1.0, confidence=confidence, power=power) == pytest.approx(
        math.ceil(exact), abs=1
    )


@pytest.mark.parametrize("num_pairs", [10, 40, 1000])
@pytest.mark.parametrize(("confidence", "power"), [(0.95, 0.8), (0.99, 0.9)])
def test_the_detectable_difference_is_statsmodels(num_pairs: int, confidence: float, power: float) -> None:
    exact = TTestPower().solve_power(nobs=num_pairs, alpha=1 - confidence, power=power, alternative="larger")
    found = smallest_mean_difference(num_pairs, 3.0, confidence=confidence, power=power)
    assert found == pytest.approx(3 * exact, rel=0.03 if num_pairs == 10 else 0.003)
    assert found > 0.98 * 3 * exact


@given(st.floats(1.001, 3), st.floats(0.001, 0.5))
def test_the_smallest_ratio_inverts_the_required_pairs(ratio: float, log_spread: float) -> None:
    num_pairs = required_ratio_pairs(ratio, log_spread, confidence=0.95)
    assert required_ratio_pairs(1 / ratio, log_spread, confidence=0.95) == num_pairs
    if num_pairs > 2:
        assert smallest_ratio(num_pairs, log_spread, confidence=0.95) <= ratio * (1 + 1e-9)
        assert smallest_ratio(num_pairs - 1, log_spread, confidence=0.95) > ratio * (1 - 1e-9)


def test_one_pair_shows_no_difference() -> None:
    assert smallest_mean_difference(1, 0.1, confidence=0.95) == math.inf
    assert smallest_ratio(1, 0.1, confidence=0.95) == math.inf
    with pytest.raises(ValueError, match="distance of 0"):
        required_mean_pairs(0.0, 1.0, confidence=0.95)


@pytest.mark.parametrize(("percentile", "slow_rate"), [(99, 0.001), (99, 0.004), (90, 0.05), (99.9, 0.0)])
def test_required_requests_certify_with_the_power_and_fewer_do_not(percentile: float, slow_rate: float) -> None:
    needed = required_requests(percentile, slow_rate, confidence=0.95)
    assert needed is not None

    def power(n: int) -> float:
        slow = np.arange(n + 1)
        return float(binom.pmf(slow, n, slow_rate)[binom.cdf(slow, n, 1 - percentile / 100) <= 0.05].sum())

    assert power(needed) >= 0.8
    assert max(power(n) for n in range(max(1, needed - 60), needed)) < 0.8


def test_a_limit_that_is_not_kept_is_certified_by_no_number() -> None:
    assert required_requests(99, 0.01, confidence=0.95) is None
    assert required_requests(99, 0.0099999, confidence=0.95) is None


def test_dependent_requests_are_needed_in_proportion() -> None:
    assert required_requests(99, 0.0, confidence=0.99, inflation=10) == 4590
    assert bound_percentile(np.ones(4590), 99, 0.99, 10).upper == 1
    assert bound_percentile(np.ones(4589), 99, 0.99, 10).upper is None


@settings(max_examples=30, deadline=None)
@given(st.integers(100, 5000), st.sampled_from([90.0, 99.0]))
def test_the_largest_slow_rate_is_certified_with_the_power(n: int, percentile: float) -> None:
    rate = largest_slow_rate(n, percentile, confidence=0.95)
    slow = np.arange(n + 1)
    certifying = binom.cdf(slow, n, 1 - percentile / 100) <= 0.05
    if rate is None:
        assert not certifying.any()
    else:
        assert binom.pmf(slow, n, rate)[certifying].sum() == pytest.approx(0.8, abs=1e-6)
