"""Bound a metric, or its loss against a baseline, on the examples that were evaluated.

A metric that counts right answers is bounded exactly; one that is a mean over examples by bootstrap-t; any other by
a bootstrap over the examples, with what the rarest class may hide on top.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.accuracy import Evaluation
from bench.gates.unseen import Unseen
from bench.gates.verdict import samples_to_settle, show
from bench.stats.binomial import binomial_cdf, clopper_pearson, normal_quantile
from bench.stats.confusion import CLASS_METRICS, class_statistic
from bench.stats.proportions import (
    PairedCounts,
    bound_drop,
    mcnemar_p_value,
    noninferiority_p_value,
    required_pairs,
    smallest_margin,
)
from bench.stats.resampling import Bounds, bootstrap_counts, bootstrap_mean, paired_bootstrap

__all__ = ["Shortfall", "bound_drop_of", "bound_shortfall"]

POWER = 0.8
_MIN_RESAMPLED = 30
"""Below this many examples a resampled bound says nothing."""
_NUM_RESAMPLES = 1000
_SMALLEST_MARGIN = 1e-12

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Shortfall:
    """How much worse than it should be a metric is: the loss against a baseline, or what is missing to a figure.

    In the metric's unit, positive when the artifact is worse.
    """

    estimate: float
    lower: float
    upper: float
    is_within: bool
    """It is shown to be at most the margin."""
    is_beyond: bool
    """It is shown to be more than the margin."""
    detectable: float
    """The smallest margin that these examples could have certified for an artifact without a shortfall."""
    num_needed: int | None
    detail: str
    shortage: str = ""
    """Why these examples cannot certify the margin, however the artifact fares on them."""
    p_beyond: float | None = None
    """Exact probability of evidence this bad if the shortfall were just the margin; None where bounds must do."""


def bound_drop_of(
    metric: str, artifact: Evaluation, baseline: Evaluation, *, margin: float, confidence: float
) -> Shortfall:
    """Bound the loss of a metric against a baseline on the same examples.

    Args:
        metric: Of both evaluations.
        artifact: Evaluated on the same examples as `baseline`.
        baseline: What the loss is measured from.
        margin: What the loss is held against.
        confidence: One-sided.
    """
    sign = 1.0 if artifact.higher_is_better[metric] else -1.0
    n = artifact.num_examples
    if metric in artifact.scores and metric in baseline.scores:
        ours, theirs = artifact.scores[metric], baseline.scores[metric]
        if sign > 0 and _are_counts(ours) and _are_counts(theirs):
            return _counted_drop(PairedCounts.of(theirs == 1, ours == 1), margin, confidence)
        return _mean_shortfall(sign * (theirs - ours), margin, confidence)
    bounds = _bootstrap(metric, (artifact, baseline), lambda values: sign * (values[1] - values[0]), confidence)
    return _resampled_shortfall(bounds, n, Unseen.of(artifact, metric), margin)


def bound_shortfall(metric: str, artifact: Evaluation, *, least: float, confidence: float) -> Shortfall:
    """Bound what a metric lacks to the figure it must reach: least − metric, held against 0.

    Args:
        metric: Higher is better.
        artifact: The evaluation.
        least: The figure to reach.
        confidence: One-sided.
    """
    if metric in artifact.scores:
        scores = artifact.scores[metric]
        if _are_counts(scores):
            return _counted_shortfall(int(scores.sum()), len(scores), least, confidence)
        return _mean_shortfall(least - scores, 0.0, confidence)
    bounds = _bootstrap(metric, (artifact,), lambda values: least - values[0], confidence)
    return _resampled_shortfall(bounds, artifact.num_examples, Unseen.of(artifact, metric), 0.0)


def _are_counts(scores: NDArray[np.float64]) -> bool:
    return bool(np.isin(scores, (0, 1)).all())


def _counted_drop(counts: PairedCounts, margin: float, confidence: float) -> Shortfall:
    lower, upper = bound_drop(counts, confidence)
    alpha = 1 - confidence
    p_beyond = noninferiority_p_value(counts.swapped(), -margin)
    mcnemar = mcnemar_p_value(counts.num_lost, counts.num_gained)
    needed = None  # so small a margin would take more examples than can be counted
    if margin == 0 or margin >= _SMALLEST_MARGIN:
        needed = required_pairs(margin, counts.discordance, confidence=confidence, drop=counts.drop, power=POWER)
    return Shortfall(
        estimate=counts.drop,
        lower=lower,
        upper=upper,
        is_within=upper <= margin and noninferiority_p_value(counts, margin) <= alpha,
        is_beyond=lower > margin and p_beyond <= alpha,
        detectable=smallest_margin(counts.num_pairs, counts.discordance, confidence=confidence, power=POWER),
        num_needed=needed,
        detail=f"{counts.num_lost} lost, {counts.num_gained} gained, McNemar p = {mcnemar:.2g}",
        p_beyond=p_beyond,
    )


def _counted_shortfall(num_right: int, n: int, least: float, confidence: float) -> Shortfall:
    """Source: Clopper & Pearson, Biometrika 26 (1934); the p-value is the binomial test's."""
    low, high = clopper_pearson(num_right, n, 2 * confidence - 1)
    rate = num_right / n
    lower, upper = least - high, least - low
    settled = samples_to_settle(n, rate - low if rate >= least else high - rate, abs(rate - least))
    if num_right == n and 0 < least < 1:
        settled = math.ceil(math.log(1 - confidence) / math.log(least) - 1e-9)
    return Shortfall(
        estimate=least - rate,
        lower=lower,
        upper=upper,
        is_within=upper <= 0,
        is_beyond=lower > 0,
        detectable=rate - low,
        num_needed=settled,
        detail=f"{num_right:,} right, exact binomial bound",
        p_beyond=binomial_cdf(num_right, n, min(1.0, max(0.0, least))),
    )


def _mean_shortfall(values: NDArray[np.float64], margin: float, confidence: float) -> Shortfall:
    """Bound a mean over examples. Where all values are equal, what is left is the loss that n examples cannot show."""
    n = len(values)
    unseen = smallest_margin(n, 0.0, confidence=confidence)
    if n < 2:
        return _unknown(float(values.mean()), n, margin, confidence)
    bounds = bootstrap_mean(values, confidence=confidence)
    hidden = unseen if bounds.lower == bounds.upper else 0.0
    floor = _MIN_RESAMPLED
    if margin > 0:
        floor = max(floor, required_pairs(margin, 0.0, confidence=confidence, drop=0.0) or 0)
    spread = float(values.std(ddof=1))
    return _resampled(bounds, spread, n, margin, hidden=hidden, floor=floor, least_detectable=unseen)


def _bootstrap(
    metric: str,
    evaluations: Sequence[Evaluation],
    combine: Callable[[Sequence[Floats]], Floats],
    confidence: float,
) -> Bounds:
    """Bound a figure over the evaluations' metrics, of the same examples. One example gives no bound."""
    n = evaluations[0].num_examples
    if metric in CLASS_METRICS and evaluations[0].labels:
        targets = [int(target or 0) for target in evaluations[0].targets]
        answers = [[one["index"] for one in evaluation.predictions] for evaluation in evaluations]
        counts, statistic = class_statistic(metric, targets, answers, combine)
        if n < 2:
            return _boundless(float(statistic(counts[None].astype(np.float64))[0]), confidence)
        return bootstrap_counts(statistic, counts, confidence=confidence, num_resamples=_NUM_RESAMPLES)
    computes = [_metric_of_indices(evaluation, metric) for evaluation in evaluations]

    def figure(indices: Indices) -> float:
        return float(combine([np.array(compute(indices)) for compute in computes]))

    if n < 2:
        return _boundless(figure(np.arange(n)), confidence)
    return paired_bootstrap(figure, n, confidence=confidence, num_resamples=_NUM_RESAMPLES)


def _boundless(estimate: float, confidence: float) -> Bounds:
    return Bounds(estimate=estimate, lower=-math.inf, upper=math.inf, confidence=confidence)


def _resampled_shortfall(bounds: Bounds, n: int, unseen: Unseen, margin: float) -> Shortfall:
    confidence = bounds.confidence
    hidden = unseen.bound(confidence)
    if n < 2:
        return _unknown(bounds.estimate, n, margin, confidence)
    spread = (bounds.upper - bounds.lower) / (2 * max(normal_quantile(confidence), 0.1)) * math.sqrt(n)
    shown = f"{unseen.num_rows:,} rows of {unseen.what}"
    detail = f"; {shown} may hide {show(100 * hidden, rounding='up')} points"
    shortage = ""
    if margin > 0 and hidden > margin:
        needed = unseen.required_rows(margin, confidence)
        wanted = f"needs ≥ {needed:,}" if needed is not None else "no number does"
        shortage = f"{shown} are too few to certify it: it {wanted}"
    return _resampled(bounds, spread, n, margin, hidden=hidden, floor=_MIN_RESAMPLED, detail=detail, shortage=shortage)


def _resampled(
    bounds: Bounds,
    spread: float,
    n: int,
    margin: float,
    *,
    hidden: float,
    floor: int,
    least_detectable: float = 0.0,
    detail: str = "",
    shortage: str = "",
) -> Shortfall:
    """Judge resampled bounds, to which the loss that no example has met yet is added.

    Args:
        bounds: By resampling.
        spread: Standard deviation of one example's contribution.
        n: How many examples.
        margin: What is judged.
        hidden: Loss that the examples may have missed.
        floor: Examples below which nothing passes.
        least_detectable: Below this no margin can be certified with n examples.
        detail: Said of the bounds.
        shortage: See `Shortfall`.
    """
    quantiles = normal_quantile(bounds.confidence) + normal_quantile(POWER)
    seen = quantiles * spread / math.sqrt(n)
    lower = bounds.lower - hidden if bounds.lower == bounds.upper else bounds.lower
    upper = bounds.upper + hidden
    growth = _growth_to_settle(margin - bounds.estimate, seen, hidden)
    return Shortfall(
        estimate=bounds.estimate,
        lower=lower,
        upper=upper,
        is_within=upper <= margin and n >= floor,
        is_beyond=lower > margin and n >= _MIN_RESAMPLED,
        detectable=max(seen + hidden, least_detectable),
        num_needed=None if growth is None else max(floor, math.ceil(growth * n - 1e-9)),
        detail=f"bootstrap over the same examples{detail}",
        shortage=shortage,
    )


def _growth_to_settle(distance: float, seen: float, hidden: float) -> float | None:
    """How many times more examples it takes until seen / √growth + hidden / growth is the distance to the margin."""
    if distance == 0:
        return None
    if distance < 0:  # to show that a loss is beyond the margin, nothing hidden counts
        return (seen / distance) ** 2
    return ((seen + math.sqrt(seen**2 + 4 * hidden * distance)) / (2 * distance)) ** 2


def _unknown(estimate: float, n: int, margin: float, confidence: float) -> Shortfall:
    """One example bounds nothing."""
    needed = required_pairs(margin, 0.0, confidence=confidence, drop=0.0) if margin > 0 else None
    return Shortfall(
        estimate=estimate,
        lower=estimate - 1.0,
        upper=estimate + 1.0,
        is_within=False,
        is_beyond=False,
        detectable=1.0,
        num_needed=max(_MIN_RESAMPLED, needed or 0),
        detail=f"{n} bounds nothing",
    )


def _metric_of_indices(evaluation: Evaluation, metric: str) -> Callable[[Indices], float]:
    """The metric as a function of which examples are drawn."""
    from bench.language.metrics import CORPUS_METRICS, corpus_metric
    from edgesmith.tasks import Example, get_task
    from edgesmith.tasks.scoring import ratio_of_sums

    if metric in CORPUS_METRICS:
        return corpus_metric(metric, [one["statistics"][metric] for one in evaluation.predictions])
    known = get_task(evaluation.task).metrics[metric]
    examples = [Example(text="", target=target) for target in evaluation.targets]
    predictions = evaluation.predictions
    if known.ratio is not None:
        terms = known.ratio(predictions, examples)
        return lambda indices: ratio_of_sums(terms[indices])
    compute = known.compute
    return lambda indices: compute(
        [predictions[index] for index in indices.tolist()], [examples[index] for index in indices.tolist()]
    )
