"""Several limits on accuracy at once, and limits on the metric itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.accuracy import Evaluation
from bench.gates.accuracy import judge_accuracy
from bench.gates.judge import Outcome, Verdict, check_gates, judge
from bench.stats.binomial import clopper_pearson
from edgesmith.errors import ArtifactError, UsageError
from edgesmith.gates import AccuracyGate, DivergenceGate, FlipsGate, Gates
from tests.bench import evidence_built as built


def judge_level(num_right: int, num_examples: int, least: float) -> Verdict:
    right = [True] * num_right + [False] * (num_examples - num_right)
    gates = Gates(accuracy=(AccuracyGate(min=least),))
    return judge(gates, built.evidence(baseline=None, evaluation=built.evaluation(right)))[0]


def test_a_least_accuracy_is_held_against_the_exact_binomial_bound() -> None:
    lower, upper = clopper_pearson(950, 1000, 0.9)
    inside = judge_level(950, 1000, lower - 1e-6)
    assert inside.verdict is Outcome.PASS
    assert inside.bound == pytest.approx(lower, abs=1e-9)
    assert inside.at_least
    assert judge_level(950, 1000, lower + 1e-6).verdict is Outcome.INCONCLUSIVE
    assert judge_level(950, 1000, upper - 1e-6).verdict is Outcome.INCONCLUSIVE
    assert judge_level(950, 1000, upper + 1e-6).verdict is Outcome.FAIL


def test_a_least_accuracy_needs_no_baseline_and_says_how_many_examples_settle_it() -> None:
    verdict = judge_level(50, 50, 0.95)
    assert verdict.verdict is Outcome.INCONCLUSIVE
    assert verdict.num_needed == 59  # 0.95^59 < 5 %
    assert "about 59 would settle it" in verdict.reason
    assert judge_level(58, 58, 0.95).verdict is Outcome.INCONCLUSIVE
    assert judge_level(59, 59, 0.95).verdict is Outcome.PASS


def test_a_resampled_metric_has_a_least_figure_too() -> None:
    targets = [index % 4 for index in range(600)]
    ours, _ = built.rare_pair(targets, [index % 10 == 0 for index in range(600)])
    evidence = built.evidence(evaluation=ours)

    def verdict(least: float) -> Outcome:
        return judge(Gates(accuracy=(AccuracyGate(metric="f1_macro", min=least),)), evidence)[0].verdict

    assert ours.metrics["f1_macro"] == pytest.approx(0.9, abs=0.01)
    assert verdict(0.85) is Outcome.PASS
    assert verdict(0.895) is Outcome.INCONCLUSIVE
    assert verdict(0.95) is Outcome.FAIL


def with_second_metric(
    ours: Evaluation, theirs: Evaluation, second: tuple[list[bool], list[bool]]
) -> dict[str, object]:
    """Evaluations that have `accuracy` and another metric that counts right answers, `exact`."""
    parts = {}
    for name, one, right in (("evaluation", ours, second[0]), ("baseline_evaluation", theirs, second[1])):
        scores = np.array(right, dtype=np.float64)
        parts[name] = replace(
            one,
            metrics=dict(one.metrics) | {"exact": float(scores.mean())},
            higher_is_better={"accuracy": True, "mcc": True, "exact": True},
            scores=dict(one.scores) | {"exact": scores},
        )
    return parts


TWO = Gates(accuracy=(AccuracyGate(metric="accuracy", max_drop=0.01), AccuracyGate(metric="exact", max_drop=0.01)))


def test_several_metrics_pass_when_each_is_shown_alone() -> None:
    ours, theirs = built.pair(1300, 0, 0)
    parts = with_second_metric(ours, theirs, ([True] * 1300, [True] * 1300))
    verdicts = judge(TWO, built.evidence(**parts))
    assert [verdict.gate for verdict in verdicts] == ["accuracy.accuracy", "accuracy.exact"]
    assert {verdict.verdict for verdict in verdicts} == {Outcome.PASS}
    alone = judge(Gates(accuracy=TWO.accuracy[:1]), built.evidence(**parts))[0]
    assert alone.gate == "accuracy"
    assert alone.bound == verdicts[0].bound


def test_a_loss_that_fails_alone_may_not_fail_as_one_of_several() -> None:
    """Holm holds the smaller p-value of two against half the level."""
    gate = AccuracyGate(metric="accuracy", max_drop=0.01)
    at_edge = next(num_lost for num_lost in range(20, 60) if _outcome(gate, num_lost) is Outcome.FAIL)
    ours, theirs = built.pair(1300, at_edge, 0)
    parts = with_second_metric(ours, theirs, ([True] * 1300, [True] * 1300))
    assert judge(Gates(accuracy=(gate,)), built.evidence(**parts))[0].verdict is Outcome.FAIL
    several = judge(TWO, built.evidence(**parts))[0]
    assert several.verdict is Outcome.INCONCLUSIVE
    assert "not after the correction for several limits" in several.reason
    assert "after Holm's correction" in several.reason
    worse_ours, worse_theirs = built.pair(1300, at_edge + 10, 0)
    worse = with_second_metric(worse_ours, worse_theirs, ([True] * 1300, [True] * 1300))
    assert judge(TWO, built.evidence(**worse))[0].verdict is Outcome.FAIL


def _outcome(gate: AccuracyGate, num_lost: int) -> Outcome:
    ours, theirs = built.pair(1300, num_lost, 0)
    return judge_accuracy((gate,), ours, theirs)[0].verdict


def test_a_metric_without_an_exact_p_value_takes_part_in_holm() -> None:
    targets = [index % 4 for index in range(800)]
    rng = np.random.default_rng(3)
    clear = built.rare_pair(targets, (rng.random(800) < 0.2).tolist())
    gates = (
        AccuracyGate(metric="f1_macro", max_drop=0.05),
        AccuracyGate(metric="recall_macro", max_drop=0.05),
        AccuracyGate(metric="mcc", max_drop=0.5),
    )
    found = {verdict.gate: verdict.verdict for verdict in judge_accuracy(gates, *clear)}
    assert found == {
        "accuracy.f1_macro": Outcome.FAIL,
        "accuracy.recall_macro": Outcome.FAIL,
        "accuracy.mcc": Outcome.PASS,
    }


@pytest.mark.slow
def test_equal_models_are_failed_by_any_of_five_metrics_with_at_most_the_level() -> None:
    """Margin 0 and five unrelated metrics on which the models only differ by chance, at 80 % confidence."""
    rng = np.random.default_rng(0)
    names = [f"m{index}" for index in range(5)]
    gates = tuple(AccuracyGate(metric=name, max_drop=0.0, confidence=0.8) for name in names)
    base, other = built.pair(200, 0, 0)
    num_failed, num_runs = 0, 200
    for _ in range(num_runs):
        ours, theirs = (
            replace(
                one,
                metrics=dict.fromkeys(names, 0.9),
                higher_is_better=dict.fromkeys(names, True),
                scores={name: (rng.random(200) < 0.9).astype(np.float64) for name in names},
            )
            for one in (base, other)
        )
        num_failed += any(verdict.verdict is Outcome.FAIL for verdict in judge_accuracy(gates, ours, theirs))
    assert num_failed <= (0.2 + 3 * np.sqrt(0.2 * 0.8 / num_runs)) * num_runs


def test_a_least_figure_where_lower_is_better_is_refused() -> None:
    ours, _ = built.pair(400, 0, 0)
    upside_down = replace(ours, higher_is_better={"accuracy": False, "mcc": True})
    with pytest.raises(UsageError, match=r"lower is better.*\n.*max_drop"):
        judge(Gates(accuracy=(AccuracyGate(min=0.5),)), built.evidence(evaluation=upside_down))


def test_rows_that_differ_are_counted_and_the_first_is_named() -> None:
    ours, theirs = built.pair(400, 0, 0)
    targets = list(theirs.targets)
    targets[7], targets[9] = 1, 1
    other = replace(theirs, data_digest="sha256:other", targets=tuple(targets))
    with pytest.raises(UsageError, match=r"2 of 400 rows differ.*the first is row 8: line 8 labelled 0 .* labelled 1"):
        judge_accuracy((AccuracyGate(max_drop=0.01),), ours, other)
    with pytest.raises(UsageError, match="Lines and labels agree, so the texts differ"):
        judge_accuracy((AccuracyGate(max_drop=0.01),), ours, replace(theirs, data_digest="sha256:other"))
    _, longer = built.pair(410, 0, 0)
    with pytest.raises(UsageError, match="baseline has 10 more, the first on line 401"):
        judge_accuracy((AccuracyGate(max_drop=0.01),), ours, replace(longer, data_digest="sha256:other"))


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_figures_that_are_none_are_refused(broken: float) -> None:
    ours, theirs = built.pair(400, 0, 0)
    gates = (AccuracyGate(max_drop=0.01),)
    scores = ours.scores["accuracy"].copy()
    scores[11] = broken
    with pytest.raises(ArtifactError, match="accuracy of line 12 is"):
        judge_accuracy(gates, replace(ours, scores={"accuracy": scores}), theirs)
    with pytest.raises(ArtifactError, match="accuracy over 400 examples is"):
        judge_accuracy(gates, replace(ours, metrics={"accuracy": broken}), theirs)
    with pytest.raises(ArtifactError, match="accuracy over 400 examples is"):
        judge_accuracy(gates, ours, replace(theirs, metrics={"accuracy": broken}))


def test_what_a_task_cannot_be_judged_by_is_found_before_any_work() -> None:
    check_gates(Gates(accuracy=(AccuracyGate(metric="f1_macro", min=0.5),)), "text-classification")
    with pytest.raises(UsageError, match=r"no metric 'f2'.*\n.*accuracy.*mcc"):
        check_gates(Gates(accuracy=(AccuracyGate(metric="f2", min=0.5),)), "text-classification")
    for gates in (Gates(flips=FlipsGate(max_rate=0.1)), Gates(divergence=DivergenceGate(max_mean_kld=0.1))):
        check_gates(gates, "text-classification")
        with pytest.raises(UsageError, match=r"feature-extraction has none: it has pearson, spearman"):
            check_gates(gates, "feature-extraction")


def test_a_margin_smaller_than_any_count_can_show_is_open() -> None:
    ours, theirs = built.pair(2, 0, 1)
    [verdict] = judge_accuracy((AccuracyGate(max_drop=5e-324),), ours, theirs)
    assert verdict.verdict is Outcome.INCONCLUSIVE
    assert verdict.num_needed is None
