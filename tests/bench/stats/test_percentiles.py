from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom, norm, t

from bench.stats.binomial import binomial_cdf, clopper_pearson, normal_quantile, t_quantile
from bench.stats.percentiles import bound_percentile, required_samples


@pytest.mark.parametrize(
    ("percentile", "num_slow", "num_required"),
    [
        (99, 0, 459),
        (99, 1, 662),
        (99, 2, 838),
        (99, 5, 1307),
        (99, 10, 2010),
        (90, 0, 44),
        (90, 1, 64),
        (99.9, 0, 4603),
        (99.9, 1, 6636),
    ],
)
def test_required_samples_match_the_published_table(percentile: float, num_slow: int, num_required: int) -> None:
    assert required_samples(percentile, 0.99, num_slow) == num_required


@given(st.integers(1, 3000), st.floats(0, 1), st.floats(0.001, 0.999))
def test_binomial_cdf_is_scipys(n: int, share: float, probability: float) -> None:
    k = int(share * n)
    assert binomial_cdf(k, n, probability) == pytest.approx(binom.cdf(k, n, probability), abs=1e-9)


@given(st.integers(1, 2000), st.floats(0, 1))
def test_clopper_pearson_is_the_beta_quantile(n: int, share: float) -> None:
    k = int(share * n)
    lower, upper = clopper_pearson(k, n, 0.95)
    assert lower == pytest.approx(0 if k == 0 else beta.ppf(0.025, k, n - k + 1), abs=1e-8)
    assert upper == pytest.approx(1 if k == n else beta.ppf(0.975, k + 1, n - k), abs=1e-8)


@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 9.5, 30, 1e4])
@pytest.mark.parametrize("probability", [0.01, 0.5, 0.9, 0.95, 0.99, 0.9999])
def test_t_quantile_is_scipys(probability: float, degrees: float) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(t.ppf(probability, degrees), rel=1e-8, abs=1e-12)
    assert normal_quantile(probability) == pytest.approx(norm.ppf(probability), abs=1e-12)


@pytest.mark.parametrize(("probability", "degrees"), [(0.0, 3), (1.0, 3), (0.9, 0)])
def test_t_quantile_refuses_what_has_none(probability: float, degrees: float) -> None:
    with pytest.raises(ValueError, match="no quantile"):
        t_quantile(probability, degrees)


@given(st.integers(1, 4000), st.sampled_from([50.0, 90.0, 99.0]), st.sampled_from([0.9, 0.95, 0.99]))
def test_bounds_are_the_tightest_order_statistics_that_hold(n: int, percentile: float, confidence: float) -> None:
    bounds = bound_percentile(np.arange(1, n + 1), percentile, confidence)
    q = percentile / 100
    if bounds.upper is None:
        assert n < bounds.num_required
        assert binom.cdf(n - 1, n, q) < confidence
        assert bounds.estimate is None
    else:
        rank = int(bounds.upper)
        assert binom.cdf(rank - 1, n, q) >= confidence - 1e-9
        assert binom.cdf(rank - 2, n, q) < confidence + 1e-9
    if bounds.lower is None:
        assert binom.sf(0, n, q) < confidence + 1e-9
    else:
        rank = int(bounds.lower)
        assert binom.sf(rank - 1, n, q) >= confidence - 1e-9
        assert binom.sf(rank, n, q) < confidence + 1e-9


def test_twenty_samples_support_no_p99() -> None:
    bounds = bound_percentile(np.ones(20), 99, 0.99)
    assert bounds.upper is None
    assert bounds.estimate is None
    assert bounds.num_required == 459


def test_upper_bound_is_below_the_true_percentile_no_more_often_than_promised() -> None:
    rng = np.random.default_rng(1)
    truth, num_trials = float(np.exp(norm.ppf(0.9))), 2000
    misses = sum(
        (bound_percentile(rng.lognormal(size=200), 90, 0.95).upper or np.inf) < truth for _ in range(num_trials)
    )
    assert misses <= binom.ppf(0.999, num_trials, 0.05)


@given(st.integers(1, 4000), st.floats(1, 50), st.sampled_from([50.0, 90.0, 99.0]))
def test_dependence_only_widens_the_bounds_and_leaves_the_estimate(n: int, inflation: float, percentile: float) -> None:
    samples = np.arange(1, n + 1)
    plain, discounted = (
        bound_percentile(samples, percentile, 0.95),
        bound_percentile(samples, percentile, 0.95, inflation),
    )
    assert discounted.estimate == plain.estimate
    assert discounted.upper is None or (plain.upper is not None and discounted.upper >= plain.upper)
    assert discounted.lower is None or (plain.lower is not None and discounted.lower <= plain.lower)
    assert (discounted.upper is not None) == (n >= discounted.num_required)


def test_failures_count_as_over_every_limit() -> None:
    samples = np.concatenate([np.ones(970), np.full(30, np.inf)])
    bounds = bound_percentile(samples, 99, 0.95)
    assert (bounds.estimate, bounds.lower, bounds.upper) == (np.inf, np.inf, np.inf)
    assert bound_percentile(samples, 90, 0.95).upper == 1


def test_a_sample_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        bound_percentile([1.0, np.nan], 50, 0.9)
    with pytest.raises(ValueError, match="below 1"):
        bound_percentile([1.0, 2.0], 50, 0.9, 0.5)
