"""Judge percentiles of latency, by bounds that hold for every distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.gates.faults import (
    MAX_WAITING,
    UNSETTLED,
    busy_machine,
    count_threads,
    drifting,
    refuse_not_positive,
)
from bench.gates.verdict import Outcome, Rounding, Verdict, show, show_count
from bench.stats.percentiles import PercentileBounds, bound_percentile, required_samples
from edgesmith.gates import LatencyGate

if TYPE_CHECKING:
    from bench.load.result import LoadResult
    from bench.scenarios.latency import Latency

__all__ = ["judge_latency", "judge_load_latency", "requests_to_plan"]

_MOST_REQUESTS = 100_000_000
_MAX_LAG_MS = 1.0
_MAX_LAG_SHARE = 0.05
_EXPECTED_SLOW = 5
_EXPECTED_INFLATION = 3
_MOST_PLANNED = 20_000


def requests_to_plan(gate: LatencyGate) -> int:
    """How many requests to time so that a gate is likely to be decided.

    Enough for five slow ones, each request counting for a third since they depend on each other, up to 20,000:
    percentiles that need more take a longer run that somebody has to ask for.
    """
    needed = _EXPECTED_INFLATION * required_samples(gate.percentile, gate.confidence, _EXPECTED_SLOW)
    return min(_MOST_PLANNED, needed)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What a percentile's bounds say of a limit."""

    outcome: Outcome
    said: str
    needed: int | None = None


def judge_latency(gate: LatencyGate, latency: Latency) -> Verdict:
    """Judge whether a percentile is within its limit.

    Args:
        gate: Percentile, limit and confidence.
        latency: Samples of the gate's scenario.

    Raises:
        ArtifactError: A request took no time.
    """
    refuse_not_positive(latency.wall_ns, "wall_ns")
    bounds = latency.percentile(gate.percentile, gate.confidence)
    num_slow = int((latency.wall_ns > gate.max_ms * 1e6).sum())
    if not latency.is_settled:
        found = _Found(outcome=Outcome.INCONCLUSIVE, said=UNSETTLED)
    else:
        found = _compare(gate, bounds, num_slow)
        is_enough = bounds.num_samples >= required_samples(gate.percentile, gate.confidence)
        if is_enough and (drift := drifting(latency)):
            found = _Found(outcome=Outcome.INCONCLUSIVE, said=drift)
    if found.outcome is Outcome.PASS and latency.is_saturated:
        said = f"requests came faster than the engine answers ({latency.utilization:.0%} of its time): the queue grew"
        found = _Found(outcome=Outcome.INCONCLUSIVE, said=f"{said} until the end, and a longer run would be slower")
    if found.outcome is Outcome.FAIL and (excuse := _others_fault(gate, latency)):
        said = f"p{gate.percentile:g} is over {gate.max_ms:g} ms, but {excuse}"
        found = _Found(outcome=Outcome.INCONCLUSIVE, said=said)
    at = f" at {latency.rate:g} requests/s" if latency.rate is not None else ""
    evidence = (
        f"{bounds.num_samples:,} requests{at}, {num_slow:,} of them slower than the limit; {latency.inputs}; "
        f"{count_threads(latency.threads)}; measured on {latency.machine.name}"
    )
    return _verdict(gate, found, bounds, evidence, latency.machine.name)


def judge_load_latency(gate: LatencyGate, load: LoadResult) -> Verdict:
    """Judge a percentile of a load test, in which every failed request is later than any limit.

    Args:
        gate: Percentile, limit and confidence.
        load: What clients of a server saw.
    """
    bounds = load.percentile(gate.percentile, gate.confidence)
    num_slow = load.count_over(gate.max_ms)
    why_not = load.why_not_kept or _late_sending(gate, load)
    if why_not and not _fails_however_sent(gate, load):
        found = _Found(outcome=Outcome.INCONCLUSIVE, said=f"the load was not sent as asked: {why_not}")
    else:
        found = _compare(gate, bounds, num_slow)
        if found.outcome is Outcome.FAIL and _is_senders_fault(gate, load):
            said = f"p{gate.percentile:g} is over {gate.max_ms:g} ms, but without the late sending of the load"
            found = _Found(outcome=Outcome.INCONCLUSIVE, said=f"{said} generator itself it would not fail")
    evidence = (
        f"{bounds.num_samples:,} requests, {num_slow:,} of them slower than the limit or failed "
        f"({load.num_failed:,} failed); load {load.shape.description}; {_server(load)}; "
        f"sent by {load.machine.name}"
    )
    return _verdict(gate, found, bounds, evidence, load.machine.name)


def _server(load: LoadResult) -> str:
    from bench.load.result import SERVED_HERE

    if SERVED_HERE in load.notes:
        return "`edgesmith serve` with this artifact, on the machine that sent"
    return f"{load.url}, which serves this artifact as far as its user says"


def _late_sending(gate: LatencyGate, load: LoadResult) -> str:
    """Say so where requests left later than this gate's limit allows, whatever limit the load test was run with."""
    allowed_ms = max(_MAX_LAG_MS, _MAX_LAG_SHARE * gate.max_ms)
    percentile = max(99.0, gate.percentile)
    lag_ms = load.lag_percentile_ns(percentile) / 1e6
    if lag_ms <= allowed_ms:
        return ""
    shown = show(lag_ms, allowed_ms, rounding="up")
    share = f"{100 - percentile:.6g} %"
    return f"{share} of the requests left more than {shown} ms late, and {allowed_ms:g} ms are allowed"


def _fails_however_sent(gate: LatencyGate, load: LoadResult) -> bool:
    """Whether so many requests failed, in a load whose only fault is some lateness, that no sending would help."""
    if not load.is_complete or load.num_generator_faults or not load.num_requests:
        return False
    lower = load.percentile_without_lag(gate.percentile, gate.confidence).lower
    return lower is not None and math.isinf(lower)


def _is_senders_fault(gate: LatencyGate, load: LoadResult) -> bool:
    """Whether a percentile over the limit would not be, had each request been sent when it was due."""
    lower = load.percentile_without_lag(gate.percentile, gate.confidence).lower
    return lower is None or lower <= gate.max_ms


def _compare(gate: LatencyGate, bounds: PercentileBounds, num_slow: int) -> _Found:
    name, limit = f"p{gate.percentile:g}", gate.max_ms
    if bounds.lower is not None and bounds.lower > limit:
        if math.isinf(bounds.lower):
            said = f"{name} is later than any limit, so many requests failed; {limit:g} ms is the limit"
            return _Found(outcome=Outcome.FAIL, said=said)
        lower = _ms(bounds.lower, limit, "down")
        return _Found(outcome=Outcome.FAIL, said=f"{name} is at least {lower}, over the limit of {limit:g} ms")
    if bounds.upper is None:
        needed = max(bounds.num_required, bounds.num_samples + 1)
        bursts = ""
        if bounds.num_samples >= required_samples(gate.percentile, gate.confidence):
            worth = math.floor(bounds.num_samples / bounds.inflation)
            bursts = f" that come in bursts and say as much as {worth:,} independent ones"
        said = f"n too small for {name}: {bounds.num_samples:,} requests{bursts}, needs ≥ {show_count(needed)}"
        return _Found(outcome=Outcome.INCONCLUSIVE, said=said, needed=needed)
    if bounds.upper <= limit:
        upper = _ms(bounds.upper, limit, "up")
        return _Found(outcome=Outcome.PASS, said=f"{name} is at most {upper}, within the limit of {limit:g} ms")
    settled = _requests_to_settle(gate, num_slow, bounds)
    upper = _ms(bounds.upper, limit, "up")
    lower = "unknown" if bounds.lower is None else _ms(bounds.lower, limit, "down")
    hint = f"; about {show_count(settled)} requests would settle it" if settled else ""
    said = f"{name} may be {lower} to {upper}, on either side of the limit of {limit:g} ms{hint}"
    return _Found(outcome=Outcome.INCONCLUSIVE, said=said, needed=settled)


def _ms(value: float, limit: float, rounding: Rounding) -> str:
    return f"{show(value, limit, rounding=rounding)} ms" if math.isfinite(value) else "later than any limit"


def _requests_to_settle(gate: LatencyGate, num_slow: int, bounds: PercentileBounds) -> int | None:
    """Requests that would certify the percentile if slow ones stay as frequent; None if they are too frequent.

    Requests that depend on each other count for less: the same number is needed of what they are worth.
    """
    num_requests = bounds.num_samples
    slow_rate = num_slow / num_requests
    if slow_rate >= (100 - gate.percentile) / 100:
        return None
    inflation = bounds.inflation
    n = num_requests
    while n < _MOST_REQUESTS:
        num_worth = math.ceil(slow_rate * n / inflation)
        wanted = math.ceil(inflation * required_samples(gate.percentile, gate.confidence, num_worth))
        if wanted <= n:
            return max(n, num_requests + 1)
        n = max(wanted, n + 1)
    return None


def _others_fault(gate: LatencyGate, latency: Latency) -> str:
    """Why the requests may be slow for reasons that are not the artifact's; empty if none is known."""
    if latency.rate is None:
        own = bound_percentile(latency.cpu_ns / 1e6, gate.percentile, gate.confidence)
        is_slow_alone = own.lower is not None and own.lower > gate.max_ms
    else:  # requests wait for each other: the queue grows without others' help if the CPU time alone fills the time
        is_slow_alone = latency.rate * float(latency.cpu_ns.mean()) / 1e9 >= 1
    if is_slow_alone:
        return ""
    if latency.waiting_share > MAX_WAITING:
        return f"requests waited {latency.waiting_share:.0%} of the time for a processor that others used"
    is_known = latency.conditions is not None and latency.conditions.own_wait_share is not None
    return busy_machine(latency.conditions) if latency.rate is not None or is_known else ""


def _verdict(gate: LatencyGate, found: _Found, bounds: PercentileBounds, evidence: str, machine: str) -> Verdict:
    gap = bounds.upper - bounds.estimate if bounds.upper is not None and bounds.estimate is not None else None
    return Verdict(
        gate="latency",
        verdict=found.outcome,
        reason=f"{found.said} ({evidence}; {100 * gate.confidence:g} % confidence).",
        unit="ms",
        threshold=gate.max_ms,
        estimate=bounds.estimate,
        bound=bounds.lower if found.outcome is Outcome.FAIL else bounds.upper,
        confidence=gate.confidence,
        num_samples=bounds.num_samples,
        samples="requests",
        detectable=gap,
        num_needed=found.needed,
        machine=machine,
    )
