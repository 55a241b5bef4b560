"""Whatever the evidence: what is no figure never passes, and a PASS is borne out by its own figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.gates.judge import Evidence, Outcome, Verdict, judge
from edgesmith.errors import EdgesmithError
from edgesmith.gates import (
    AccuracyGate,
    CpuGate,
    DivergenceGate,
    DownloadGate,
    FlipsGate,
    Gates,
    LatencyGate,
    MemoryGate,
    RegressionGate,
    SizeGate,
    SpeedGate,
    StartGate,
    ThroughputGate,
)
from tests.bench import evidence_built as built

BROKEN = st.sampled_from([float("nan"), float("inf"), -float("inf")])
EASY = 1e9
ACCURACY = Gates(accuracy=(AccuracyGate(max_drop=0.9, min=-0.5),))


def judged(gates: Gates, evidence: Evidence) -> list[Verdict]:
    """The verdicts; none where the evidence was refused with a typed error."""
    try:
        return judge(gates, evidence)
    except EdgesmithError:
        return []


def assert_no_pass(gates: Gates, evidence: Evidence) -> None:
    for verdict in judged(gates, evidence):
        assert verdict.verdict is not Outcome.PASS
        assert verdict.reason


@settings(max_examples=60, deadline=None)
@given(BROKEN, st.integers(0, 399), st.sampled_from(["artifact", "baseline"]), st.booleans())
def test_no_broken_score_or_metric_passes(broken: float, row: int, who: str, in_scores: bool) -> None:
    ours, theirs = built.pair(400, 0, 0)
    chosen = ours if who == "artifact" else theirs
    scores = chosen.scores["accuracy"].copy()
    if in_scores:
        scores[row] = broken
    metrics = dict(chosen.metrics) | ({} if in_scores else {"accuracy": broken})
    worse = replace(chosen, scores={"accuracy": scores}, metrics=metrics)
    pair = (worse, theirs) if who == "artifact" else (ours, worse)
    gates = ACCURACY if who == "artifact" else Gates(accuracy=(AccuracyGate(max_drop=0.9),))
    assert_no_pass(gates, built.evidence(evaluation=pair[0], baseline_evaluation=pair[1]))


@settings(max_examples=60, deadline=None)
@given(BROKEN, st.integers(0, 399), st.booleans())
def test_no_broken_probability_passes(broken: float, row: int, is_ours: bool) -> None:
    good = [[0.9, 0.1]] * 400
    bad = [*good[:row], [broken, 0.1], *good[row + 1 :]]
    ours, theirs = (bad, good) if is_ours else (good, bad)
    evidence = built.evidence(
        evaluation=built.probabilities(ours), baseline_evaluation=built.probabilities(theirs, of="fp32")
    )
    assert_no_pass(Gates(divergence=DivergenceGate(max_mean_kld=0.5)), evidence)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([float("nan"), float("inf"), 0.0, -1.0, 1.0]), max_size=12).filter(
        lambda s: s != [1.0] * len(s)
    )
)
def test_no_broken_round_passes(seconds: list[float]) -> None:
    rounds = replace(built.throughput([1.0]), round_seconds=tuple(seconds))
    assert_no_pass(Gates(throughput=ThroughputGate(min_per_second=1e-9)), built.evidence(throughputs=(rounds,)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 699), st.sampled_from([0, -1, -(2**62)]), st.sampled_from(["wall_ns", "cpu_ns"]))
def test_no_time_that_is_none_passes(row: int, broken: int, name: str) -> None:
    good = built.latency([1.0] * 700)
    times = getattr(good, name).copy()
    times[row] = broken
    latency = replace(good, **{name: times})
    gates = Gates(latency=(LatencyGate(max_ms=EASY),)) if name == "wall_ns" else Gates(cpu=CpuGate(max_ms=EASY))
    assert_no_pass(gates, built.evidence(latencies=(latency,)))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 59),
    st.sampled_from([0, -1]),
    st.sampled_from(["baseline_cpu_ns", "twin_cpu_ns", "artifact_cpu_ns", "artifact_wall_ns"]),
)
def test_no_turn_that_took_no_time_passes(row: int, broken: int, name: str) -> None:
    good = built.duet(5.0)
    times = getattr(good, name).copy()
    times[row] = broken
    evidence = built.evidence(duets=(replace(good, **{name: times}),))
    assert_no_pass(Gates(speed=SpeedGate(min_speedup=0.001)), evidence)
    assert_no_pass(Gates(regression=RegressionGate(max_slowdown=0.99)), evidence)


@settings(max_examples=30, deadline=None)
@given(BROKEN | st.just(0.0) | st.just(-5.0))
def test_no_start_that_is_none_passes(broken: float) -> None:
    start = built.start()
    times = replace(start.processes[0], first_answer_ms=broken)
    memory = replace(start.processes[0], peak_rss_bytes=0)
    for gates, worse in (
        (Gates(start=StartGate(max_ms=EASY)), times),
        (Gates(memory=MemoryGate(max_mb=EASY)), memory),
    ):
        broken_start = replace(start, processes=(*start.processes, worse))
        assert_no_pass(gates, built.evidence(starts=(broken_start,)))
        assert_no_pass(gates, built.evidence(starts=(start, replace(start, processes=(worse,) * 7))))


EMPTY: list[tuple[Gates, Callable[[], dict[str, object]]]] = [
    (ACCURACY, lambda: dict(zip(("evaluation", "baseline_evaluation"), _no_rows(), strict=True))),
    (
        Gates(flips=FlipsGate(max_rate=0.9)),
        lambda: dict(zip(("evaluation", "baseline_evaluation"), _no_rows(), strict=True)),
    ),
    (
        Gates(divergence=DivergenceGate(max_mean_kld=EASY)),
        lambda: dict(zip(("evaluation", "baseline_evaluation"), _no_rows(), strict=True)),
    ),
    (Gates(latency=(LatencyGate(max_ms=EASY),)), lambda: {"latencies": (built.latency([]),)}),
    (
        Gates(latency=(LatencyGate(scenario="server", rate=5, max_ms=EASY),)),
        lambda: {"latencies": (built.latency([], rate=5),)},
    ),
    (Gates(latency=(LatencyGate(scenario="load", max_ms=EASY),)), lambda: {"loads": (built.load([]),)}),
    (Gates(cpu=CpuGate(max_ms=EASY)), lambda: {"latencies": (built.latency([]),)}),
    (Gates(throughput=ThroughputGate(min_per_second=1e-9)), lambda: {"throughputs": (built.throughput([]),)}),
    (Gates(speed=SpeedGate(min_speedup=1e-9)), lambda: {"duets": (built.duet(5.0, num_sessions=0),)}),
    (Gates(regression=RegressionGate(max_slowdown=0.99)), lambda: {"duets": (built.duet(5.0, num_sessions=0),)}),
    (Gates(download=DownloadGate(max_mb=EASY)), lambda: {"footprint": built.footprint(0)}),
    (Gates(size=SizeGate(max_mb=EASY)), lambda: {"artifact": built.subject("int8", 0)}),
    (Gates(size=SizeGate(max_growth=0.99)), lambda: {"baseline": built.subject("fp32", 0)}),
]


def _no_rows() -> tuple[object, object]:
    ours, theirs = built.pair(1, 0, 0)
    nothing = {"lines": (), "targets": (), "predictions": (), "scores": {"accuracy": np.array([])}}
    return replace(ours, **nothing), replace(theirs, **nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize(("gates", "parts"), EMPTY)
def test_nothing_measured_is_no_pass(gates: Gates, parts: Callable[[], dict[str, object]]) -> None:
    assert_no_pass(gates, built.evidence(**parts()))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 800),
    st.integers(0, 40),
    st.integers(0, 40),
    st.floats(0, 0.5),
    st.floats(0.5, 0.999),
)
def test_a_pass_is_borne_out_by_its_own_figures(
    num_rest: int, num_lost: int, num_gained: int, limit: float, confidence: float
) -> None:
    ours, theirs = built.pair(num_rest + num_lost + num_gained, num_lost, num_gained)
    gates = Gates(
        accuracy=(AccuracyGate(max_drop=limit, min=1 - limit - 0.01, confidence=confidence),),
        flips=FlipsGate(max_rate=max(limit, 1e-6), confidence=confidence),
    )
    for verdict in judge(gates, built.evidence(evaluation=ours, baseline_evaluation=theirs)):
        assert verdict.estimate is not None
        assert verdict.bound is not None
        is_inside = verdict.bound >= verdict.threshold if verdict.at_least else verdict.bound <= verdict.threshold
        assert is_inside or verdict.verdict is not Outcome.PASS
        if verdict.verdict is Outcome.FAIL:
            assert not is_inside
