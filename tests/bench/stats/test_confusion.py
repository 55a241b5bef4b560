from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.stats.confusion import CLASS_METRICS, class_statistic
from bench.stats.resampling import bootstrap_counts, paired_bootstrap
from edgesmith.tasks import Example, get_task


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40),
    st.sampled_from([*CLASS_METRICS]),
)
def test_counts_give_the_tasks_own_metric(rows: list[tuple[int, int]], metric: str) -> None:
    counts = np.zeros((1, 4, 4))
    for target, answer in rows:
        counts[0, target, answer] += 1
    compute = get_task("text-classification").metrics[metric].compute
    expected = compute([{"index": answer} for _, answer in rows], [Example("", None, target) for target, _ in rows])
    assert CLASS_METRICS[metric](counts)[0] == pytest.approx(expected, abs=1e-12)


def test_the_difference_of_two_models_is_that_of_their_metrics() -> None:
    rng = np.random.default_rng(0)
    targets, ours, theirs = rng.integers(0, 5, (3, 300))
    compute = get_task("text-classification").metrics["f1_macro"].compute
    examples = [Example("", None, int(target)) for target in targets]
    f1 = [compute([{"index": int(answer)} for answer in answers], examples) for answers in (ours, theirs)]
    counts, statistic = class_statistic("f1_macro", targets, (ours, theirs), lambda values: values[1] - values[0])
    assert statistic(counts[None].astype(np.float64))[0] == pytest.approx(f1[1] - f1[0], abs=1e-12)
    assert counts.sum() == 300


def test_drawing_counts_is_drawing_examples() -> None:
    kinds = np.random.default_rng(1).integers(0, 3, 200)
    weights = np.array([0.0, 1.0, -2.0])
    by_counts = bootstrap_counts(
        lambda counts: counts @ weights / 200, np.bincount(kinds), confidence=0.95, num_resamples=20_000
    )
    by_examples = paired_bootstrap(
        lambda indices: float(weights[kinds[indices]].mean()), 200, confidence=0.95, num_resamples=20_000
    )
    assert by_counts.estimate == pytest.approx(by_examples.estimate)
    assert by_counts.lower == pytest.approx(by_examples.lower, abs=0.01)
    assert by_counts.upper == pytest.approx(by_examples.upper, abs=0.01)
