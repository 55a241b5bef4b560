from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from bench.accuracy import Evaluation
from bench.gates.accuracy import judge_accuracy
from bench.gates.unseen import Unseen
from edgesmith.gates import AccuracyGate
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


def tagged(entities: list[tuple[int, int]]) -> Evaluation:
    """Rows with so many right entities, of which so many are found."""
    evaluation, _ = built.rare_pair([0] * len(entities), [False] * len(entities))
    spans = [[[2 * word, 2 * word + 1, "X"] for word in range(right)] for right, _ in entities]
    predictions = [
        {
            "entities": [{"start": start, "end": end, "label": kind} for start, end, kind in row[:found]],
            "words": [[2 * word, 2 * word + 1, "B-X" if word < found else "O"] for word in range(12)],
        }
        for row, (_, found) in zip(spans, entities, strict=True)
    ]
    targets = tuple(json.dumps(row) for row in spans)
    metrics = {"entity_f1": 0.0, "token_accuracy": 0.0}
    return replace(
        evaluation,
        task="token-classification",
        metrics=metrics,
        default_metric="entity_f1",
        higher_is_better=dict.fromkeys(metrics, True),
        labels=(),
        targets=targets,
        predictions=tuple(predictions),
        scores={},
    )


def metric_of(metric: str, evaluation: Evaluation) -> float:
    examples = [Example("", target=target) for target in evaluation.targets]
    return get_task("token-classification").metrics[metric].compute(evaluation.predictions, examples)


ENTITIES = [(1, 1)] * 200 + [(0, 0)] * 80 + [(3, 2)] * 60 + [(6, 6)] * 5


@pytest.mark.parametrize("metric", ["entity_f1", "token_accuracy"])
def test_three_rows_whose_entities_are_all_lost_cost_no_more_than_the_bound(metric: str) -> None:
    bound = Unseen.of(tagged(ENTITIES), metric).bound(0.95)
    lost = metric_of(metric, tagged(ENTITIES)) - metric_of(metric, tagged([*ENTITIES[:-3], *[(6, 0)] * 3]))
    assert 0 < lost <= bound
    assert bound < 0.13  # 3 rows of 345, the largest with 12 of the 2 × 410 that are counted


def test_rows_without_entities_hide_as_much_as_rows_of_one() -> None:
    assert Unseen.of(tagged([(0, 0)] * 100), "entity_f1").weight == 1.0


def test_entities_are_judged_as_their_own_metric_says() -> None:
    baseline = tagged([(2, 2)] * 300)
    same, worse = (tagged([*[(2, 1)] * num, *[(2, 2)] * (300 - num)]) for num in (3, 150))
    for artifact, outcome in ((same, "PASS"), (worse, "FAIL")):
        pair = [
            replace(one, metrics={name: metric_of(name, one) for name in one.metrics}) for one in (artifact, baseline)
        ]
        [verdict] = judge_accuracy([AccuracyGate(metric="entity_f1", max_drop=0.05)], *pair)
        assert verdict.verdict.value == outcome
        assert verdict.estimate == pytest.approx(pair[1].metrics["entity_f1"] - pair[0].metrics["entity_f1"])
