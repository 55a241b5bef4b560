"""Judge a loss of accuracy on paired examples: is it shown to be within the margin?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bench.accuracy import Evaluation
from bench.stats.binomial import normal_quantile
from bench.stats.proportions import (
    PairedCounts,
    bound_drop,
    mcnemar_p_value,
    noninferiority_p_value,
    required_pairs,
    smallest_margin,
)
from bench.stats.resampling import Bounds, bootstrap_mean, paired_bootstrap
from bench.unseen import Unseen
from bench.verdict import Outcome, Verdict, show, show_count
from edgesmith.errors import UsageError
from edgesmith.gates import AccuracyGate

__all__ = ["judge_accuracy"]

POWER = 0.8
_MIN_RESAMPLED = 30
"""Below this many examples a resampled bound says nothing."""
_NUM_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class _Loss:
    """The loss of a metric with its bounds, in the metric's unit, positive when the artifact is worse."""

    drop: float
    lower: float
    upper: float
    is_within: bool
    """The loss is shown to be at most the margin."""
    is_beyond: bool
    """The loss is shown to be more than the margin."""
    detectable: float
    num_needed: int | None
    detail: str
    shortage: str = ""
    """Why these examples cannot certify the margin, however the artifact fares on them."""


def judge_accuracy(gate: AccuracyGate, artifact: Evaluation, baseline: Evaluation) -> Verdict:
    """Judge whether the artifact is worse than the baseline by at most the margin.

    A metric that counts right answers is judged by an exact test on the examples that changed sides; one that is a
    mean over examples by bootstrap-t; any other by a paired bootstrap, with what the rarest class may hide on top.

    Args:
        gate: Metric, margin and confidence.
        artifact: Evaluated on the same examples as `baseline`.
        baseline: What the loss is measured from.

    Raises:
        UsageError: The metric does not exist, or the evaluations are not of the same examples.
    """
    _refuse_unpaired(artifact, baseline)
    metric = gate.metric or artifact.default_metric
    if metric not in artifact.metrics or metric not in baseline.metrics:
        known = ", ".join(sorted(artifact.metrics))
        raise UsageError(f"{artifact.task} has no metric {metric!r}", mend=f"Use one of: {known}.")
    if metric not in artifact.scores or metric not in baseline.scores:
        loss = _resampled_loss(gate, metric, artifact, baseline)
    else:
        ours, theirs = artifact.scores[metric], baseline.scores[metric]
        sign = 1.0 if artifact.higher_is_better[metric] else -1.0
        is_right_or_wrong = sign > 0 and bool(np.isin(ours, (0, 1)).all() and np.isin(theirs, (0, 1)).all())
        loss = _counted_loss(gate, ours, theirs) if is_right_or_wrong else _mean_loss(gate, sign * (theirs - ours))
    open_or_fail = Outcome.FAIL if loss.is_beyond else Outcome.INCONCLUSIVE
    outcome = Outcome.PASS if loss.is_within else open_or_fail
    figures = f"{show(100 * baseline.metrics[metric])} → {show(100 * artifact.metrics[metric])} %"
    return Verdict(
        gate="accuracy",
        verdict=outcome,
        reason=_reason(outcome, gate, loss, f"{metric} {figures}", artifact.num_examples),
        unit=metric,
        threshold=gate.max_drop,
        estimate=loss.drop,
        bound=loss.lower if outcome is Outcome.FAIL else loss.upper,
        confidence=gate.confidence,
        num_samples=artifact.num_examples,
        detectable=loss.detectable,
        num_needed=loss.num_needed if outcome is Outcome.INCONCLUSIVE else None,
    )


def _refuse_unpaired(artifact: Evaluation, baseline: Evaluation) -> None:
    if artifact.task != baseline.task:
        raise UsageError(f"the artifact was evaluated as {artifact.task}, the baseline as {baseline.task}")
    if artifact.data_digest != baseline.data_digest or artifact.num_examples != baseline.num_examples:
        raise UsageError(
            f"artifact and baseline were evaluated on different examples "
            f"({artifact.num_examples:,} of {artifact.data_digest[:19]}…, "
            f"{baseline.num_examples:,} of {baseline.data_digest[:19]}…): they cannot be paired",
            mend="Evaluate both with the same --data file.",
        )


def _counted_loss(gate: AccuracyGate, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> _Loss:
    counts = PairedCounts.of(theirs == 1, ours == 1)
    lower, upper = bound_drop(counts, gate.confidence)
    alpha = 1 - gate.confidence
    mcnemar = mcnemar_p_value(counts.num_lost, counts.num_gained)
    return _Loss(
        drop=counts.drop,
        lower=lower,
        upper=upper,
        is_within=upper <= gate.max_drop and noninferiority_p_value(counts, gate.max_drop) <= alpha,
        is_beyond=lower > gate.max_drop and noninferiority_p_value(counts.swapped(), -gate.max_drop) <= alpha,
        detectable=smallest_margin(counts.num_pairs, counts.discordance, confidence=gate.confidence, power=POWER),
        num_needed=required_pairs(
            gate.max_drop, counts.discordance, confidence=gate.confidence, drop=counts.drop, power=POWER
        ),
        detail=f"{counts.num_lost} lost, {counts.num_gained} gained, McNemar p = {mcnemar:.2g}",
    )


def _mean_loss(gate: AccuracyGate, drops: NDArray[np.float64]) -> _Loss:
    """Judge a mean over examples. Where all drops are equal, what is left is the loss that n examples cannot show."""
    n = len(drops)
    unseen = smallest_margin(n, 0.0, confidence=gate.confidence)
    if n < 2:
        return _unknown_loss(gate, float(drops.mean()), n, unseen)
    bounds = bootstrap_mean(drops, confidence=gate.confidence)
    hidden = unseen if bounds.lower == bounds.upper else 0.0
    floor = max(_MIN_RESAMPLED, required_pairs(gate.max_drop, 0.0, confidence=gate.confidence, drop=0.0) or 0)
    loss = _bounded_loss(gate, bounds, float(drops.std(ddof=1)), n, hidden=hidden, floor=floor)
    return replace(loss, detectable=max(loss.detectable, unseen))


def _resampled_loss(gate: AccuracyGate, metric: str, artifact: Evaluation, baseline: Evaluation) -> _Loss:
    compute = _metric_of_indices(artifact, metric), _metric_of_indices(baseline, metric)
    sign = 1.0 if artifact.higher_is_better[metric] else -1.0
    n = artifact.num_examples

    def drop(indices: NDArray[np.int64]) -> float:
        return sign * (compute[1](indices) - compute[0](indices))

    unseen = Unseen.of(artifact, metric)
    hidden = unseen.bound(gate.confidence)
    if n < 2:
        return _unknown_loss(gate, drop(np.arange(n)), n, hidden)
    bounds = paired_bootstrap(drop, n, confidence=gate.confidence, num_resamples=_NUM_RESAMPLES)
    spread = (bounds.upper - bounds.lower) / (2 * max(normal_quantile(gate.confidence), 0.1)) * math.sqrt(n)
    loss = _bounded_loss(gate, bounds, spread, n, hidden=hidden, floor=_MIN_RESAMPLED)
    shown = f"{unseen.num_rows:,} rows of {unseen.what}"
    detail = f"{loss.detail}; {shown} may hide {show(100 * hidden, rounding='up')} points"
    if hidden <= gate.max_drop:
        return replace(loss, detail=detail)
    needed = unseen.required_rows(gate.max_drop, gate.confidence)
    wanted = f"needs ≥ {needed:,}" if needed is not None else "no number does"
    return replace(loss, detail=detail, shortage=f"{shown} are too few to certify it: it {wanted}")


def _metric_of_indices(evaluation: Evaluation, metric: str) -> Callable[[NDArray[np.int64]], float]:
    """The metric as a function of which examples are drawn."""
    from edgesmith.tasks import Example, get_task

    compute = get_task(evaluation.task).metrics[metric].compute
    examples = [Example(text="", target=target) for target in evaluation.targets]
    predictions = evaluation.predictions
    return lambda indices: compute(
        [predictions[index] for index in indices.tolist()], [examples[index] for index in indices.tolist()]
    )


def _bounded_loss(gate: AccuracyGate, bounds: Bounds, spread: float, n: int, *, hidden: float, floor: int) -> _Loss:
    """Judge resampled bounds, to which the loss that no example has met yet is added.

    Args:
        gate: Margin and confidence.
        bounds: By resampling.
        spread: Standard deviation of one example's contribution.
        n: How many examples.
        hidden: Loss that the examples may have missed.
        floor: Examples below which nothing passes.
    """
    quantiles = normal_quantile(gate.confidence) + normal_quantile(POWER)
    seen = quantiles * spread / math.sqrt(n)
    lower = bounds.lower - hidden if bounds.lower == bounds.upper else bounds.lower
    upper = bounds.upper + hidden
    growth = _growth_to_settle(gate.max_drop - bounds.estimate, seen, hidden)
    return _Loss(
        drop=bounds.estimate,
        lower=lower,
        upper=upper,
        is_within=upper <= gate.max_drop and n >= floor,
        is_beyond=lower > gate.max_drop and n >= _MIN_RESAMPLED,
        detectable=seen + hidden,
        num_needed=None if growth is None else max(floor, math.ceil(growth * n - 1e-9)),
        detail="bootstrap over the same examples",
    )


def _growth_to_settle(distance: float, seen: float, hidden: float) -> float | None:
    """How many times more examples it takes until seen / √growth + hidden / growth is the distance to the margin."""
    if distance == 0:
        return None
    if distance < 0:  # to show that a loss is beyond the margin, nothing hidden counts
        return (seen / distance) ** 2
    return ((seen + math.sqrt(seen**2 + 4 * hidden * distance)) / (2 * distance)) ** 2


def _unknown_loss(gate: AccuracyGate, drop: float, n: int, hidden: float) -> _Loss:
    """One example bounds nothing."""
    floor = max(_MIN_RESAMPLED, required_pairs(gate.max_drop, 0.0, confidence=gate.confidence, drop=0.0) or 0)
    bounds = Bounds(estimate=drop, lower=-1.0, upper=1.0, confidence=gate.confidence)
    return replace(_bounded_loss(gate, bounds, 0.0, n, hidden=0.0, floor=floor), detectable=hidden)


def _reason(outcome: Outcome, gate: AccuracyGate, loss: _Loss, figures: str, n: int) -> str:
    limit = 100 * gate.max_drop
    confidence = f"{100 * gate.confidence:g} % confidence"
    margin = f"{limit:g}-point margin"
    upper, lower = (show(100 * loss.upper, limit, rounding="up"), show(100 * loss.lower, limit, rounding="down"))
    smallest = show(100 * loss.detectable, rounding="up")
    seen = f"{n:,} examples ({loss.detail}) can certify a margin of {smallest} points or more"
    match outcome:
        case Outcome.PASS:
            said = f"the true drop is at most {upper} points at {confidence}, within the {margin}"
        case Outcome.FAIL:
            said = f"the true drop is at least {lower} points at {confidence}, beyond the {margin}"
        case Outcome.INCONCLUSIVE:
            said = f"the true drop may be {lower} to {upper} points at {confidence}, on either side of the {margin}"
            if loss.upper <= gate.max_drop or loss.lower > gate.max_drop:
                said = f"{n:,} examples are too few to bound the drop against the {margin}"
            if loss.shortage:
                said += f"; {loss.shortage}"
            if loss.num_needed is not None:
                seen += f"; about {show_count(max(loss.num_needed, n + 1))} would settle it if the drop stays as seen"
    return f"{figures}: {said}. {seen[0].upper()}{seen[1:]}."
