from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, bootstrap, trim_mean

from bench.stats.resampling import block_bootstrap_ratio, bootstrap_mean, paired_bootstrap, trimmed_mean


def test_trimmed_mean_is_scipys() -> None:
    values = np.random.default_rng(0).lognormal(size=(3, 41))
    assert trimmed_mean(values, 0.2) == pytest.approx(trim_mean(values, 0.2, axis=1))


def test_paired_bootstrap_agrees_with_scipys_percentile_interval() -> None:
    """A fifth of the risk is kept in reserve: 4 % a side instead of 5."""
    values = np.random.default_rng(0).normal(0.3, 1, size=400)
    ours = paired_bootstrap(lambda indices: float(values[indices].mean()), 400, confidence=0.95, num_resamples=4000)
    theirs = bootstrap((values,), np.mean, confidence_level=0.92, method="percentile", n_resamples=4000, rng=0)
    assert ours.lower == pytest.approx(theirs.confidence_interval.low, abs=0.01)
    assert ours.upper == pytest.approx(theirs.confidence_interval.high, abs=0.01)
    assert ours.estimate == pytest.approx(values.mean())


def test_the_same_seed_gives_the_same_bounds() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap_mean(values, confidence=0.95) == bootstrap_mean(values, confidence=0.95)
    assert bootstrap_mean(values, confidence=0.95) != bootstrap_mean(values, confidence=0.95, seed=1)


@pytest.mark.parametrize("num_values", [400, 1300])
def test_a_mean_loss_at_the_margin_passes_about_with_alpha(num_values: int) -> None:
    """Rare large losses, the shape that the plain percentile interval gets wrong."""
    rng, num_trials = np.random.default_rng(1), 400
    num_passed = 0
    for trial in range(num_trials):
        losses = rng.normal(0, 0.005, num_values) + (rng.random(num_values) < 0.02) * 0.5
        num_passed += bootstrap_mean(losses, confidence=0.95, seed=trial, num_resamples=500).upper <= 0.01
    assert num_passed <= binom.ppf(0.999, num_trials, 0.05)


@pytest.mark.parametrize("correlation", [0.0, 0.3])
def test_an_equal_engine_is_called_faster_at_most_about_with_alpha(correlation: float) -> None:
    """Autocorrelated noise of 5 % a turn: neither engine is faster."""
    rng, num_trials, num_pairs = np.random.default_rng(2), 400, 40
    num_faster = 0
    for trial in range(num_trials):
        noise = rng.normal(0, 0.05, num_pairs + 20)
        for index in range(1, len(noise)):
            noise[index] += correlation * noise[index - 1]
        bounds = block_bootstrap_ratio(
            np.exp(noise[20:]), np.ones(num_pairs), confidence=0.95, seed=trial, num_resamples=800
        )
        num_faster += bounds.lower > 1
    assert num_faster <= binom.ppf(0.999, num_trials, 0.06)


def test_a_burst_of_noise_does_not_decide_the_ratio() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(20, 0.2, 50), rng.normal(10, 0.1, 50)
    first[10:14] *= 8
    bounds = block_bootstrap_ratio(first, second, confidence=0.95)
    assert bounds.lower < 2 < bounds.upper
    assert bounds.upper - bounds.lower < 0.1


def test_equal_values_have_no_spread() -> None:
    bounds = bootstrap_mean(np.zeros(10), confidence=0.95)
    assert (bounds.lower, bounds.estimate, bounds.upper) == (0, 0, 0)
