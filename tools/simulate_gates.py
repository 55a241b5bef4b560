#!/usr/bin/env python3
"""Measure how often the gates are wrong: models whose truth is known, judged many times on drawn examples.

    python tools/simulate_gates.py [--trials 2000] [--seed 0] [--only accuracy]

A PASS is wrong where the model is truly worse by the margin, a FAIL where it is as good as the limit. Each rate must
be at most what was promised, up to the error of that many trials. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bench.accuracy import Evaluation
from bench.gates.accuracy import judge_accuracy
from bench.gates.latency import judge_latency
from bench.gates.tripwires import judge_divergence, judge_flips
from bench.gates.verdict import Outcome, overall
from bench.machine.machine import describe_machine
from bench.scenarios.latency import Latency
from bench.stats.binomial import clopper_pearson, normal_quantile
from bench.stats.confusion import CLASS_METRICS
from bench.stats.resampling import cluster_ratio
from edgesmith.gates import AccuracyGate, DivergenceGate, FlipsGate, LatencyGate

Rng = np.random.Generator
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CLASS_SHARES = np.array([0.4, 0.3, 0.2, 0.1])
BASELINE_ACCURACY = 0.88
MACHINE = describe_machine()
BOTH = {Outcome.PASS: 0.05, Outcome.FAIL: 0.05}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A truth, and the verdicts on it that would be wrong."""

    gate: str
    truth: str
    promised: Mapping[Outcome, float]
    """Wrong verdict → the largest share of the trials in which it may come."""
    judge: Callable[[Rng], Outcome]
    """Draw data and judge it."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How often a verdict was wrong."""

    case: Case
    wrong: Outcome
    num_trials: int
    num_wrong: int
    num_open: int
    seconds: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share of wrong verdicts."""
        return clopper_pearson(self.num_wrong, self.num_trials, 0.95)

    @property
    def is_kept(self) -> bool:
        """Whether the promise is not refuted by these trials."""
        return clopper_pearson(self.num_wrong, self.num_trials, 0.998)[0] <= self.case.promised[self.wrong]


def simulate(case: Case, num_trials: int, seed: int) -> list[Rate]:
    """Judge one case many times: a rate for each verdict that would be wrong."""
    rng, start = np.random.default_rng(seed), time.process_time()
    outcomes = [case.judge(rng) for _ in range(num_trials)]
    return [
        Rate(
            case=case,
            wrong=wrong,
            num_trials=num_trials,
            num_wrong=outcomes.count(wrong),
            num_open=outcomes.count(Outcome.INCONCLUSIVE),
            seconds=time.process_time() - start,
        )
        for wrong in case.promised
    ]


def evaluation_of(metrics: Mapping[str, float], scores: Mapping[str, Floats], num_examples: int) -> Evaluation:
    """Evaluate without classes."""
    return Evaluation(
        task="feature-extraction",
        engine="simulated",
        artifact_digest=None,
        data_digest="sha256:simulated",
        batch_size=1,
        metrics=metrics,
        default_metric=next(iter(metrics)),
        higher_is_better=dict.fromkeys(metrics, True),
        labels=(),
        lines=tuple(range(num_examples)),
        targets=(0.0,) * num_examples,
        predictions=({},) * num_examples,
        scores=scores,
        seconds=1.0,
    )


LABELS = ("a", "b", "c", "d")
ANSWERS = tuple(
    {"label": label, "index": index, "score": 0.7, "scores": {name: 0.7 if name == label else 0.1 for name in LABELS}}
    for index, label in enumerate(LABELS)
)


def classified(targets: Ints, answers: Ints) -> Evaluation:
    """Evaluate four classes."""
    counts = np.zeros((1, 4, 4))
    np.add.at(counts[0], (targets, answers), 1)
    metrics = {name: float(compute(counts)[0]) for name, compute in CLASS_METRICS.items()}
    right = (targets == answers).astype(np.float64)
    metrics["accuracy"] = float(right.mean())
    return replace(
        evaluation_of(metrics, {"accuracy": right}, len(targets)),
        task="text-classification",
        default_metric="accuracy",
        labels=LABELS,
        targets=tuple(targets.tolist()),
        predictions=tuple(ANSWERS[answer] for answer in answers.tolist()),
    )


def draw_classes(rng: Rng, n: int, lost: float, gained: float) -> tuple[Evaluation, Evaluation]:
    """Draw an artifact and its baseline, which disagree at random.

    Args:
        rng: Random generator.
        n: Number of examples.
        lost: Share of the baseline's right answers that become wrong ones.
        gained: Share of its wrong answers that become right.
    """
    targets = rng.choice(4, n, p=CLASS_SHARES)
    wrong = (targets + rng.integers(1, 4, n)) % 4
    is_right = rng.random(n) < BASELINE_ACCURACY
    changes = rng.random(n) < np.where(is_right, lost, gained)
    baseline = np.where(is_right, targets, wrong)
    artifact = np.where(is_right ^ changes, targets, wrong)
    return classified(targets, artifact), classified(targets, baseline)


def drop_of(metric: str, lost: float, gained: float) -> float:
    """Give the true loss of a metric in the population that `draw_classes` draws from."""

    def value(accuracy: float) -> float:
        counts = CLASS_SHARES[:, None] * np.full((4, 4), (1 - accuracy) / 3)
        np.fill_diagonal(counts, CLASS_SHARES * accuracy)
        return float(CLASS_METRICS[metric](counts[None])[0])

    after = BASELINE_ACCURACY * (1 - lost) + (1 - BASELINE_ACCURACY) * gained
    if metric == "accuracy":
        return BASELINE_ACCURACY - after
    return value(BASELINE_ACCURACY) - value(after)


def lost_for(metric: str, margin: float, gained: float) -> float:
    """Solve for the share of lost answers at which a metric's true loss is the margin."""
    low, high = 0.0, 0.5
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if drop_of(metric, middle, gained) < margin else (low, middle)
    return high


def judge_classes(
    metrics: tuple[str, ...], margins: tuple[float, ...], n: int, lost: float, gained: float
) -> Callable[[Rng], Outcome]:
    """Judge metrics over classes of drawn answers."""
    gates = [AccuracyGate(metric=metric, max_drop=margin) for metric, margin in zip(metrics, margins, strict=True)]
    return lambda rng: overall(judge_accuracy(gates, *draw_classes(rng, n, lost, gained)))


def judge_mean(n: int, margin: float) -> Callable[[Rng], Outcome]:
    """Judge a mean over examples whose loss is rare and large: 4 % of them lose much, the margin on the whole."""
    gate = AccuracyGate(metric="pearson", max_drop=margin)

    def judge(rng: Rng) -> Outcome:
        losses = rng.normal(0, 0.01, n) + (rng.random(n) < 0.04) * rng.exponential(margin / 0.04, n)
        theirs = rng.normal(0.8, 0.2, n)
        pair = [
            evaluation_of({"pearson": float(scores.mean())}, {"pearson": scores}, n)
            for scores in (theirs - losses, theirs)
        ]
        return overall(judge_accuracy([gate], *pair))

    return judge


def lognormal_ms(rng: Rng, n: int) -> Floats:
    """Independent times, median 1 ms."""
    return rng.lognormal(0, 0.5, n)


def queue_ms(rng: Rng, n: int, load: float = 0.5) -> Floats:
    """Times in a queue with Poisson arrivals and a server of 1 ms (M/D/1)."""
    num_before = 500
    steps = 1 - rng.exponential(1 / load, n + num_before)
    walk = np.concatenate(([0.0], np.cumsum(steps[1:])))
    return np.asarray((walk - np.minimum.accumulate(walk) + 1)[num_before:])


def judge_times(draw: Callable[[Rng, int], Floats], n: int, gate: LatencyGate) -> Callable[[Rng], Outcome]:
    """Judge a percentile of drawn times."""

    def judge(rng: Rng) -> Outcome:
        wall_ns = np.round(draw(rng, n) * 1e6).astype(np.int64)
        latency = Latency(
            scenario="single",
            engine="simulated",
            artifact_digest=None,
            inputs="none",
            wall_ns=wall_ns,
            cpu_ns=wall_ns,
            start_ns=np.cumsum(wall_ns),
            num_warm_up=0,
            num_inputs=n,
            is_settled=True,
            machine=MACHINE,
            load_after=0.0,
        )
        return judge_latency(gate, latency).verdict

    return judge


def judge_ratio(num_sessions: int, num_turns: int, limit: float, ratio: float) -> Callable[[Rng], Outcome]:
    """Judge whether one engine is slower than a limit; opening an engine changes its speed by 1 %, a turn by 3 %."""
    session = np.repeat(np.arange(num_sessions), num_turns)

    def judge(rng: Rng) -> Outcome:
        opened = rng.normal(0, 0.01, num_sessions)[session]
        times = ratio * np.exp(opened + rng.normal(0, 0.03, len(session)))
        bounds = cluster_ratio(times, np.ones(len(times)), session, confidence=0.95)
        if bounds.upper <= limit:
            return Outcome.PASS
        return Outcome.FAIL if bounds.lower > limit else Outcome.INCONCLUSIVE

    return judge


def accuracy_cases() -> Iterator[Case]:
    """Yield models that are worse by just the margin, and equal ones."""
    worse, equal, gained = "worse by just the margin", "equal, margin 0", 0.15
    for metric, margin, n in (
        ("accuracy", 0.01, 400),
        ("accuracy", 0.01, 1300),
        ("f1_macro", 0.02, 1300),
        ("mcc", 0.02, 1300),
    ):
        for truth, drop in ((worse, margin), (equal, 0.0)):
            judged = judge_classes((metric,), (drop,), n, lost_for(metric, drop, gained), gained)
            yield Case(gate=f"{metric}, n = {n:,}", truth=truth, promised=BOTH, judge=judged)
    for n in (400, 1000):
        yield Case(gate=f"mean accuracy, n = {n:,}", truth=worse, promised=BOTH, judge=judge_mean(n, 0.01))
    metrics, name = ("accuracy", "f1_macro", "recall_macro"), "three accuracy limits, n = 1,000"
    for truth, drop in (("worse by just each margin", 0.02), ("equal in all, margins 0", 0.0)):
        lost = lost_for("accuracy", drop, gained)
        margins = tuple(max(0.0, drop_of(metric, lost, gained)) for metric in metrics)
        judged = judge_classes(metrics, margins, 1000, lost, gained)
        yield Case(gate=name, truth=truth, promised=BOTH, judge=judged)


def tripwire_cases() -> Iterator[Case]:
    """Yield answers that change just as often, and as far, as is allowed."""
    share = 0.02
    flips = FlipsGate(max_rate=share)
    divergence = DivergenceGate(max_mean_kld=share * 0.6 * float(np.log(7)))  # of 0.7, 0.1 … to 0.1, 0.7 …

    def changed(rng: Rng) -> tuple[Evaluation, Evaluation]:
        targets = rng.choice(4, 1000, p=CLASS_SHARES)
        answers = np.where(rng.random(1000) < share, (targets + 1) % 4, targets)
        return classified(targets, answers), classified(targets, targets)

    def judge_changed(rng: Rng) -> Outcome:
        return judge_flips(flips, *changed(rng)).verdict

    def judge_moved(rng: Rng) -> Outcome:
        return judge_divergence(divergence, *changed(rng)).verdict

    yield Case(gate="flips, n = 1,000", truth="at the limit", promised=BOTH, judge=judge_changed)
    yield Case(gate="divergence, n = 1,000", truth="at the limit", promised=BOTH, judge=judge_moved)


def timing_cases() -> Iterator[Case]:
    """Yield percentiles and ratios that lie just at their limits."""
    p99 = float(np.exp(0.5 * normal_quantile(0.99)))
    queued = float(np.quantile(queue_ms(np.random.default_rng(99), 8_000_000), 0.99))
    rarely = {Outcome.PASS: 0.01, Outcome.FAIL: 0.01}
    for name, draw, n, limit in (
        ("independent", lognormal_ms, 2000, p99),
        ("queue at 50 % load", queue_ms, 5000, queued),
    ):
        judged = judge_times(draw, n, LatencyGate(percentile=99, max_ms=limit, confidence=0.99))
        yield Case(gate=f"latency p99, {name}, n = {n:,}", truth="at the limit", promised=rarely, judge=judged)
    for num_sessions, num_turns in ((3, 20), (10, 6), (20, 6)):
        judged = judge_ratio(num_sessions, num_turns, 1.05, 1.05)
        gate = f"ratio of timings, {num_sessions} sessions of {num_turns} turns"
        yield Case(gate=gate, truth="at the limit", promised=BOTH, judge=judged)


def queue_cases() -> Iterator[Case]:
    """Yield percentiles of queues at their limits, the busier the more the requests depend on each other."""
    for load in (0.3, 0.5, 0.7, 0.8, 0.9):
        limits = np.quantile(queue_ms(np.random.default_rng(98), 10_000_000, load), [0.9, 0.99])
        for percentile, limit, confidence, n in ((90, limits[0], 0.95, 5000), (99, limits[1], 0.99, 20_000)):
            gate = LatencyGate(percentile=percentile, max_ms=float(limit), confidence=confidence)
            yield Case(
                gate=f"latency p{percentile}, queue at {load:.0%} load, n = {n:,}",
                truth="at the limit",
                promised={Outcome.PASS: 1 - confidence, Outcome.FAIL: 1 - confidence},
                judge=judge_times(partial(queue_ms, load=load), n, gate),
            )


def neighbour_cases() -> Iterator[Case]:
    """Yield ratios of timings in one session, whose pairs depend on their neighbours."""
    for correlation in (0.0, 0.3, 0.6, 0.8):
        for num_pairs in (20, 40, 100, 400):
            yield Case(
                gate=f"ratio, one session, {num_pairs} pairs, correlation {correlation}",
                truth="at the limit",
                promised=BOTH,
                judge=judge_neighbours(num_pairs, correlation),
            )


def judge_neighbours(num_pairs: int, correlation: float) -> Callable[[Rng], Outcome]:
    """Judge whether one engine is slower than an equal one, in one session with autocorrelated noise of 5 %."""

    def judge(rng: Rng) -> Outcome:
        noise = rng.normal(0, 0.05, num_pairs + 50)
        for index in range(1, len(noise)):
            noise[index] += correlation * noise[index - 1]
        bounds = cluster_ratio(
            np.exp(noise[50:]), np.ones(num_pairs), np.zeros(num_pairs), confidence=0.95, num_resamples=1000
        )
        if bounds.upper <= 1:
            return Outcome.PASS
        return Outcome.FAIL if bounds.lower > 1 else Outcome.INCONCLUSIVE

    return judge


FAMILIES: Mapping[str, Callable[[], Iterator[Case]]] = {
    "accuracy": accuracy_cases,
    "tripwires": tripwire_cases,
    "timings": timing_cases,
}
STRAINED: Mapping[str, Callable[[], Iterator[Case]]] = {"queues": queue_cases, "neighbours": neighbour_cases}
"""Dependence as strong as it comes; run on request, to see where promises end."""


def to_row(rate: Rate) -> str:
    """Write a row of the table."""
    low, high = rate.interval
    case, share = rate.case, rate.num_wrong / rate.num_trials
    return (
        f"| {case.gate} | {case.truth} | {rate.wrong.value} | {case.promised[rate.wrong]:.0%} | {share:.2%} "
        f"| {low:.2%} to {high:.2%} | {rate.num_open / rate.num_trials:.0%} |"
    )


def main() -> int:
    """Print the table; 1 if a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[*FAMILIES, *STRAINED])
    options = parser.parse_args()
    write = sys.stdout.write
    write("| gate | truth | wrong verdict | promised at most | measured | 95 % interval | INCONCLUSIVE |\n")
    write("| --- | --- | --- | --- | --- | --- | --- |\n")
    are_kept, start = True, time.process_time()
    for name in [options.only] if options.only else FAMILIES:
        for case in {**FAMILIES, **STRAINED}[name]():
            for rate in simulate(case, options.trials, options.seed):
                are_kept &= rate.is_kept
                write(to_row(rate) + "\n")
            sys.stderr.write(f"{case.gate}, {case.truth}: {rate.seconds:.1f} s\n")
            sys.stdout.flush()
    write(f"\n{options.trials:,} trials a row, seed {options.seed}, {time.process_time() - start:.0f} s of CPU time.\n")
    return 0 if are_kept else 1


if __name__ == "__main__":
    sys.exit(main())
