"""Whether a new version may stay: its harm against the control's, judged whenever somebody looks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from serve.traffic.outcome import Outcome
from serve.traffic.sequences import Sums, difference_interval
from serve.traffic.settings import TrafficSettings

__all__ = ["Arm", "Comparison", "Finding", "State", "Units", "compare_arms"]

State: TypeAlias = Literal["undecided", "safe", "regression"]
_MS = 1_000_000


class Units:
    """Which keys the comparison has an observation of already.

    Versions are dealt out by key where there is one, so that a key and not a request is what is observed: requests of
    one client are alike, and counting them all takes a few clients' nature for the version's. The first of each key
    counts. The mean of more would be no better here: what is kept of it is its expectation, which is the same.

    Args:
        max_num: That are remembered; of more, the one that was not seen for longest is forgotten and may count again.
    """

    def __init__(self, max_num: int) -> None:
        self._max_num = max_num
        self._seen: OrderedDict[int, None] = OrderedDict()

    def is_new(self, unit: int | None) -> bool:
        """Whether this is the first of its key, and remember it; one without a key is one of its own."""
        if unit is None:
            return True
        if unit in self._seen:
            self._seen.move_to_end(unit)
            return False
        self._seen[unit] = None
        if len(self._seen) > self._max_num:
            self._seen.popitem(last=False)
        return True


@dataclass(slots=True, eq=False)
class Arm:
    """What one version has done. Written on the loop's thread alone.

    Attributes:
        answers: Requests that the comparison rests on; the sum is of those that failed.
        slow: Of them, the sum is of those that failed or took longer than the objective.
        feedback: Judgements that the comparison rests on; the sum is of 1 less their score.
        num_requests: All.
        num_failed: Of all requests, those that failed.
        num_slow: Of all requests, those that failed or took longer than the objective.
    """

    answers: Sums = field(default_factory=Sums)
    slow: Sums = field(default_factory=Sums)
    feedback: Sums = field(default_factory=Sums)
    num_requests: int = 0
    num_failed: int = 0
    num_slow: int = 0

    def add(self, outcome: Outcome, slo_ns: float, units: Units) -> None:
        """Count a request.

        Args:
            outcome: How it went.
            slo_ns: The objective.
            units: Those that the comparison has had an answer of.
        """
        self.num_requests += 1
        if not outcome.is_evidence:
            return
        is_fault = outcome.is_fault
        is_slow = is_fault or outcome.duration_ns > slo_ns
        self.num_failed += is_fault
        self.num_slow += is_slow
        if not units.is_new(outcome.unit):
            return
        # The sum first: a reader between the two sees a harm too many rather than one too few.
        self.answers.total += is_fault
        self.slow.total += is_slow
        self.answers.num += 1
        self.slow.num += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One kind of harm, compared.

    Attributes:
        harm: `failure`, `slow` or `feedback`.
        low: The canary's mean less the control's is at least this…
        high: … and at most this, at every moment of the comparison together, but for `alpha`.
        margin: What the difference may be.
        alpha: This kind's part of the error.
        num_canary: Requests that it rests on, of each key one.
        num_control: As `num_canary`.
        canary: Mean harm; None without requests.
        control: As `canary`.
    """

    harm: str
    low: float
    high: float
    margin: float
    alpha: float
    num_canary: int
    num_control: int
    canary: float | None
    control: float | None

    @property
    def state(self) -> State:
        """`regression` where the harm is proven larger than the margin, `safe` where it is proven smaller."""
        if self.low > self.margin:
            return "regression"
        return "safe" if self.high < self.margin else "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A canary against the control.

    Attributes:
        findings: One for each kind of harm.
        state: `regression` if any is, `safe` if all are that have been watched at all.
    """

    findings: tuple[Finding, ...]
    state: State

    @property
    def reason(self) -> str:
        """What decided, in words; empty while nothing did."""
        for one in self.findings:
            if one.state == "regression" and one.canary is not None and one.control is not None:
                return (
                    f"{one.harm}: {one.canary:.2%} of {one.num_canary} requests against {one.control:.2%} of "
                    f"{one.num_control}; worse by at least {one.low:.2%}, and {one.margin:.2%} are allowed"
                )
        return ""


def _judge(harm: str, canary: Sums, control: Sums, margin: float, alpha: float) -> Finding:
    # Copies, so that the figures of a finding are of one moment; each total is at most its number.
    one, other = (Sums(sums.num, min(sums.total, sums.num)) for sums in (canary, control))
    low, high = difference_interval(one, other, alpha)
    return Finding(
        harm=harm,
        low=low,
        high=high,
        margin=margin,
        alpha=alpha,
        num_canary=one.num,
        num_control=other.num,
        canary=one.mean,
        control=other.mean,
    )


def compare_arms(canary: Arm, control: Arm, settings: TrafficSettings) -> Comparison:
    """Judge a canary now. It may be done as often as one likes, and stopped whenever one likes.

    `alpha` is divided among the kinds of harm that are watched.
    """
    watched: list[tuple[str, Sums, Sums, float]] = [
        ("failure", canary.answers, control.answers, settings.failure_margin),
        ("feedback", canary.feedback, control.feedback, settings.feedback_margin),
    ]
    if settings.slo_ms is not None:
        watched.insert(1, ("slow", canary.slow, control.slow, settings.slow_margin))
    alpha = settings.alpha / len(watched)
    findings = tuple(_judge(harm, one, other, margin, alpha) for harm, one, other, margin in watched)
    return Comparison(findings=findings, state=_overall(findings))


def _overall(findings: Iterable[Finding]) -> State:
    seen = [one for one in findings if one.num_canary or one.harm != "feedback"]
    if any(one.state == "regression" for one in seen):
        return "regression"
    return "safe" if all(one.state == "safe" for one in seen) else "undecided"
