from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bench.accuracy import evaluate
from bench.gates.judge import Evidence, Outcome, Subject, Verdict, judge, overall
from bench.gates.verdict import show
from edgesmith.errors import ArtifactError, UsageError
from edgesmith.gates import AccuracyGate, Gates, LatencyGate, SizeGate, SpeedGate
from serve.runtime import open_engine
from tests.bench import evidence_built as built
from tests.bench.conftest import News

POINT = Gates(accuracy=(AccuracyGate(max_drop=0.01),))


def judge_pair(num_examples: int, num_lost: int, num_gained: int, gates: Gates = POINT) -> Verdict:
    ours, theirs = built.pair(num_examples, num_lost, num_gained)
    return judge(gates, built.evidence(evaluation=ours, baseline_evaluation=theirs))[0]


@pytest.mark.parametrize(
    ("num_examples", "num_lost", "num_gained", "outcome"),
    [
        (1300, 0, 0, Outcome.PASS),
        (1300, 10, 10, Outcome.PASS),
        (1300, 60, 5, Outcome.FAIL),
        (1300, 20, 5, Outcome.INCONCLUSIVE),
        (299, 0, 0, Outcome.PASS),
        (298, 0, 0, Outcome.INCONCLUSIVE),
        (50, 0, 0, Outcome.INCONCLUSIVE),
        (1, 0, 0, Outcome.INCONCLUSIVE),
        (1, 1, 0, Outcome.INCONCLUSIVE),
    ],
)
def test_accuracy_has_three_outcomes(num_examples: int, num_lost: int, num_gained: int, outcome: Outcome) -> None:
    assert judge_pair(num_examples, num_lost, num_gained).verdict is outcome


def test_too_few_examples_say_how_many_would_do() -> None:
    verdict = judge_pair(50, 0, 0)
    assert verdict.num_needed == 299
    assert "about 299 would settle it" in verdict.reason
    assert "50 examples" in verdict.reason


def test_a_verdict_states_estimate_bound_margin_and_what_it_could_see() -> None:
    verdict = judge_pair(1300, 12, 6)
    assert verdict.estimate == pytest.approx(6 / 1300)
    assert verdict.threshold == 0.01
    assert verdict.num_samples == 1300
    assert verdict.bound is not None
    assert verdict.detectable is not None
    for part in (
        "accuracy",
        "99.54 → 99.08 %",
        "95 % confidence",
        "1-point margin",
        "12 lost, 6 gained",
        "; data sha256:data.",
    ):
        assert part in verdict.reason


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 299), st.integers(0, 20))
def test_less_than_the_rule_of_three_never_passes(num_examples: int, num_gained: int) -> None:
    """Fewer than ln(0.05) / ln(0.99) examples without any loss cannot show that a loss stays below one point."""
    if num_gained == 0 and num_examples < 299:
        assert judge_pair(num_examples, 0, 0).verdict is Outcome.INCONCLUSIVE


def test_a_metric_without_terms_is_judged_by_bootstrap(news: News) -> None:
    parts = {}
    for name, artifact in (("evaluation", news.coarse), ("baseline_evaluation", news.exact)):
        parts[name] = evaluate(
            open_engine(artifact), news.task, news.examples, artifact_digest=artifact.digest, batch_size=32
        )
    evidence = Evidence(artifact=Subject.of(news.coarse), baseline=Subject.of(news.exact), **parts)  # type: ignore[arg-type]
    found = {
        margin: judge(Gates(accuracy=(AccuracyGate(metric="f1_macro", max_drop=margin),)), evidence)[0]
        for margin in (0.0, 0.5)
    }
    drop = parts["baseline_evaluation"].metrics["f1_macro"] - parts["evaluation"].metrics["f1_macro"]
    assert found[0.5].verdict is Outcome.PASS
    assert found[0.5].estimate == pytest.approx(drop)
    assert found[0.5].bound is not None
    assert found[0.5].bound > drop
    assert found[0.0].verdict is not Outcome.PASS
    same = replace(evidence, artifact=evidence.baseline, evaluation=parts["baseline_evaluation"])
    assert judge(Gates(accuracy=(AccuracyGate(metric="f1_macro", max_drop=0.015),)), same)[0].verdict is Outcome.PASS


def judge_rare(metric: str, num_rare: int, num_lost: int, max_drop: float, num_examples: int = 600) -> Verdict:
    """Judge an artifact that loses rows of the rare last one of four classes and nothing else."""
    targets = [index % 3 for index in range(num_examples - num_rare)] + [3] * num_rare
    ours, theirs = built.rare_pair(targets, [False] * (num_examples - num_lost) + [True] * num_lost)
    gates = Gates(accuracy=(AccuracyGate(metric=metric, max_drop=max_drop),))
    return judge(gates, built.evidence(evaluation=ours, baseline_evaluation=theirs))[0]


@pytest.mark.parametrize("metric", ["f1_macro", "precision_macro", "recall_macro"])
def test_a_class_with_few_rows_certifies_no_small_margin_of_a_macro_metric(metric: str) -> None:
    """Nine rows show no loss below 33 % of their class, thus none below 8.4 points of the mean over four."""
    few = judge_rare(metric, 9, 0, 0.01)
    assert few.verdict is Outcome.INCONCLUSIVE
    assert "9 rows of class 'd' are too few to certify it: it needs ≥ 75" in few.reason
    assert few.num_needed is not None
    assert few.num_needed * 9 / 600 == pytest.approx(75, abs=0.5)
    assert judge_rare(metric, 9, 0, 0.08).verdict is Outcome.INCONCLUSIVE
    assert judge_rare(metric, 9, 0, 0.09).verdict is Outcome.PASS
    assert judge_rare(metric, 75, 0, 0.01).verdict is Outcome.PASS
    assert judge_rare(metric, 74, 0, 0.01).verdict is Outcome.INCONCLUSIVE


def test_correlation_hangs_on_the_rows_outside_the_largest_class() -> None:
    assert judge_rare("mcc", 9, 0, 0.01).verdict is Outcome.PASS
    alone = judge_rare("mcc", 600, 0, 0.5)
    assert alone.verdict is Outcome.INCONCLUSIVE
    assert "0 rows of all classes but 'd' are too few" in alone.reason


@pytest.mark.slow
def test_a_loss_in_a_rare_class_beyond_the_margin_rarely_passes() -> None:
    """The artifact loses 10 % of a class of 1.5 %: 1.3 points of macro-F1, of which 600 examples often show none."""
    rng = np.random.default_rng(1)
    gates = Gates(accuracy=(AccuracyGate(metric="f1_macro", max_drop=0.01),))
    num_passed = 0
    for _ in range(40):
        targets = rng.choice(4, 600, p=[0.33, 0.33, 0.325, 0.015])
        lost = (targets == 3) & (rng.random(600) < 0.10)
        ours, theirs = built.rare_pair(targets.tolist(), lost.tolist())
        verdict = judge(gates, built.evidence(evaluation=ours, baseline_evaluation=theirs))[0]
        num_passed += verdict.verdict is Outcome.PASS
    assert num_passed <= 0.05 * 40


def test_a_mean_of_other_scores_is_judged_by_bootstrap_and_has_a_floor() -> None:
    ours, theirs = built.pair(500, 0, 0)
    values = np.random.default_rng(0).uniform(0.4, 0.6, 500)
    ours, theirs = (replace(one, scores={"accuracy": values}) for one in (ours, theirs))
    assert judge(POINT, built.evidence(evaluation=ours, baseline_evaluation=theirs))[0].verdict is Outcome.PASS
    worse = replace(ours, scores={"accuracy": values - 0.05})
    assert judge(POINT, built.evidence(evaluation=worse, baseline_evaluation=theirs))[0].verdict is Outcome.FAIL
    few_ours, few_theirs = built.pair(100, 0, 0)
    few_ours, few_theirs = (replace(one, scores={"accuracy": values[:100]}) for one in (few_ours, few_theirs))
    few = judge(POINT, built.evidence(evaluation=few_ours, baseline_evaluation=few_theirs))[0]
    assert few.verdict is Outcome.INCONCLUSIVE
    assert few.num_needed == 299


def test_a_metric_where_lower_is_better_loses_when_it_grows() -> None:
    ours, theirs = built.pair(500, 0, 0)
    noise = np.random.default_rng(0).uniform(0, 0.01, 500)
    parts = [
        replace(one, scores={"accuracy": noise + level}, higher_is_better={"accuracy": False})
        for one, level in ((ours, 0.30), (theirs, 0.20))
    ]
    verdict = judge(POINT, built.evidence(evaluation=parts[0], baseline_evaluation=parts[1]))[0]
    assert verdict.verdict is Outcome.FAIL
    assert verdict.estimate == pytest.approx(0.1)


def test_evaluations_of_other_examples_cannot_be_paired() -> None:
    ours, theirs = built.pair(400, 0, 0)
    other = replace(theirs, data_digest="sha256:other")
    with pytest.raises(UsageError, match=r"different examples.*cannot be paired"):
        judge(POINT, built.evidence(evaluation=ours, baseline_evaluation=other))


def test_evidence_of_another_artifact_is_refused() -> None:
    ours, theirs = built.pair(400, 0, 0)
    with pytest.raises(ArtifactError, match="the evaluation is of sha256:fp32"):
        judge(POINT, built.evidence(evaluation=theirs, baseline_evaluation=theirs))
    with pytest.raises(ArtifactError, match="the baseline's evaluation is of sha256:int8"):
        judge(POINT, built.evidence(evaluation=ours, baseline_evaluation=ours))


def test_missing_evidence_metric_or_gate_is_a_usage_error() -> None:
    ours, theirs = built.pair(400, 0, 0)
    both = built.evidence(evaluation=ours, baseline_evaluation=theirs)
    with pytest.raises(UsageError, match="baseline"):
        judge(POINT, built.evidence(evaluation=ours))
    with pytest.raises(UsageError, match="baseline"):
        judge(Gates(size=SizeGate(min_reduction=2)), built.evidence(baseline=None))
    with pytest.raises(UsageError, match="latencies"):
        judge(Gates(latency=(LatencyGate(max_ms=1),)), both)
    with pytest.raises(UsageError, match="comparison"):
        judge(Gates(speed=SpeedGate(min_speedup=1)), both)
    with pytest.raises(UsageError, match=r"no metric 'f2'.*\n.*accuracy, mcc"):
        judge(Gates(accuracy=(AccuracyGate(metric="f2", max_drop=0.01),)), both)
    with pytest.raises(UsageError, match="no gate"):
        judge(Gates(), both)


def test_size_is_judged_to_the_byte() -> None:
    def outcome(gate: SizeGate, model_bytes: int, baseline_bytes: int = 100_000_000) -> Outcome:
        parts = {"artifact": built.subject("int8", model_bytes), "baseline": built.subject("fp32", baseline_bytes)}
        return judge(Gates(size=gate), built.evidence(**parts))[0].verdict

    assert outcome(SizeGate(max_mb=12.3), 12_300_000) is Outcome.PASS
    assert outcome(SizeGate(max_mb=12.3), 12_300_001) is Outcome.FAIL
    assert outcome(SizeGate(max_mb=12.3, of="artifact"), 12_000_000) is Outcome.FAIL
    assert outcome(SizeGate(min_reduction=3.9), 10_000_000, 39_000_000) is Outcome.PASS
    assert outcome(SizeGate(min_reduction=3.9), 10_000_000, 38_999_999) is Outcome.FAIL


def test_a_figure_just_outside_is_not_shown_as_inside() -> None:
    evidence = built.evidence(artifact=built.subject("int8", 12_000_004))
    reason = judge(Gates(size=SizeGate(max_mb=12)), evidence)[0].reason
    assert "12.000004 MB" in reason


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_rounding_never_crosses_a_limit(value: float, limit: float) -> None:
    if abs(value - limit) > 1e-9:
        shown = float(show(value, limit).replace(",", ""))
        assert (shown < limit) == (value < limit)
        assert (shown > limit) == (value > limit)


def test_latency_has_three_outcomes() -> None:
    def verdict(wall_ms: list[float], **parts: object) -> Verdict:
        samples = built.latency(wall_ms, **parts)  # type: ignore[arg-type]
        return judge(Gates(latency=(LatencyGate(percentile=99, max_ms=20),)), built.evidence(latencies=(samples,)))[0]

    passed = verdict([10.0] * 459)
    assert passed.verdict is Outcome.PASS
    assert f"measured on {built.MACHINE.cpu}, {built.MACHINE.num_cpus} CPU" in passed.reason
    few = verdict([10.0] * 20)
    assert few.verdict is Outcome.INCONCLUSIVE
    assert few.num_needed == 459
    assert few.estimate is None
    assert "n too small for p99: 20 requests, needs ≥ 459" in few.reason
    assert verdict([10.0] * 660 + [30.0]).verdict is Outcome.INCONCLUSIVE  # one slow one of 661 needs 662
    assert verdict([10.0] * 661 + [30.0]).verdict is Outcome.PASS
    assert verdict(([10.0] * 4 + [30.0]) * 100).verdict is Outcome.FAIL
    assert verdict([30.0] * 100).verdict is Outcome.FAIL
    unsettled = verdict([10.0] * 700, is_settled=False)
    assert unsettled.verdict is Outcome.INCONCLUSIVE
    assert "warm-up" in unsettled.reason


def test_slow_requests_in_one_burst_are_one_event() -> None:
    """A machine that is slow for a while says little about how often it is slow."""
    samples = built.latency([10.0] * 900 + [30.0] * 100)
    verdict = judge(Gates(latency=(LatencyGate(percentile=99, max_ms=20),)), built.evidence(latencies=(samples,)))[0]
    assert verdict.verdict is Outcome.INCONCLUSIVE
    assert "come in bursts" in verdict.reason


def test_a_slow_tail_near_the_limit_says_how_many_requests_settle_it() -> None:
    samples = built.latency(([10.0] * 199 + [30.0]) * 5)
    verdict = judge(Gates(latency=(LatencyGate(percentile=99, max_ms=20),)), built.evidence(latencies=(samples,)))[0]
    assert verdict.verdict is Outcome.INCONCLUSIVE
    assert verdict.num_needed is not None
    assert verdict.num_needed > 1307


def test_a_busy_machine_fails_nobody() -> None:
    samples = built.latency([30.0] * 700, cpu_share=0.4)
    verdict = judge(Gates(latency=(LatencyGate(percentile=99, max_ms=20),)), built.evidence(latencies=(samples,)))[0]
    assert verdict.verdict is Outcome.INCONCLUSIVE
    assert "waited 60% of the time for a processor" in verdict.reason
    slow_itself = built.latency([60.0] * 700, cpu_share=0.4)
    assert (
        judge(Gates(latency=(LatencyGate(percentile=99, max_ms=20),)), built.evidence(latencies=(slow_itself,)))[
            0
        ].verdict
        is Outcome.FAIL
    )


def test_speed_has_three_outcomes() -> None:
    def verdict(ratio: float, **parts: object) -> Verdict:
        turns = built.duet(ratio, **parts)  # type: ignore[arg-type]
        return judge(Gates(speed=SpeedGate(min_speedup=2.0)), built.evidence(duets=(turns,)))[0]

    assert verdict(2.1).verdict is Outcome.PASS
    assert f"measured on {built.MACHINE.cpu}, {built.MACHINE.num_cpus} CPU" in verdict(2.1).reason
    assert verdict(1.9).verdict is Outcome.FAIL
    near = verdict(1.995, noise=0.1)
    assert near.verdict is Outcome.INCONCLUSIVE
    assert near.num_needed is not None
    few = verdict(3.0, num_sessions=3)
    assert few.verdict is Outcome.INCONCLUSIVE
    assert "3 sessions are too few, needs ≥ 5" in few.reason
    assert verdict(3.0, num_sessions=6, session_pairs=3).verdict is Outcome.INCONCLUSIVE
    assert verdict(3.0, is_settled=False).verdict is Outcome.INCONCLUSIVE


def test_overall_is_the_worst_and_nothing_is_no_pass() -> None:
    passed, failed, inconclusive = judge_pair(1300, 0, 0), judge_pair(1300, 60, 5), judge_pair(50, 0, 0)
    assert overall([passed, passed]) is Outcome.PASS
    assert overall([passed, inconclusive]) is Outcome.INCONCLUSIVE
    assert overall([inconclusive, failed, passed]) is Outcome.FAIL
    assert overall([]) is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    "wrong",
    [
        {"accuracy": {"max_drop": -0.01}},
        {"accuracy": {"max_drop": float("nan")}},
        {"accuracy": {"max_drop": 0.01, "confidence": 1.0}},
        {"accuracy": {"max_drop": "1 %"}},
        {"size": {}},
        {"size": {"max_mb": 0}},
        {"latency": {"percentile": 100, "max_ms": 5}},
        {"latency": {"max_ms": 5, "scenario": "server"}},
        {"latency": {"max_ms": 5, "rate": 10}},
        {"latency": [{"max_ms": 5}, {"max_ms": 6}]},
        {"latency": 5},
        {"accuracy": [{"max_drop": 0.01}, {"min": 0.9}]},
        {"accuracy": {"metric": "mcc"}},
        {"flips": {"max_rate": 0}},
        {"divergence": {"max_mean_kld": float("inf")}},
        {"regression": {"max_slowdown": -0.1}},
        {"regression": {"of": "wall"}},
        {"devices": {"*": {"regression": {"max_growth": 0.1}}}},
        {"devices": {"*": {"regression": {"max_slowdown": 0.1, "max_drop": 0.1}}}},
        {"devices": {"*": {}}},
        {"devices": {"": {"cpu": {"max_ms": 5}}}},
        {"devices": {"*": {"size": {"max_mb": 5}}}},
        {"speed": {"min_speedup": 2, "max_drop": 1}},
        {"speeed": {"min_speedup": 2}},
    ],
)
def test_gates_are_strict(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Gates.model_validate(wrong)


def test_judging_loads_no_heavy_library() -> None:
    """Accuracy, size and report need neither SciPy nor an engine."""
    heavy = "('scipy', 'onnxruntime', 'torch', 'transformers', 'tokenizers')"
    imports = "import bench.gates.judge, bench.gates.ci, bench.report, sys"
    code = f"{imports}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
