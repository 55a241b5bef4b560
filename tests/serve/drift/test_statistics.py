from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from serve.drift.statistics import compare_counts, gamma_tail, holm


@pytest.mark.parametrize("shape", [0.5, 1.0, 4.5, 20.0])
@pytest.mark.parametrize("x", [1e-3, 0.4, 5.0, 30.0, 200.0])
def test_gamma_tail_is_scipys(shape: float, x: float) -> None:
    assert gamma_tail(shape, x) == pytest.approx(stats.gamma.sf(x, shape), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(("num", "size"), [(500, 300), (128, 500), (60, 2000)])
def test_false_alarms_come_as_often_as_is_said(num: int, size: int) -> None:
    """Reference and window are drawn anew each time: the reference's own error is in the threshold."""
    rng = np.random.default_rng(0)
    shares = np.array([0.4, 0.2, 0.15, 0.1, 0.08, 0.04, 0.02, 0.01])
    trials, level = 3000, 0.02
    alarms = 0
    for reference, window in zip(
        rng.multinomial(num, shares, trials), rng.multinomial(size, shares, trials), strict=True
    ):
        found = compare_counts(reference.tolist(), window.tolist(), is_ordered=False, level=level)
        assert (found.statistic >= found.threshold) == (found.p_value <= level)
        alarms += found.p_value <= level
    # 60 are expected; the standard deviation is 7.7.
    assert 30 < alarms < 90


def test_a_small_reference_asks_for_a_larger_difference() -> None:
    window = [150, 100, 50]
    p_values = [
        compare_counts([num, num, num], window, is_ordered=True, level=0.01).p_value for num in (10, 30, 100, 1000)
    ]
    assert p_values == sorted(p_values, reverse=True)
    assert p_values[0] > 0.01 > p_values[-1]


def test_rare_bins_are_joined() -> None:
    reference, window = [500] + [1] * 9, [480] + [2] * 10
    assert compare_counts([*reference, 0], window, is_ordered=True, level=0.01).p_value > 1e-4
    assert compare_counts([5, 0], [3, 1], is_ordered=True, level=0.01).p_value == 1.0


def test_a_sample_without_rows_is_no_alarm() -> None:
    assert compare_counts([10, 10], [0, 0], is_ordered=True, level=0.01).p_value == 1.0


def test_distance_is_the_share_that_is_elsewhere() -> None:
    assert compare_counts([50, 50], [80, 20], is_ordered=True, level=0.01).distance == pytest.approx(0.3)


def test_holm_is_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    p_values = np.random.default_rng(0).random(20) ** 4
    np.testing.assert_allclose(holm(p_values.tolist()), multipletests(p_values, method="holm")[1])
