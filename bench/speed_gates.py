"""Judge percentiles of latency, and the speed-up over a baseline."""

from __future__ import annotations

import math

from bench.duet import MIN_PAIRS, Duet
from bench.latency import Latency
from bench.stats.percentiles import PercentileBounds, bound_percentile, required_samples
from bench.verdict import Outcome, Verdict, show, show_count
from edgesmith.gates import LatencyGate, SpeedGate

__all__ = ["judge_latency", "judge_speed"]

_UNSETTLED = "the engine never ran at one speed during warm-up (three windows within 5 %): the machine is too busy"
_MAX_WAITING = 0.1
"""Share of the time without a processor, from which on slow requests may be the machine's fault."""
_MOST_REQUESTS = 100_000_000


def judge_latency(gate: LatencyGate, latency: Latency) -> Verdict:
    """Judge whether a percentile is within its limit, by distribution-free bounds.

    Args:
        gate: Percentile, limit and confidence.
        latency: Samples of the gate's scenario.
    """
    bounds = latency.percentile(gate.percentile, gate.confidence)
    name, limit = f"p{gate.percentile:g}", gate.max_ms
    num_slow = int((latency.wall_ns > limit * 1e6).sum())
    needed: int | None = None
    if not latency.is_settled:
        outcome, said = Outcome.INCONCLUSIVE, _UNSETTLED
    elif bounds.lower is not None and bounds.lower > limit and _is_others_fault(gate, latency):
        share = f"{latency.waiting_share:.0%}"
        outcome = Outcome.INCONCLUSIVE
        said = f"{name} is over {limit:g} ms, but requests waited {share} of the time for a processor that others used"
    elif bounds.lower is not None and bounds.lower > limit:
        lower = show(bounds.lower, limit, rounding="down")
        outcome, said = Outcome.FAIL, f"{name} is at least {lower} ms, over the limit of {limit:g} ms"
    elif bounds.upper is None:
        needed = bounds.num_required
        outcome = Outcome.INCONCLUSIVE
        said = f"n too small for {name}: {bounds.num_samples:,} requests, needs ≥ {needed:,}"
    elif bounds.upper <= limit:
        upper = show(bounds.upper, limit, rounding="up")
        outcome, said = Outcome.PASS, f"{name} is at most {upper} ms, within the limit of {limit:g} ms"
    else:
        needed = _requests_to_settle(gate, num_slow, latency.num_requests)
        outcome, said = Outcome.INCONCLUSIVE, _either_side(bounds, name, limit, needed)
    evidence = (
        f"{latency.num_requests:,} requests, {num_slow:,} of them slower than the limit; {latency.inputs}; "
        f"measured on {latency.machine.name}; {100 * gate.confidence:g} % confidence"
    )
    gap = bounds.upper - bounds.estimate if bounds.upper is not None and bounds.estimate is not None else None
    return Verdict(
        gate="latency",
        verdict=outcome,
        reason=f"{said} ({evidence}).",
        unit="ms",
        threshold=limit,
        estimate=bounds.estimate,
        bound=bounds.lower if outcome is Outcome.FAIL else bounds.upper,
        confidence=gate.confidence,
        num_samples=latency.num_requests,
        detectable=gap,
        num_needed=needed,
    )


def _is_others_fault(gate: LatencyGate, latency: Latency) -> bool:
    """Whether the requests were slow because the machine was busy: their own CPU time may be within the limit."""
    own = bound_percentile(latency.cpu_ns / 1e6, gate.percentile, gate.confidence)
    return latency.waiting_share > _MAX_WAITING and (own.lower is None or own.lower <= gate.max_ms)


def _either_side(bounds: PercentileBounds, name: str, limit: float, needed: int | None) -> str:
    upper = show(bounds.upper or 0.0, limit, rounding="up")
    lower = "unknown" if bounds.lower is None else f"{show(bounds.lower, limit, rounding='down')} ms"
    hint = f"; about {show_count(needed)} requests would settle it" if needed else ""
    return f"{name} may be {lower} to {upper} ms, on either side of the limit of {limit:g} ms{hint}"


def _requests_to_settle(gate: LatencyGate, num_slow: int, num_requests: int) -> int | None:
    """Requests that would certify the percentile if slow ones stay as frequent; None if they are too frequent."""
    slow_rate = num_slow / num_requests
    if slow_rate >= (100 - gate.percentile) / 100:
        return None
    n = num_requests
    while n < _MOST_REQUESTS:
        wanted = required_samples(gate.percentile, gate.confidence, math.ceil(slow_rate * n))
        if wanted <= n:
            return n
        n = max(wanted, n + 1)
    return None


def judge_speed(gate: SpeedGate, duet: Duet) -> Verdict:
    """Judge whether the artifact takes so many times less CPU time than the baseline.

    Args:
        gate: Ratio and confidence.
        duet: Both engines' times, taken in turns.
    """
    bounds, limit = duet.speedup(gate.confidence), gate.min_speedup
    spread = max(bounds.estimate - bounds.lower, bounds.upper - bounds.estimate)
    lower, upper = show(bounds.lower, limit, rounding="down"), show(bounds.upper, limit, rounding="up")
    needed: int | None = None
    if not duet.is_settled:
        outcome, said = Outcome.INCONCLUSIVE, _UNSETTLED
    elif duet.num_pairs < MIN_PAIRS:
        needed = MIN_PAIRS
        outcome, said = Outcome.INCONCLUSIVE, f"{duet.num_pairs} pairs of turns are too few, needs ≥ {MIN_PAIRS}"
    elif bounds.lower >= limit:
        outcome, said = Outcome.PASS, f"at least {lower}× less CPU time than the baseline; {limit:g}× is asked for"
    elif bounds.upper < limit:
        outcome, said = Outcome.FAIL, f"at most {upper}× less CPU time than the baseline; {limit:g}× is asked for"
    else:
        distance = abs(bounds.estimate - limit)
        needed = math.ceil(duet.num_pairs * (spread / distance) ** 2) if distance > 0 else None
        hint = f"; about {show_count(needed)} pairs of turns would settle it" if needed else ""
        said = f"{lower}× to {upper}× less CPU time than the baseline, on either side of {limit:g}×{hint}"
        outcome = Outcome.INCONCLUSIVE
    evidence = (
        f"estimate {show(bounds.estimate, limit)}×, {duet.num_pairs:,} pairs of turns of {duet.turn_requests} "
        f"requests; {duet.inputs}; measured on {duet.machine.name}; {100 * gate.confidence:g} % confidence; "
        f"smallest visible difference {show(spread)}×"
    )
    return Verdict(
        gate="speed",
        verdict=outcome,
        reason=f"{said} ({evidence}).",
        unit="×",
        threshold=limit,
        estimate=bounds.estimate,
        bound=bounds.upper if outcome is Outcome.FAIL else bounds.lower,
        confidence=gate.confidence,
        num_samples=duet.num_pairs,
        detectable=spread,
        num_needed=needed,
    )
