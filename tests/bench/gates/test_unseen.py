from __future__ import annotations

import math
from dataclasses import replace

import pytest

from bench.accuracy import Evaluation
from bench.gates.unseen import Unseen
from edgesmith.tasks import Example, get_task
from tests.bench import evidence_built as built

METRICS = ("f1_macro", "precision_macro", "recall_macro", "mcc")


def answered(rows: list[tuple[int, int]]) -> Evaluation:
    """Rows of target and answer, of four classes."""
    evaluation, _ = built.rare_pair([target for target, _ in rows], [False] * len(rows))
    predictions = tuple({"label": "abcd"[answer], "index": answer, "score": 0.9} for _, answer in rows)
    return replace(evaluation, predictions=predictions)


def value(metric: str, rows: list[tuple[int, int]]) -> float:
    compute = get_task("text-classification").metrics[metric].compute
    return compute([{"index": answer} for _, answer in rows], [Example("", None, target) for target, _ in rows])


RARE = [(0, 0)] * 300 + [(1, 1)] * 200 + [(2, 2)] * 40 + [(3, 3)] * 10
SELDOM_ANSWERED = [(0, 0)] * 300 + [(1, 1)] * 200 + [(2, 2)] * 90 + [(3, 3)] * 4 + [(3, 0)] * 80


@pytest.mark.parametrize("rows", [RARE, SELDOM_ANSWERED], ids=["rare", "seldom answered"])
@pytest.mark.parametrize("metric", METRICS)
def test_three_rows_that_nobody_saw_cost_no_more_than_the_bound(metric: str, rows: list[tuple[int, int]]) -> None:
    """Any three changed answers stand for −ln(0.05) = 3 rows of the population."""
    bound = Unseen.of(answered(rows), metric).bound(0.95)
    before = value(metric, rows)
    for target in range(4):
        for answer in range(4):
            changed, left = [], 2
            for row in rows:
                is_changed = left > 0 and row == (target, target) and answer != target
                left -= is_changed
                changed.append((target, answer) if is_changed else row)
            assert before - value(metric, changed) <= bound


def test_a_class_that_is_seldom_answered_decides_the_macro_precision() -> None:
    unseen = Unseen.of(answered(SELDOM_ANSWERED), "precision_macro")
    assert unseen.what == "class 'd'"
    assert unseen.bound(0.95) > 3 * -math.log(0.05) / 84 / 4  # as if only the rows of the class counted


@pytest.mark.parametrize("metric", METRICS[:3])
def test_required_rows_are_those_at_which_the_bound_is_the_margin(metric: str) -> None:
    unseen = Unseen.of(answered(RARE), metric)
    needed = unseen.required_rows(0.01, 0.95)
    assert needed is not None
    assert unseen.bound(0.95) * unseen.num_rows / needed <= 0.01 * (1 + 1e-9)
    assert unseen.required_rows(0.0, 0.95) is None
