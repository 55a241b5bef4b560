from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm
from statsmodels.stats.multitest import multipletests

from bench.stats.multiple import holm


@given(st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.01, 0.05, 1.0]), min_size=1, max_size=8))
def test_adjusted_p_values_are_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1], abs=1e-12)


def test_one_test_is_left_as_it_is_and_none_gives_none() -> None:
    assert holm([0.03]).tolist() == [0.03]
    assert holm([]).tolist() == []


@pytest.mark.parametrize("broken", [float("nan"), -0.1, 1.5])
def test_what_is_no_probability_is_refused(broken: float) -> None:
    with pytest.raises(ValueError, match="no probabilities"):
        holm([0.2, broken])


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_any_false_alarm_among_three_comes_at_most_with_alpha(correlation: float) -> None:
    rng, num_trials = np.random.default_rng(5), 4000
    shared, own = rng.normal(size=(num_trials, 1)), rng.normal(size=(num_trials, 3))
    p_values = norm.sf(np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own)
    num_alarms = sum(bool((holm(row) <= 0.05).any()) for row in p_values)
    assert num_alarms <= binom.ppf(0.999, num_trials, 0.05)
