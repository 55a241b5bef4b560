from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from bench.gates.judge import Evidence, Outcome, Verdict, judge
from bench.gates.latency import judge_load_latency, requests_to_plan
from bench.histogram import Histogram
from bench.stats.percentiles import required_samples
from edgesmith.errors import ArtifactError, UsageError
from edgesmith.gates import (
    CpuGate,
    DownloadGate,
    Gates,
    LatencyGate,
    MachineGates,
    MemoryGate,
    RegressionGate,
    SizeGate,
    StartGate,
    ThroughputGate,
)
from tests.bench import evidence_built as built

PI = built.named("Cortex-A76")
SERVER = built.named("Xeon 8")


def one(gates: Gates, evidence: Evidence) -> Verdict:
    [verdict] = judge(gates, evidence)
    return verdict


def regression(ratio: float, gate: RegressionGate, **parts: object) -> Verdict:
    """Of an artifact that takes 1 / `ratio` of the baseline's time."""
    turns = built.duet(ratio, **parts)  # type: ignore[arg-type]
    return one(Gates(regression=gate), built.evidence(duets=(turns,)))


@pytest.mark.parametrize("of", ["cpu", "wall"])
def test_regression_has_three_outcomes(of: str) -> None:
    gate = RegressionGate(max_slowdown=0.05, of=of)  # type: ignore[arg-type]
    assert regression(1.0, gate).verdict is Outcome.PASS
    failed = regression(1 / 1.10, gate)
    assert failed.verdict is Outcome.FAIL
    assert failed.estimate == pytest.approx(0.10, abs=0.01)
    assert failed.bound is not None
    assert 0.05 < failed.bound < 0.10
    assert regression(1 / 1.05, gate).verdict is Outcome.INCONCLUSIVE


def test_noise_above_the_limit_leaves_a_regression_open_and_says_what_would_settle_it() -> None:
    noisy = regression(1.0, RegressionGate(max_slowdown=0.01), noise=0.2)
    assert noisy.verdict is Outcome.INCONCLUSIVE
    assert "the baseline differs from itself by up to" in noisy.reason
    assert "quieter machine would settle it" in noisy.reason
    assert noisy.num_needed is not None
    assert noisy.num_needed > 60
    assert regression(1 / 1.02, RegressionGate(max_slowdown=0.0), noise=0.1).verdict is Outcome.INCONCLUSIVE


def test_what_is_far_beyond_the_noise_is_decided_all_the_same() -> None:
    gate = RegressionGate(max_slowdown=0.01)
    assert regression(2.0, gate, noise=0.1).verdict is Outcome.PASS
    assert regression(0.5, gate, noise=0.1).verdict is Outcome.FAIL


def test_a_run_whose_equals_differ_decides_less() -> None:
    gate = RegressionGate(max_slowdown=0.05)
    assert regression(1 / 1.07, gate).verdict is Outcome.FAIL
    assert regression(1 / 1.07, gate, bias=0.06).verdict is Outcome.INCONCLUSIVE


def test_few_or_unsettled_turns_decide_nothing() -> None:
    gate = RegressionGate(max_slowdown=0.5)
    assert regression(1.0, gate, num_sessions=2).verdict is Outcome.INCONCLUSIVE
    assert regression(1.0, gate, num_sessions=1).verdict is Outcome.INCONCLUSIVE
    assert regression(1.0, gate, is_settled=False).verdict is Outcome.INCONCLUSIVE


def test_throughput_has_three_outcomes() -> None:
    def verdict(seconds: list[float], **parts: object) -> Verdict:
        rounds = built.throughput(seconds, **parts)  # type: ignore[arg-type]
        return one(Gates(throughput=ThroughputGate(min_per_second=100)), built.evidence(throughputs=(rounds,)))

    assert verdict([0.9] * 9).verdict is Outcome.PASS
    assert verdict([1.1] * 9).verdict is Outcome.FAIL
    assert verdict([0.9, 1.1] * 5).verdict is Outcome.INCONCLUSIVE
    few = verdict([0.5] * 3)
    assert few.verdict is Outcome.INCONCLUSIVE
    assert few.num_needed == 5
    assert verdict([0.5] * 9, is_settled=False).verdict is Outcome.INCONCLUSIVE
    busy = verdict([1.1] * 9, is_busy=True)
    assert busy.verdict is Outcome.INCONCLUSIVE
    assert "other guests" in busy.reason


def test_rounds_that_depend_on_each_other_say_less() -> None:
    """Rounds of 0.9 to 1.1 s whose speed wanders: independent, as many would show 95 a second."""
    rng = np.random.default_rng(3)
    shuffled = 0.9 + 0.2 * rng.random(40)
    wandering = np.sort(shuffled)
    gates = Gates(throughput=ThroughputGate(min_per_second=95))
    loose, tied = (
        one(gates, built.evidence(throughputs=(built.throughput(seconds.tolist()),)))
        for seconds in (shuffled, wandering)
    )
    assert loose.verdict is Outcome.PASS
    assert tied.verdict is Outcome.INCONCLUSIVE
    assert "depend on each other and say as much as" in tied.reason
    assert tied.num_needed is not None
    assert tied.num_needed > 40


def test_an_engine_that_slows_down_while_it_is_timed_is_open() -> None:
    """Three windows within 5 % happen by luck, and on a slow ramp."""
    ramp = np.linspace(10, 13, 700).tolist()
    for gates in (Gates(cpu=CpuGate(max_ms=20)), Gates(latency=(LatencyGate(max_ms=20),))):
        drifted = one(gates, built.evidence(latencies=(built.latency(ramp),)))
        assert drifted.verdict is Outcome.INCONCLUSIVE
        assert "changed by +19% from the first to the last third" in drifted.reason
        steady = one(gates, built.evidence(latencies=(built.latency([10.0, 10.5] * 350),)))
        assert steady.verdict is Outcome.PASS


def test_timed_verdicts_say_how_many_threads() -> None:
    evidence = built.evidence(
        latencies=(replace(built.latency([10.0] * 700), threads=2),),
        throughputs=(built.throughput([0.9] * 25),),
        starts=(built.start(),),
    )
    gates = Gates(
        latency=(LatencyGate(max_ms=20),),
        cpu=CpuGate(max_ms=20),
        throughput=ThroughputGate(min_per_second=100),
        start=StartGate(max_ms=500),
    )
    reasons = {verdict.gate: verdict.reason for verdict in judge(gates, evidence)}
    assert "2 threads" in reasons["latency"]
    assert "2 threads" in reasons["cpu"]
    assert "1 thread;" in reasons["throughput"]
    assert "1 thread;" in reasons["start"]


def test_cpu_time_is_that_of_the_median_request() -> None:
    def verdict(wall_ms: list[float], cpu_share: float = 1.0) -> Verdict:
        samples = built.latency(wall_ms, cpu_share=cpu_share)
        return one(Gates(cpu=CpuGate(max_ms=10)), built.evidence(latencies=(samples,)))

    assert verdict(([9.0] * 12 + [90.0]) * 5).verdict is Outcome.PASS
    assert verdict([30.0] * 65, cpu_share=0.3).verdict is Outcome.PASS
    assert verdict([11.0] * 65).verdict is Outcome.FAIL
    assert verdict([9.0, 11.0] * 40).verdict is Outcome.INCONCLUSIVE
    assert verdict([9.0] * 4).verdict is Outcome.INCONCLUSIVE


def test_files_are_their_own_bounds_and_starts_are_judged_together() -> None:
    evidence = built.evidence(
        footprint=built.footprint(15_000_000), starts=(built.start(300, 120), built.start(310, 120))
    )
    assert one(Gates(download=DownloadGate(max_mb=15)), evidence).verdict is Outcome.PASS
    assert one(Gates(download=DownloadGate(max_mb=14.999999)), evidence).verdict is Outcome.FAIL
    assert one(Gates(memory=MemoryGate(max_mb=120)), evidence).verdict is Outcome.PASS
    assert one(Gates(memory=MemoryGate(max_mb=119)), evidence).verdict is Outcome.FAIL
    assert one(Gates(start=StartGate(max_ms=310)), evidence).verdict is Outcome.PASS
    assert one(Gates(start=StartGate(max_ms=305)), evidence).verdict is Outcome.FAIL
    busy = replace(built.start(310), conditions=built.conditions(num_throttled=12))
    opened = one(Gates(start=StartGate(max_ms=305)), built.evidence(starts=(busy,)))
    assert opened.verdict is Outcome.INCONCLUSIVE
    assert "the CPU quota was used up 12 times" in opened.reason


def test_the_median_of_few_starts_is_only_known_within_bounds() -> None:
    def verdict(max_ms: float, **parts: object) -> Verdict:
        start = built.start(300, **parts)  # type: ignore[arg-type]
        return one(Gates(start=StartGate(max_ms=max_ms)), built.evidence(starts=(start,)))

    assert verdict(320, spread_ms=40).verdict is Outcome.PASS
    assert verdict(319, spread_ms=40).verdict is Outcome.INCONCLUSIVE
    assert verdict(281, spread_ms=40).verdict is Outcome.INCONCLUSIVE
    assert verdict(279, spread_ms=40).verdict is Outcome.FAIL
    few = verdict(1000, num_starts=6)
    assert few.verdict is Outcome.INCONCLUSIVE
    assert few.num_needed == 7
    assert "6 starts are too few to bound their median, needs ≥ 7" in few.reason


def test_the_worst_of_several_starts_counts() -> None:
    gates = Gates(start=StartGate(max_ms=305))
    assert one(gates, built.evidence(starts=(built.start(900, num_starts=1), built.start(300)))).verdict is (
        Outcome.INCONCLUSIVE
    )
    failed = one(gates, built.evidence(starts=(built.start(300), built.start(310), built.start(900, num_starts=1))))
    assert (failed.verdict, failed.estimate) == (Outcome.FAIL, 310)


def test_memory_near_the_limit_is_open_by_as_much_as_processes_differ() -> None:
    def verdict(max_mb: float, **parts: object) -> Verdict:
        start = built.start(peak_mb=120, **parts)  # type: ignore[arg-type]
        return one(Gates(memory=MemoryGate(max_mb=max_mb)), built.evidence(starts=(start,)))

    assert verdict(124, spread_mb=4).verdict is Outcome.PASS
    near = verdict(123.9, spread_mb=4)
    assert near.verdict is Outcome.INCONCLUSIVE
    assert "the most of 7 processes that differ by 4.00 MB" in near.reason
    assert verdict(119.9, spread_mb=4).verdict is Outcome.FAIL
    few = verdict(500, num_starts=2)
    assert few.verdict is Outcome.INCONCLUSIVE
    assert few.num_needed == 3


def test_growth_over_an_earlier_release_is_judged_to_the_byte() -> None:
    def outcome(model_bytes: int) -> Outcome:
        parts = {"artifact": built.subject("int8", model_bytes), "baseline": built.subject("fp32", 100_000_000)}
        return one(Gates(size=SizeGate(max_growth=0.02)), built.evidence(**parts)).verdict

    assert outcome(90_000_000) is Outcome.PASS
    assert outcome(102_000_000) is Outcome.PASS
    assert outcome(102_000_001) is Outcome.FAIL


def test_a_regression_is_of_speed_size_and_answers() -> None:
    ours, theirs = built.pair(1300, 0, 0)
    evidence = built.evidence(
        artifact=built.subject("int8", 101_000_000),
        baseline=built.subject("fp32", 100_000_000),
        evaluation=ours,
        baseline_evaluation=theirs,
        duets=(built.duet(1.0),),
    )
    gate = RegressionGate(max_slowdown=0.05, max_growth=0.005, max_drop=0.01)
    assert {verdict.gate: verdict.verdict for verdict in judge(Gates(regression=gate), evidence)} == {
        "regression.max_slowdown": Outcome.PASS,
        "regression.max_growth": Outcome.FAIL,
        "regression.max_drop": Outcome.PASS,
    }
    with pytest.raises(UsageError, match="the regression gate needs an evaluation"):
        judge(Gates(regression=RegressionGate(max_drop=0.01)), built.evidence())


def test_a_latency_gate_takes_the_evidence_of_its_scenario_and_rate() -> None:
    single, slow, fast = (
        built.latency([10.0] * 500),
        built.latency([30.0] * 500, rate=50),
        built.latency([12.0] * 500, rate=10),
    )
    evidence = built.evidence(latencies=(single, slow, fast))
    gates = Gates(
        latency=(
            LatencyGate(max_ms=20),
            LatencyGate(scenario="server", rate=50, max_ms=20),
            LatencyGate(scenario="server", rate=10, max_ms=20),
        )
    )
    assert {verdict.gate: verdict.verdict for verdict in judge(gates, evidence)} == {
        "latency.single.p99": Outcome.PASS,
        "latency.server@50.p99": Outcome.FAIL,
        "latency.server@10.p99": Outcome.PASS,
    }
    with pytest.raises(UsageError, match=r"scenario server at 70 requests/s.*\n.*--scenario server --rate 70"):
        judge(Gates(latency=(LatencyGate(scenario="server", rate=70, max_ms=20),)), evidence)
    with pytest.raises(UsageError, match=r"2 measurements on .* which one counts is not for us to choose"):
        judge(Gates(latency=(LatencyGate(max_ms=20),)), built.evidence(latencies=(single, single)))


def test_a_growing_queue_is_never_within_a_limit() -> None:
    """The run was short: later requests would have waited longer."""
    samples = built.latency([19.0] * 500, rate=60)
    verdict = one(
        Gates(latency=(LatencyGate(scenario="server", rate=60, max_ms=20),)), built.evidence(latencies=(samples,))
    )
    assert verdict.verdict is Outcome.INCONCLUSIVE
    assert "the queue grew until the end" in verdict.reason


def test_a_slow_server_scenario_on_a_busy_machine_is_open() -> None:
    gates = Gates(latency=(LatencyGate(scenario="server", rate=10, max_ms=20),))
    busy = one(gates, built.evidence(latencies=(built.latency([30.0] * 500, rate=10, is_busy=True),)))
    assert busy.verdict is Outcome.INCONCLUSIVE
    assert "tasks waited for a processor 50% of the time" in busy.reason
    assert one(gates, built.evidence(latencies=(built.latency([30.0] * 500, rate=10),))).verdict is Outcome.FAIL


def judge_load(**parts: object) -> Verdict:
    tested = built.load(**parts)  # type: ignore[arg-type]
    gates = Gates(latency=(LatencyGate(scenario="load", rate=50, max_ms=20),))
    return one(gates, built.evidence(loads=(tested,)))


def test_a_failed_request_is_later_than_any_limit() -> None:
    assert judge_load(wall_ms=[10.0] * 700).verdict is Outcome.PASS
    failed = judge_load(wall_ms=[10.0] * 700, num_failed=100)
    assert failed.verdict is not Outcome.PASS
    assert "100 failed" in failed.reason
    everything = judge_load(wall_ms=[10.0] * 700, num_failed=700)
    assert everything.verdict is Outcome.FAIL
    assert "later than any limit" in everything.reason
    assert everything.estimate is None  # infinity is no figure


def test_a_load_that_was_not_sent_when_due_proves_nothing() -> None:
    late = judge_load(wall_ms=[10.0] * 700, lag_ms=3.0)
    assert late.verdict is Outcome.INCONCLUSIVE
    assert "more than 3.0" in late.reason
    assert "1 ms are allowed" in late.reason
    stopped = judge_load(wall_ms=[10.0] * 700, is_complete=False)
    assert stopped.verdict is Outcome.INCONCLUSIVE
    assert "a worker was lost" in stopped.reason
    assert judge_load(wall_ms=[30.0] * 700, lag_ms=3.0).verdict is Outcome.INCONCLUSIVE
    with pytest.raises(UsageError, match=r"a load test at 50 requests/s.*\n.*edgesmith load URL --rate 50"):
        judge_load(wall_ms=[10.0] * 700, rate=20.0)


def test_a_verdict_on_its_own_prints_and_serialises_whatever_failed() -> None:
    """As the load command judges: without the checks of `judge`."""
    verdict = judge_load_latency(LatencyGate(scenario="load", max_ms=20), built.load([10.0] * 700, num_failed=700))
    assert verdict.verdict is Outcome.FAIL
    assert "p99 is later than any limit, so many requests failed" in verdict.reason
    assert json.loads(json.dumps(verdict.to_json(), allow_nan=False))["estimate"] is None
    assert verdict.figure(verdict.estimate) == verdict.figure(verdict.bound) == "–"
    assert verdict.figure(float("inf")) == "later than any limit"


def test_sending_is_held_to_the_percentile_that_is_judged() -> None:
    """Half a per cent of late sendings is nothing to a p99 and all of a p99.9."""
    loaded = built.load([10.0] * 20_000)
    lag_ns = loaded.lag_ns.copy()
    lag_ns[::200] = 50_000_000
    lags = Histogram()
    lags.record_many(lag_ns)
    late = replace(loaded, lag_ns=lag_ns, lag_histogram=lags)
    assert judge_load_latency(LatencyGate(scenario="load", max_ms=20), late).verdict is Outcome.PASS
    tail = judge_load_latency(LatencyGate(scenario="load", percentile=99.9, max_ms=20), late)
    assert tail.verdict is Outcome.INCONCLUSIVE
    assert "0.1 % of the requests left more than 50" in tail.reason


def test_late_sending_fails_nobody() -> None:
    """The gate allows a lag of 1 ms; the server answers in 19.5 ms and the clock says 20.4."""
    late = judge_load(wall_ms=[20.4] * 700, lag_ms=0.9)
    assert late.verdict is Outcome.INCONCLUSIVE
    assert "without the late sending of the load generator itself it would not fail" in late.reason
    assert judge_load(wall_ms=[21.0] * 700, lag_ms=0.9).verdict is Outcome.FAIL


def test_a_rate_is_of_a_steady_load_and_the_shape_is_named() -> None:
    steady = built.load([10.0] * 700)
    ramp = replace(steady, shape=replace(steady.shape, name="ramp"))
    soak = replace(steady, shape=replace(steady.shape, name="soak"))
    gate = LatencyGate(scenario="load", rate=50, max_ms=20)
    assert "load soak, 50 requests/s for" in one(Gates(latency=(gate,)), built.evidence(loads=(ramp, soak))).reason
    with pytest.raises(UsageError, match="a load test at 50 requests/s, constant or soak"):
        judge(Gates(latency=(gate,)), built.evidence(loads=(ramp,)))
    any_rate = one(Gates(latency=(LatencyGate(scenario="load", max_ms=20),)), built.evidence(loads=(ramp,)))
    assert "load ramp" in any_rate.reason
    assert "which serves this artifact as far as its user says" in any_rate.reason


def test_an_engine_that_blocks_is_slow_by_itself() -> None:
    """It sleeps 60 % of its time; nobody else had the processor."""
    gates = Gates(latency=(LatencyGate(max_ms=20),))
    sleepy = built.latency([30.0] * 700, cpu_share=0.4)

    def verdict(**parts: object) -> Verdict:
        known = replace(sleepy, conditions=built.conditions(seconds=21.0, **parts))
        return one(gates, built.evidence(latencies=(known,)))

    assert verdict(own_wait_share=0.01).verdict is Outcome.FAIL
    assert verdict(own_wait_share=0.3).verdict is Outcome.INCONCLUSIVE
    assert verdict(own_wait_share=0.01, num_throttled=3).verdict is Outcome.INCONCLUSIVE
    assert verdict().verdict is Outcome.INCONCLUSIVE  # nothing is known but that it did not run


@pytest.mark.parametrize(("percentile", "planned"), [(50, 66), (99, 3921), (99.9, 20_000)])
def test_a_latency_gate_plans_for_some_slow_requests(percentile: float, planned: int) -> None:
    gate = LatencyGate(percentile=percentile, max_ms=20)
    assert requests_to_plan(gate) == planned
    assert required_samples(percentile, 0.99, 5) * 3 >= planned


def test_each_machine_is_judged_and_named() -> None:
    evidence = built.evidence(
        latencies=(built.latency([10.0] * 500, machine=SERVER), built.latency([100.0] * 500, machine=PI))
    )
    verdicts = judge(Gates(latency=(LatencyGate(max_ms=20),)), evidence)
    assert {verdict.gate: verdict.verdict for verdict in verdicts} == {
        f"latency [{SERVER.name}]": Outcome.PASS,
        f"latency [{PI.name}]": Outcome.FAIL,
    }
    assert [verdict.machine for verdict in verdicts] == [SERVER.name, PI.name]


def test_a_device_has_its_own_limit_in_place_of_the_general_one() -> None:
    evidence = built.evidence(
        latencies=(built.latency([10.0] * 500, machine=SERVER), built.latency([100.0] * 500, machine=PI)),
        starts=(built.start(machine=SERVER), built.start(900, 80, machine=PI)),
    )
    gates = Gates(
        latency=(LatencyGate(max_ms=20),),
        start=StartGate(max_ms=500),
        devices={"Cortex-*": MachineGates(latency=(LatencyGate(max_ms=200),), memory=MemoryGate(max_mb=90))},
    )
    assert {verdict.gate: verdict.verdict for verdict in judge(gates, evidence)} == {
        f"start [{SERVER.name}]": Outcome.PASS,
        f"start [{PI.name}]": Outcome.FAIL,
        "latency": Outcome.PASS,
        "devices.Cortex-*.memory": Outcome.PASS,
        "devices.Cortex-*.latency": Outcome.PASS,
    }


def test_a_device_that_was_not_measured_leaves_its_gates_open() -> None:
    gates = Gates(devices={"*RK3588*": MachineGates(latency=(LatencyGate(max_ms=50),), cpu=CpuGate(max_ms=5))})
    evidence = built.evidence(latencies=(built.latency([10.0] * 500, machine=SERVER),))
    verdicts = judge(gates, evidence)
    assert {verdict.verdict for verdict in verdicts} == {Outcome.INCONCLUSIVE}
    for verdict in verdicts:
        assert "'*RK3588*'" in verdict.reason
        assert SERVER.name in verdict.reason
    assert judge(gates, built.evidence())[0].verdict is Outcome.INCONCLUSIVE


def test_a_general_gate_needs_a_machine_of_its_own() -> None:
    gates = Gates(latency=(LatencyGate(max_ms=20),), devices={"*": MachineGates(latency=(LatencyGate(max_ms=50),))})
    with pytest.raises(UsageError, match=f"there are such of {SERVER.name}, which devices has limits for"):
        judge(gates, built.evidence(latencies=(built.latency([10.0] * 500, machine=SERVER),)))


@pytest.mark.parametrize(
    ("gates", "missing"),
    [
        (Gates(throughput=ThroughputGate(min_per_second=1)), "--scenario offline"),
        (Gates(cpu=CpuGate(max_ms=1)), "edgesmith bench"),
        (Gates(memory=MemoryGate(max_mb=1)), "fresh processes"),
        (Gates(start=StartGate(max_ms=1)), "fresh processes"),
        (Gates(download=DownloadGate(max_mb=1)), "footprint"),
        (Gates(regression=RegressionGate(max_slowdown=0.1)), "--against BASELINE"),
        (Gates(size=SizeGate(max_growth=0.1)), "--against"),
    ],
)
def test_a_gate_without_evidence_names_the_command_that_makes_it(gates: Gates, missing: str) -> None:
    with pytest.raises(UsageError, match=missing):
        judge(gates, built.evidence(baseline=None))


def test_evidence_of_another_artifact_is_refused_wherever_it_is() -> None:
    other = built.subject("int4")
    gates = Gates(size=SizeGate(max_mb=100))
    for name, part in (
        ("latencies", built.latency([10.0])),
        ("throughputs", built.throughput([1.0])),
        ("starts", built.start()),
        ("duets", built.duet(2.0)),
    ):
        with pytest.raises(ArtifactError, match="is of sha256:int8"):
            judge(gates, built.evidence(artifact=other, **{name: (part,)}))
    with pytest.raises(ArtifactError, match="footprint is of sha256:int8"):
        judge(gates, built.evidence(artifact=other, footprint=built.footprint()))
