from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.gates.judge import Outcome, Verdict, judge
from bench.gates.tripwires import mean_divergences
from bench.stats.binomial import clopper_pearson
from edgesmith.errors import ArtifactError, UsageError
from edgesmith.gates import DivergenceGate, FlipsGate, Gates
from tests.bench import evidence_built as built


def judge_flips(num_changed: int, num_examples: int, max_rate: float) -> Verdict:
    ours, theirs = built.pair(num_examples, num_changed // 2, num_changed - num_changed // 2)
    gates = Gates(flips=FlipsGate(max_rate=max_rate))
    return judge(gates, built.evidence(evaluation=ours, baseline_evaluation=theirs))[0]


def test_flips_are_held_against_the_exact_binomial_bound() -> None:
    lower, upper = clopper_pearson(20, 1000, 0.9)
    assert judge_flips(20, 1000, upper + 1e-6).verdict is Outcome.PASS
    assert judge_flips(20, 1000, upper - 1e-6).verdict is Outcome.INCONCLUSIVE
    assert judge_flips(20, 1000, lower + 1e-6).verdict is Outcome.INCONCLUSIVE
    assert judge_flips(20, 1000, lower - 1e-6).verdict is Outcome.FAIL


def test_an_equal_accuracy_hides_no_flips() -> None:
    verdict = judge_flips(100, 1000, 0.02)
    assert verdict.verdict is Outcome.FAIL
    assert verdict.estimate == pytest.approx(0.1)
    assert "100 of 1,000 examples got another answer" in verdict.reason


def test_no_flips_in_few_examples_prove_little() -> None:
    verdict = judge_flips(0, 100, 0.01)
    assert verdict.verdict is Outcome.INCONCLUSIVE
    assert verdict.num_needed == 299
    assert judge_flips(0, 299, 0.01).verdict is Outcome.PASS


def judge_kl(ours: list[list[float]], theirs: list[list[float]], limit: float) -> Verdict:
    parts = {
        "evaluation": built.probabilities(ours),
        "baseline_evaluation": built.probabilities(theirs, of="fp32"),
    }
    return judge(Gates(divergence=DivergenceGate(max_mean_kld=limit)), built.evidence(**parts))[0]


def rows(shift: float, num: int = 500) -> tuple[list[list[float]], list[list[float]]]:
    """Probabilities whose log odds are shifted by about `shift`."""
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 2, num)

    def of(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[list[float]]:
        first = 1 / (1 + np.exp(-values))
        return [[float(p), float(1 - p)] for p in first]

    return of(odds + shift * rng.normal(1, 0.3, num)), of(odds)


def test_divergence_is_the_mean_kl_from_the_baseline_in_nats() -> None:
    ours, theirs = built.probabilities([[0.5, 0.5], [0.9, 0.1]]), built.probabilities([[0.8, 0.2], [0.9, 0.1]])
    expected = 0.8 * np.log(0.8 / 0.5) + 0.2 * np.log(0.2 / 0.5)
    assert mean_divergences(ours, theirs) == pytest.approx([expected, 0.0])


def test_divergence_has_three_outcomes() -> None:
    near = rows(0.1)
    estimate = judge_kl(*near, 0.5).estimate
    assert estimate is not None
    passed, failed = judge_kl(*near, 0.02), judge_kl(*rows(1.0), 0.02)
    assert passed.verdict is Outcome.PASS
    assert failed.verdict is Outcome.FAIL
    assert passed.bound is not None
    assert passed.bound > estimate
    assert judge_kl(*near, estimate).verdict is Outcome.INCONCLUSIVE
    few = judge_kl(*rows(0.1, num=100), 0.01)
    assert few.verdict is Outcome.INCONCLUSIVE
    assert few.num_needed == 299
    assert judge_kl(*rows(0.1, num=1), 0.5).verdict is Outcome.INCONCLUSIVE
    same = rows(0.0)
    assert judge_kl(same[1], same[1], 0.02).verdict is Outcome.PASS


def test_a_probability_of_nothing_diverges_by_much_but_not_infinitely() -> None:
    verdict = judge_kl([[0.0, 1.0]] * 400, [[1.0, 0.0]] * 400, 1.0)
    assert verdict.verdict is Outcome.FAIL
    assert verdict.estimate is not None
    assert 100 < verdict.estimate < 1000


@pytest.mark.parametrize("broken", [[float("nan"), 0.5], [-0.5, 1.5], [0.2, 0.2], [float("inf"), 0.0]])
def test_what_is_no_probability_is_refused(broken: list[float]) -> None:
    with pytest.raises(ArtifactError, match=r"the artifact's scores for line 3 are no probabilities"):
        judge_kl([[0.5, 0.5], [0.5, 0.5], broken, [0.5, 0.5]], [[0.5, 0.5]] * 4, 1.0)


def test_evaluations_without_probabilities_or_classes_are_named() -> None:
    ours, theirs = built.pair(400, 0, 0)
    both = built.evidence(evaluation=ours, baseline_evaluation=theirs)
    with pytest.raises(UsageError, match="keeps no probability"):
        judge(Gates(divergence=DivergenceGate(max_mean_kld=0.1)), both)
    classless = built.evidence(
        evaluation=replace(ours, task="feature-extraction", labels=(), metrics={"spearman": 0.9, "pearson": 0.9}),
        baseline_evaluation=replace(theirs, task="feature-extraction", labels=()),
    )
    for gates in (Gates(flips=FlipsGate(max_rate=0.1)), Gates(divergence=DivergenceGate(max_mean_kld=0.1))):
        with pytest.raises(UsageError, match="feature-extraction has none: it has pearson, spearman"):
            judge(gates, classless)
    other = replace(theirs, labels=("yes", "no"))
    with pytest.raises(UsageError, match="classes are no, yes, the baseline's yes, no"):
        judge(Gates(flips=FlipsGate(max_rate=0.1)), built.evidence(evaluation=ours, baseline_evaluation=other))
    with pytest.raises(UsageError, match="the flips gate needs an evaluation of the baseline"):
        judge(Gates(flips=FlipsGate(max_rate=0.1)), built.evidence(evaluation=ours))
