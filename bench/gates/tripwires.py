"""Judge how far the answers moved from the baseline's, right or wrong: an accuracy can stand while much changes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bench.accuracy import Evaluation
from bench.gates.pairing import refuse_unpaired
from bench.gates.verdict import Outcome, Rounding, Verdict, samples_to_settle, show, show_count
from bench.stats.binomial import clopper_pearson
from bench.stats.resampling import bootstrap_mean
from edgesmith.errors import ArtifactError, UsageError
from edgesmith.gates import DivergenceGate, FlipsGate

__all__ = ["judge_divergence", "judge_flips", "mean_divergences"]

_MIN_RESAMPLED = 30
"""Below this many examples a resampled bound says nothing."""
_SUM_TOLERANCE = 1e-3


def judge_flips(gate: FlipsGate, artifact: Evaluation, baseline: Evaluation) -> Verdict:
    """Judge the share of the examples that get another class than with the baseline.

    Args:
        gate: Largest share, and confidence.
        artifact: Evaluated on the same examples as `baseline`.
        baseline: What the answers are compared with.

    Raises:
        UsageError: The task has no classes, or the evaluations are not of the same examples.

    Source: Clopper & Pearson, Biometrika 26 (1934); flips as a measure of compression: Dutta et al., "Accuracy is
    not all you need", NeurIPS 2024.
    """
    _refuse_classless(artifact, baseline, "flips")
    n, limit = artifact.num_examples, gate.max_rate
    num_changed = int((_classes(artifact) != _classes(baseline)).sum())
    rate = num_changed / n
    lower, upper = clopper_pearson(num_changed, n, 2 * gate.confidence - 1)
    needed = None
    shown_lower, shown_upper = _percent(lower, limit, "down"), _percent(upper, limit, "up")
    if upper <= limit:
        outcome, said = Outcome.PASS, f"at most {shown_upper} of all answers change, within"
    elif lower > limit:
        outcome, said = Outcome.FAIL, f"at least {shown_lower} of all answers change, beyond"
    else:
        outcome, said = Outcome.INCONCLUSIVE, f"{shown_lower} to {shown_upper} of all answers change, on either side of"
        needed = _examples_to_settle(gate, rate, upper if rate <= limit else lower, n)
    evidence = f"{num_changed:,} of {n:,} examples got another answer; {100 * gate.confidence:g} % confidence"
    return Verdict(
        gate="flips",
        verdict=outcome,
        reason=f"{said} the limit of {_percent(limit)} ({evidence}{_hint(needed)}).",
        unit="share",
        threshold=limit,
        estimate=rate,
        bound=lower if outcome is Outcome.FAIL else upper,
        confidence=gate.confidence,
        num_samples=n,
        samples="examples",
        detectable=upper - rate,
        num_needed=needed,
    )


def _examples_to_settle(gate: FlipsGate, rate: float, bound: float, n: int) -> int | None:
    without_any = math.ceil(math.log(1 - gate.confidence) / math.log1p(-gate.max_rate) - 1e-9)
    if rate == 0:
        return without_any
    settled = samples_to_settle(n, abs(bound - rate), abs(gate.max_rate - rate))
    return None if settled is None else max(settled, without_any)


def judge_divergence(gate: DivergenceGate, artifact: Evaluation, baseline: Evaluation) -> Verdict:
    """Judge the mean divergence of the class probabilities from the baseline's.

    A row that is not among the examples is taken to diverge by one nat at most: an answer of e^-1 of the
    probability. So with t the asked confidence, no fewer than ln(1 − t) / ln(1 − limit) examples pass.

    Args:
        gate: Largest mean in nats, and confidence.
        artifact: Evaluated on the same examples as `baseline`.
        baseline: What the probabilities are compared with.

    Raises:
        UsageError: The task has no classes, the evaluations are not of the same examples, or they keep no
            probabilities.
        ArtifactError: A probability is not one.

    Source: Kullback & Leibler, "On information and sufficiency", Ann. Math. Stat. 22 (1951); bound: `bootstrap_mean`.
    """
    _refuse_classless(artifact, baseline, "divergence")
    limit, n = gate.max_mean_kld, artifact.num_examples
    values = mean_divergences(artifact, baseline)
    if n < 2:
        return _unbounded(gate, float(values.mean()), n)
    bounds = bootstrap_mean(values, confidence=gate.confidence)
    lower, upper = max(0.0, bounds.lower), max(0.0, bounds.upper)
    floor = _fewest(gate)
    needed = None
    shown_lower, shown_upper = (
        show(lower, limit, digits=4, rounding="down"),
        show(upper, limit, digits=4, rounding="up"),
    )
    if upper <= limit and n >= floor:
        outcome, said = Outcome.PASS, f"the mean divergence is at most {shown_upper} nats, within"
    elif lower > limit and n >= _MIN_RESAMPLED:
        outcome, said = Outcome.FAIL, f"the mean divergence is at least {shown_lower} nats, beyond"
    else:
        outcome = Outcome.INCONCLUSIVE
        said = f"the mean divergence may be {shown_lower} to {shown_upper} nats, on either side of"
        distance = abs(limit - bounds.estimate)
        width = upper - bounds.estimate if bounds.estimate <= limit else bounds.estimate - lower
        needed = samples_to_settle(n, width, distance) if upper > limit else floor
        needed = None if needed is None else max(needed, floor)
        if upper <= limit or lower > limit:
            said = f"{n:,} examples are too few to bound the mean divergence against"
    evidence = (
        f"mean {show(bounds.estimate, limit, digits=4)}, largest {show(float(values.max()), digits=4)} nats over "
        f"{n:,} examples; {100 * gate.confidence:g} % confidence"
    )
    return Verdict(
        gate="divergence",
        verdict=outcome,
        reason=f"{said} the limit of {limit:g} nats ({evidence}{_hint(needed)}).",
        unit="nats",
        threshold=limit,
        estimate=bounds.estimate,
        bound=lower if outcome is Outcome.FAIL else upper,
        confidence=gate.confidence,
        num_samples=n,
        samples="examples",
        detectable=upper - bounds.estimate,
        num_needed=needed,
    )


def _fewest(gate: DivergenceGate) -> int:
    """Examples below which rows that none of them stands for could hold the whole limit, at one nat each."""
    rare = min(gate.max_mean_kld, 0.5)
    return max(_MIN_RESAMPLED, math.ceil(math.log(1 - gate.confidence) / math.log1p(-rare) - 1e-9))


def _unbounded(gate: DivergenceGate, estimate: float, n: int) -> Verdict:
    needed = _fewest(gate)
    return Verdict(
        gate="divergence",
        verdict=Outcome.INCONCLUSIVE,
        reason=f"{n:,} example bounds no mean divergence ({100 * gate.confidence:g} % confidence{_hint(needed)}).",
        unit="nats",
        threshold=gate.max_mean_kld,
        estimate=estimate,
        bound=None,
        confidence=gate.confidence,
        num_samples=n,
        samples="examples",
        num_needed=needed,
    )


def mean_divergences(artifact: Evaluation, baseline: Evaluation) -> NDArray[np.float64]:
    """Divergence KL(baseline ‖ artifact) of every example in nats, float64 of shape [n].

    A probability that the artifact rounds to nothing counts as the smallest double, so the result is finite.

    Raises:
        UsageError: An evaluation keeps no probabilities.
        ArtifactError: A probability is not one.
    """
    theirs_NL, ours_NL = _probabilities(baseline, "baseline"), _probabilities(artifact, "artifact")
    tiny = np.finfo(np.float64).tiny
    log_ratios = np.log(np.maximum(theirs_NL, tiny)) - np.log(np.maximum(ours_NL, tiny))
    return np.asarray(np.maximum((theirs_NL * log_ratios).sum(axis=1), 0.0))


def _probabilities(evaluation: Evaluation, who: str) -> NDArray[np.float64]:
    """Probabilities of the classes, float64 of shape [N, L]."""
    try:
        rows = [[one["scores"][label] for label in evaluation.labels] for one in evaluation.predictions]
    except KeyError as error:
        raise UsageError(
            f"the {who}'s evaluation keeps no probability of every class: {error} is missing",
            mend="Evaluate again: `edgesmith eval`.",
        ) from error
    found = np.array(rows, dtype=np.float64)
    broken = ~np.isfinite(found).all(axis=1) | (found < 0).any(axis=1) | (abs(found.sum(axis=1) - 1) > _SUM_TOLERANCE)
    if broken.any():
        row = int(np.flatnonzero(broken)[0])
        raise ArtifactError(
            f"the {who}'s scores for line {evaluation.lines[row]} are no probabilities: {found[row].tolist()}",
            mend="Verify the artifact, then evaluate it again: `edgesmith verify`, `edgesmith eval`.",
        )
    return found


def _classes(evaluation: Evaluation) -> NDArray[np.int64]:
    return np.array([one["index"] for one in evaluation.predictions], dtype=np.int64)


def _refuse_classless(artifact: Evaluation, baseline: Evaluation, gate: str) -> None:
    if not artifact.labels:
        known = ", ".join(sorted(artifact.metrics))
        raise UsageError(
            f"the {gate} gate compares predicted classes, and {artifact.task} has none: it has {known}",
            mend=f"Set an accuracy gate on one of: {known}.",
        )
    refuse_unpaired(artifact, baseline)
    if artifact.labels != baseline.labels:
        raise UsageError(
            f"the artifact's classes are {', '.join(artifact.labels)}, the baseline's {', '.join(baseline.labels)}",
            mend="Compare models of the same classes in the same order.",
        )


def _percent(share: float, limit: float | None = None, rounding: Rounding = "near") -> str:
    if limit is None:
        return f"{100 * share:g} %"
    return f"{show(100 * share, 100 * limit, rounding=rounding)} %"


def _hint(needed: int | None) -> str:
    return f"; about {show_count(needed)} examples would settle it" if needed else ""
