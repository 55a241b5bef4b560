from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgesmith.tasks import scoring

LABELS = st.integers(1, 40).flatmap(
    lambda num: st.tuples(*[arrays(np.int64, num, elements=st.integers(0, 5)) for _ in range(2)])
)


def _counts(targets: np.ndarray, predicted: np.ndarray) -> dict[int, tuple[int, int, int]]:
    """By label: hits, false alarms, misses."""
    labels = sorted({*targets.tolist(), *predicted.tolist()})
    return {
        label: (
            int(((targets == label) & (predicted == label)).sum()),
            int(((targets != label) & (predicted == label)).sum()),
            int(((targets == label) & (predicted != label)).sum()),
        )
        for label in labels
    }


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


@settings(deadline=None)
@given(LABELS)
def test_macro_metrics_equal_their_definitions(pair: tuple[np.ndarray, np.ndarray]) -> None:
    counts = _counts(*pair).values()
    precision = [_ratio(hits, hits + alarms) for hits, alarms, _ in counts]
    recall = [_ratio(hits, hits + misses) for hits, _, misses in counts]
    f1 = [_ratio(2 * hits, 2 * hits + alarms + misses) for hits, alarms, misses in counts]
    assert scoring.precision_macro(*pair) == pytest.approx(np.mean(precision), abs=1e-12)
    assert scoring.recall_macro(*pair) == pytest.approx(np.mean(recall), abs=1e-12)
    assert scoring.f1_macro(*pair) == pytest.approx(np.mean(f1), abs=1e-12)


@settings(deadline=None)
@given(LABELS)
def test_matthews_is_the_correlation_of_one_hot_labels(pair: tuple[np.ndarray, np.ndarray]) -> None:
    one_hot = [np.eye(6)[labels] for labels in pair]
    centred = [matrix - matrix.mean(axis=0) for matrix in one_hot]
    spread = np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    expected = (centred[0] * centred[1]).sum() / spread if spread > 1e-12 else 0.0
    assert scoring.matthews(*pair) == pytest.approx(expected, abs=1e-9)


def test_metrics_equal_scikit_learn() -> None:
    # Made with scikit-learn 1.9.1: average="macro", zero_division=0.
    targets = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 4])
    predicted = np.array([0, 0, 0, 0, 3, 2, 1, 0, 2, 2])
    assert scoring.f1_macro(targets, predicted) == pytest.approx(0.2642857142857143, abs=1e-15)
    assert scoring.precision_macro(targets, predicted) == pytest.approx(0.2533333333333333, abs=1e-15)
    assert scoring.recall_macro(targets, predicted) == pytest.approx(0.3, abs=1e-15)
    assert scoring.matthews(targets, predicted) == pytest.approx(0.31374750995027834, abs=1e-15)


def _scores(seed: int, num: int, *, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=num)
    y = 0.7 * x + rng.normal(size=num)
    return (np.round(x, 1), np.round(y, 0)) if ties else (x, y)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("num", [3, 10, 500])
def test_correlations_equal_scipy(num: int, ties: bool) -> None:
    x, y = _scores(num, num, ties=ties)
    assert scoring.pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic, abs=1e-12)
    assert scoring.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)
    np.testing.assert_array_equal(scoring.rank(x), scipy.stats.rankdata(x))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("terms", "whole"),
    [(scoring.pearson_terms, scoring.pearson), (scoring.spearman_terms, scoring.spearman)],
)
def test_terms_average_to_the_correlation_and_spread_like_the_jackknife(
    terms: Callable[..., np.ndarray], whole: Callable[..., float], ties: bool
) -> None:
    num = 400
    x, y = _scores(1, num, ties=ties)
    parts = terms(x, y)
    assert parts.mean() == pytest.approx(whole(x, y), abs=1e-12)
    keep = ~np.eye(num, dtype=bool)
    left_out = np.array([whole(x[row], y[row]) for row in keep])
    jackknife = np.sqrt((num - 1) * ((left_out - left_out.mean()) ** 2).mean())
    assert parts.std() / np.sqrt(num) == pytest.approx(jackknife, rel=0.05)


@pytest.mark.parametrize("kernel", [scoring.pearson, scoring.spearman])
def test_correlation_with_a_constant_is_zero(kernel: Callable[..., float]) -> None:
    assert kernel(np.ones(5), np.arange(5.0)) == 0.0


def test_terms_of_a_constant_are_finite() -> None:
    for terms in (scoring.pearson_terms, scoring.spearman_terms):
        np.testing.assert_array_equal(terms(np.ones(5), np.arange(5.0)), np.zeros(5))


@settings(deadline=None)
@given(arrays(np.float32, (3, 4), elements=st.floats(-1e4, 1e4, width=32)))
def test_softmax_equals_scipy_and_keeps_its_argument(logits: np.ndarray) -> None:
    before = logits.copy()
    np.testing.assert_allclose(
        scoring.softmax(logits), scipy.special.softmax(logits.astype(np.float64), axis=1), atol=1e-12
    )
    np.testing.assert_array_equal(logits, before)
