from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import xlogy
from scipy.stats import binom, norm
from statsmodels.stats.contingency_tables import mcnemar

from bench.stats.proportions import (
    PairedCounts,
    bound_drop,
    mcnemar_p_value,
    noninferiority_p_value,
    required_pairs,
    score_interval,
    smallest_margin,
)


def counts(num_lost: int, num_gained: int, num_pairs: int) -> PairedCounts:
    return PairedCounts(num_lost=num_lost, num_gained=num_gained, num_pairs=num_pairs)


@pytest.mark.parametrize(
    ("num_lost", "num_gained", "num_pairs"), [(12, 2, 50), (1, 0, 30), (3, 9, 200), (20, 22, 1300)]
)
def test_score_bounds_are_where_the_score_test_of_the_likelihood_turns(
    num_lost: int, num_gained: int, num_pairs: int
) -> None:
    """The restricted rate is found by maximizing the trinomial likelihood instead of by the formula."""
    z = norm.ppf(0.975)
    num_agree = num_pairs - num_lost - num_gained
    for drop, expected in zip(score_interval(counts(num_lost, num_gained, num_pairs), 0.975), (z, -z), strict=True):

        def cost(gained_rate: float, drop: float = drop) -> float:
            rates = gained_rate + drop, gained_rate, 1 - 2 * gained_rate - drop
            return -float(sum(xlogy(*pair) for pair in zip((num_lost, num_gained, num_agree), rates, strict=True)))

        limits = max(0.0, -drop) + 1e-12, (1 - drop) / 2 - 1e-12
        rate = minimize_scalar(cost, bounds=limits, method="bounded", options={"xatol": 1e-12}).x
        error = math.sqrt(num_pairs * (2 * rate + drop * (1 - drop)))
        assert (num_lost - num_gained - num_pairs * drop) / error == pytest.approx(expected, abs=1e-3)


def test_score_interval_without_disagreement_has_its_closed_form() -> None:
    z_squared = norm.ppf(0.975) ** 2
    half = z_squared / (50 + z_squared)
    assert score_interval(counts(0, 0, 50), 0.975) == pytest.approx((-half, half), abs=1e-9)


@pytest.mark.parametrize(("num_lost", "num_gained"), [(0, 0), (3, 0), (8, 1), (20, 22), (60, 31)])
def test_mcnemar_is_statsmodels(num_lost: int, num_gained: int) -> None:
    expected = mcnemar([[50, num_lost], [num_gained, 50]], exact=True).pvalue
    assert mcnemar_p_value(num_lost, num_gained) == pytest.approx(expected, abs=1e-12)


def test_no_disagreement_needs_the_rule_of_three() -> None:
    assert noninferiority_p_value(counts(0, 0, 299), 0.01) <= 0.05
    assert noninferiority_p_value(counts(0, 0, 298), 0.01) > 0.05
    assert required_pairs(0.01, 0.0, confidence=0.95) == 299


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 25), st.integers(0, 25), st.integers(60, 2000))
def test_bounds_enclose_the_observed_drop_and_mirror(num_lost: int, num_gained: int, num_pairs: int) -> None:
    given_counts = counts(num_lost, num_gained, num_pairs)
    lower, upper = bound_drop(given_counts, 0.95)
    assert lower <= given_counts.drop <= upper
    assert bound_drop(given_counts.swapped(), 0.95) == pytest.approx((-upper, -lower), abs=1e-9)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 25), st.integers(0, 25), st.integers(60, 2000))
def test_exact_bound_is_where_the_test_turns(num_lost: int, num_gained: int, num_pairs: int) -> None:
    given_counts = counts(num_lost, num_gained, num_pairs)
    upper = bound_drop(given_counts, 0.95)[1]
    width = upper - given_counts.drop
    assert noninferiority_p_value(given_counts, upper) <= 0.05
    assert noninferiority_p_value(given_counts, upper - 0.02 * width) > 0.05


@pytest.mark.parametrize(("num_lost", "num_gained", "num_pairs"), [(230, 200, 5000), (500, 480, 10_000)])
def test_score_bound_is_exact_enough_where_it_is_used(num_lost: int, num_gained: int, num_pairs: int) -> None:
    given_counts = counts(num_lost, num_gained, num_pairs)
    upper = bound_drop(given_counts, 0.95)[1]
    assert noninferiority_p_value(given_counts, upper) == pytest.approx(0.05, abs=0.002)


@pytest.mark.parametrize(("num_pairs", "gained_rate"), [(300, 0.0), (400, 0.005), (1300, 0.01)])
def test_a_model_worse_by_the_margin_passes_at_most_with_alpha(num_pairs: int, gained_rate: float) -> None:
    """2,000 trials at the margin: the false-PASS rate."""
    margin, alpha, num_trials = 0.01, 0.05, 2000
    rates = [gained_rate + margin, gained_rate, 1 - 2 * gained_rate - margin]
    draws, times = np.unique(
        np.random.default_rng(3).multinomial(num_pairs, rates, size=num_trials), axis=0, return_counts=True
    )
    num_passed = sum(
        int(number) * (noninferiority_p_value(counts(int(b), int(c), num_pairs), margin) <= alpha)
        for (b, c, _), number in zip(draws, times, strict=True)
    )
    assert num_passed <= binom.ppf(0.999, num_trials, alpha)


@pytest.mark.parametrize("discordance", [0.01, 0.03])
def test_required_pairs_give_about_the_power_they_promise(discordance: float) -> None:
    num_pairs = required_pairs(0.01, discordance, confidence=0.95, power=0.8)
    assert num_pairs is not None
    rates = [discordance / 2, discordance / 2, 1 - discordance]
    draws = np.random.default_rng(4).multinomial(num_pairs, rates, size=300)
    passed = [noninferiority_p_value(counts(int(b), int(c), num_pairs), 0.01) <= 0.05 for b, c, _ in draws]
    assert np.mean(passed) == pytest.approx(0.8, abs=0.1)


@given(st.integers(50, 20_000), st.floats(0, 0.3))
def test_smallest_margin_inverts_required_pairs(num_pairs: int, discordance: float) -> None:
    margin = smallest_margin(num_pairs, discordance, confidence=0.95)
    needed = required_pairs(margin, discordance, confidence=0.95)
    assert needed is not None
    assert needed <= num_pairs
    harder = required_pairs(margin * 0.98, discordance, confidence=0.95)
    assert harder is None or harder >= num_pairs * 0.99


def test_a_drop_equal_to_the_margin_needs_endless_examples() -> None:
    assert required_pairs(0.01, 0.03, confidence=0.95, drop=0.01) is None


def test_a_clear_loss_is_bounded_from_below() -> None:
    lower, _ = bound_drop(counts(44, 0, 50), 0.95)
    assert lower > 0.7
    assert math.isfinite(lower)
