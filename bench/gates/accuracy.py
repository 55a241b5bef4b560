"""Judge accuracy: is a metric shown to be high enough, and its loss on the same examples within the margin?

Of several limits, a release passes when every one is shown at its own confidence: the intersection-union test, whose
level needs no correction. An artifact that is exactly as good as its baseline would though be failed by one of many
limits more often than by one alone, so the FAILs are held against Holm's adjusted levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.accuracy import Evaluation
from bench.gates.accuracy_bounds import Shortfall, bound_drop_of, bound_shortfall
from bench.gates.pairing import pick_metric, refuse_empty, refuse_unpaired
from bench.gates.verdict import Outcome, Verdict, show, show_count
from bench.stats.multiple import holm
from edgesmith.errors import UsageError
from edgesmith.gates import AccuracyGate

__all__ = ["judge_accuracy"]

_DIGEST_SHOWN = 19
"""`sha256:` and the first 12 digits."""


@dataclass(frozen=True, kw_only=True)
class _Limit:
    """One limit on one metric."""

    gate: str
    """Its place under `gates:`."""
    metric: str
    confidence: float
    max_drop: float | None
    """None for a limit on the metric itself, which then has `least`."""
    least: float | None
    artifact: Evaluation
    baseline: Evaluation | None

    @property
    def margin(self) -> float:
        """What the shortfall is held against."""
        return self.max_drop if self.max_drop is not None else 0.0

    def bound(self, confidence: float) -> Shortfall:
        """Bound the shortfall; each bound holds with `confidence` on its own."""
        if self.least is not None:
            return bound_shortfall(self.metric, self.artifact, least=self.least, confidence=confidence)
        assert self.baseline is not None
        return bound_drop_of(self.metric, self.artifact, self.baseline, margin=self.margin, confidence=confidence)

    def p_beyond(self, shortfall: Shortfall, num_limits: int) -> float:
        """Probability of evidence this bad if the shortfall were just the margin.

        Where no exact one exists, the smallest of the levels that Holm's procedure may hold it against and at which
        the bound is beyond the margin: the same decision.
        """
        if not shortfall.is_beyond:
            return 1.0
        if shortfall.p_beyond is not None:
            return shortfall.p_beyond
        alpha = 1 - self.confidence
        levels = [alpha / k for k in range(num_limits, 1, -1)]
        return next((level for level in levels if self.bound(1 - level).is_beyond), alpha)


def judge_accuracy(
    gates: Sequence[AccuracyGate], artifact: Evaluation, baseline: Evaluation | None = None
) -> list[Verdict]:
    """Judge whether metrics are high enough, and whether the artifact is worse by at most the margins.

    Args:
        gates: Metrics, limits and confidences; one at least.
        artifact: Evaluated on the same examples as `baseline`.
        baseline: What losses are measured from; needed for every `max_drop`.

    Returns:
        One verdict for each `max_drop` and each `min`.

    Raises:
        UsageError: A metric does not exist, the evaluations are not of the same examples, or a `min` is set on a
            metric where lower is better.
        ArtifactError: A metric or a score is not a finite number.

    Source: Berger, "Multiparameter hypothesis testing and acceptance sampling", Technometrics 24 (1982), for PASS;
    Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979), for FAIL.
    """
    refuse_empty(artifact)
    limits = [limit for gate in gates for limit in _limits_of(gate, artifact, baseline, is_alone=len(gates) == 1)]
    bounded = [limit.bound(limit.confidence) for limit in limits]
    p_values = [limit.p_beyond(one, len(limits)) for limit, one in zip(limits, bounded, strict=True)]
    adjusted = [float(p) for p in holm(p_values)]
    return [
        _verdict(limit, shortfall, p_value, len(limits))
        for limit, shortfall, p_value in zip(limits, bounded, adjusted, strict=True)
    ]


def _limits_of(
    gate: AccuracyGate, artifact: Evaluation, baseline: Evaluation | None, *, is_alone: bool
) -> list[_Limit]:
    metric = pick_metric(artifact, gate.metric)
    whole = _Limit(
        gate="accuracy" if is_alone else f"accuracy.{metric}",
        metric=metric,
        confidence=gate.confidence,
        max_drop=None,
        least=None,
        artifact=artifact,
        baseline=baseline,
    )
    limits = []
    if gate.max_drop is not None:
        if baseline is None:
            raise UsageError(
                "the accuracy gate's max_drop needs an evaluation of the baseline",
                mend="Make it with `edgesmith eval`.",
            )
        refuse_unpaired(artifact, baseline)
        pick_metric(baseline, metric)
        limits.append(replace(whole, max_drop=gate.max_drop))
    if gate.min is not None:
        if not artifact.higher_is_better[metric]:
            raise UsageError(
                f"the accuracy gate's min cannot limit {metric}: lower is better for it", mend="Set max_drop."
            )
        limits.append(replace(whole, gate=f"{whole.gate}.min", least=gate.min))
    return limits


def _verdict(limit: _Limit, shortfall: Shortfall, p_beyond: float, num_limits: int) -> Verdict:
    is_failed = shortfall.is_beyond and p_beyond <= 1 - limit.confidence
    open_or_fail = Outcome.FAIL if is_failed else Outcome.INCONCLUSIVE
    outcome = Outcome.PASS if shortfall.is_within else open_or_fail
    n = limit.artifact.num_examples
    needed = None
    if outcome is Outcome.INCONCLUSIVE and not shortfall.is_beyond and shortfall.num_needed is not None:
        needed = max(shortfall.num_needed, n + 1)
    several = ""
    if num_limits > 1:
        several = f" One of {num_limits} limits on accuracy, all of which must be shown"
        several += f"; p = {p_beyond:.2g} after Holm's correction." if shortfall.is_beyond else "."
    worse = shortfall.lower if outcome is Outcome.FAIL else shortfall.upper
    at_least = limit.least is not None
    return Verdict(
        gate=limit.gate,
        verdict=outcome,
        reason=(_level_reason if at_least else _drop_reason)(limit, outcome, shortfall, needed) + several,
        unit=limit.metric,
        threshold=limit.margin if limit.least is None else limit.least,
        estimate=shortfall.estimate if limit.least is None else limit.least - shortfall.estimate,
        bound=worse if limit.least is None else limit.least - worse,
        confidence=limit.confidence,
        num_samples=n,
        samples="examples",
        detectable=shortfall.detectable,
        num_needed=needed,
        at_least=at_least,
    )


def _drop_reason(limit: _Limit, outcome: Outcome, loss: Shortfall, needed: int | None) -> str:
    assert limit.baseline is not None
    n, points = limit.artifact.num_examples, 100 * limit.margin
    confidence = f"{100 * limit.confidence:g} % confidence"
    margin = f"{points:g}-point margin"
    before, after = limit.baseline.metrics[limit.metric], limit.artifact.metrics[limit.metric]
    upper, lower = (show(100 * loss.upper, points, rounding="up"), show(100 * loss.lower, points, rounding="down"))
    smallest = show(100 * loss.detectable, rounding="up")
    seen = f"{n:,} examples ({loss.detail}) can certify a margin of {smallest} points or more"
    match outcome:
        case Outcome.PASS:
            said = f"the true drop is at most {upper} points at {confidence}, within the {margin}"
        case Outcome.FAIL:
            said = f"the true drop is at least {lower} points at {confidence}, beyond the {margin}"
        case Outcome.INCONCLUSIVE:
            said = f"the true drop may be {lower} to {upper} points at {confidence}, on either side of the {margin}"
            if loss.is_beyond:
                said = f"the drop is beyond the {margin} on its own, but not after the correction for several limits"
            elif loss.upper <= limit.margin or loss.lower > limit.margin:
                said = f"{n:,} examples are too few to bound the drop against the {margin}"
            if loss.shortage:
                said += f"; {loss.shortage}"
            if needed is not None:
                seen += f"; about {show_count(needed)} would settle it if the drop stays as seen"
    seen = f"{seen[0].upper()}{seen[1:]}; {_data(limit)}"
    return f"{limit.metric} {show(100 * before)} → {show(100 * after)} %: {said}. {seen}."


def _level_reason(limit: _Limit, outcome: Outcome, lack: Shortfall, needed: int | None) -> str:
    assert limit.least is not None
    n, least = limit.artifact.num_examples, 100 * limit.least
    confidence = f"{100 * limit.confidence:g} % confidence"
    low = show(least - 100 * lack.upper, least, rounding="down")
    high = show(least - 100 * lack.lower, least, rounding="up")
    asked = f"at least {least:g} % is asked for"
    hint = ""
    match outcome:
        case Outcome.PASS:
            said = f"the true figure is at least {low} % at {confidence}; {asked}"
        case Outcome.FAIL:
            said = f"the true figure is at most {high} % at {confidence}; {asked}"
        case Outcome.INCONCLUSIVE:
            said = f"the true figure may be {low} to {high} % at {confidence}; {asked}"
            if lack.is_beyond:
                said = f"the figure is too low on its own, but not after the correction for several limits; {asked}"
            elif lack.upper <= 0 or lack.lower > 0:
                said = f"{n:,} examples are too few to bound the figure; {asked}"
            hint = f"; about {show_count(needed)} would settle it if the figure stays as seen" if needed else ""
    figure = show(100 * limit.artifact.metrics[limit.metric], least)
    return f"{limit.metric} {figure} %: {said}. {n:,} examples ({lack.detail}){hint}; {_data(limit)}."


def _data(limit: _Limit) -> str:
    digest = limit.artifact.data_digest
    return f"data {digest[:_DIGEST_SHOWN]}{'…' if len(digest) > _DIGEST_SHOWN else ''}"
