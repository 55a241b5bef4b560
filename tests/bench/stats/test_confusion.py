from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.stats.confusion import CLASS_METRICS, class_statistic, losses_per_row
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


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 40), min_size=9, max_size=9).filter(lambda c: sum(c) > 9), st.sampled_from([*CLASS_METRICS])
)
def test_no_changed_answer_costs_a_metric_more_than_its_losses_say(cells: list[int], metric: str) -> None:
    counts = np.array(cells, dtype=np.float64).reshape(3, 3)
    compute, little = CLASS_METRICS[metric], 1e-6
    before, losses = float(compute(counts[None])[0]), losses_per_row(metric, counts)
    for target in range(3):
        for answer in range(3):
            if answer == target or counts[target, target] == 0 or counts[:, answer].sum() + counts[answer].sum() == 0:
                continue
            changed = counts.copy()
            changed[target, target] -= little
            changed[target, answer] += little
            slope = (before - float(compute(changed[None])[0])) / little
            assert slope <= float(losses.max()) + 1e-4 or (metric == "mcc" and (losses == 1).all())


def test_the_smallest_class_decides_when_all_answers_are_right() -> None:
    counts = np.diag([100.0, 50.0, 10.0, 40.0])
    for metric in ("recall_macro", "precision_macro", "f1_macro"):
        assert losses_per_row(metric, counts).argmax() == 2
        assert losses_per_row(metric, counts).max() == pytest.approx(1 / 10 / 4)
    assert losses_per_row("mcc", counts).max() == pytest.approx(1 / 100, rel=0.4)
    with pytest.raises(ValueError, match="accuracy"):
        losses_per_row("accuracy", counts)
