"""Judge how fast a language model writes, and how long its users wait for the first text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from bench.gates.faults import UNSETTLED, busy_machine, count_threads, refuse_not_positive
from bench.gates.verdict import Outcome, Verdict, samples_to_settle, show, show_count
from bench.stats.dependence import percentile_inflation
from bench.stats.percentiles import PercentileBounds, bound_percentile
from edgesmith.gates import GenerationGate

if TYPE_CHECKING:
    from bench.scenarios.generation import Generation

__all__ = ["judge_first_text", "judge_writing"]


def judge_writing(gate: GenerationGate, generation: Generation) -> Verdict:
    """Judge how many tokens the median answer grows by in a second, after its first one.

    Bounds are those of the median answer's time for a token, which hold for any distribution; answers that follow
    each other at a like speed count for fewer.

    Args:
        gate: Has `min_tokens_per_second`, and a confidence.
        generation: Every chunk of every answer.

    Raises:
        ArtifactError: A token took no time.
    """
    assert gate.min_tokens_per_second is not None
    tpot = generation.tpot_ns.astype(np.float64) / 1e9
    if len(tpot):
        refuse_not_positive(tpot, "time of a token")
    times = bound_percentile(tpot, 50, gate.confidence, percentile_inflation(tpot, 50))
    # The longer a token takes, the fewer there are in a second.
    rates = [None if one is None else 1 / one for one in (times.estimate, times.upper, times.lower)]
    symbol = " tokens/s"
    return _verdict(gate, generation, times, rates, gate.min_tokens_per_second, "/s", symbol, at_least=True)


def judge_first_text(gate: GenerationGate, generation: Generation) -> Verdict:
    """Judge a percentile of the time from a request to its first text; an answer without text is later than any limit.

    Args:
        gate: Has `max_ttft_ms`, which percentile, and a confidence.
        generation: Every chunk of every answer.

    Raises:
        ArtifactError: A text took no time.
    """
    assert gate.max_ttft_ms is not None
    refuse_not_positive(generation.first_token_ns, "time to the first token")
    times = generation.percentile("ttft", gate.percentile, gate.confidence)
    figures = [times.estimate, times.lower, times.upper]
    symbol = f" ms to the first text at p{gate.percentile:g}"
    return _verdict(gate, generation, times, figures, gate.max_ttft_ms, "ms", symbol, at_least=False)


def _verdict(
    gate: GenerationGate,
    generation: Generation,
    times: PercentileBounds,
    figures: list[float | None],
    limit: float,
    unit: str,
    symbol: str,
    *,
    at_least: bool,
) -> Verdict:
    """Hold estimate, lower and upper bound against a limit."""
    estimate, lower, upper = figures
    outcome, said, needed = _compare(generation, times, figures, limit, symbol, at_least=at_least)
    worse, better = (lower, upper) if at_least else (upper, lower)
    n = times.num_samples
    evidence = (
        f"{n:,} answers; {generation.inputs}; {count_threads(generation.threads)}; measured on "
        f"{generation.machine.name}; {100 * gate.confidence:g} % confidence"
    )
    shown = "" if estimate is None else f"measured {_shown(estimate, limit)}, "
    return Verdict(
        gate="generation",
        verdict=outcome,
        reason=f"{said} ({shown}{evidence}).",
        unit=unit,
        threshold=limit,
        estimate=estimate,
        bound=better if outcome is Outcome.FAIL else worse,
        confidence=gate.confidence,
        num_samples=n,
        samples="answers",
        detectable=None if estimate is None or worse is None else abs(estimate - worse),
        num_needed=needed,
        at_least=at_least,
        machine=generation.machine.name,
    )


def _shown(value: float, limit: float) -> str:
    return show(value, limit) if math.isfinite(value) else "no text"


def _compare(
    generation: Generation,
    times: PercentileBounds,
    figures: list[float | None],
    limit: float,
    symbol: str,
    *,
    at_least: bool,
) -> tuple[Outcome, str, int | None]:
    """Outcome, what is said of it, and how many answers would settle an open one."""
    estimate, lower, upper = figures
    asked = f"{limit:g}{symbol} {'are asked for' if at_least else 'are the limit'}"
    if not generation.is_settled:
        return Outcome.INCONCLUSIVE, UNSETTLED, None
    is_beyond = (upper is not None and upper < limit) if at_least else (lower is not None and lower > limit)
    is_within = (lower is not None and lower >= limit) if at_least else (upper is not None and upper <= limit)
    if is_within:
        bound = show(lower or 0.0, limit, rounding="down") if at_least else show(upper or 0.0, limit, rounding="up")
        return Outcome.PASS, f"{'at least' if at_least else 'at most'} {bound}{symbol}; {asked}", None
    if is_beyond:
        worst = upper if at_least else lower
        assert worst is not None
        bound = show(worst, limit, rounding="up" if at_least else "down") if math.isfinite(worst) else "more than any"
        said = f"{'at most' if at_least else 'at least'} {bound}{symbol}; {asked}"
        if busy := busy_machine(generation.conditions):
            return Outcome.INCONCLUSIVE, f"{said}, but {busy}", None
        return Outcome.FAIL, said, None
    if estimate is None or lower is None or upper is None:
        needed = max(times.num_required, times.num_samples + 1)
        said = f"{times.num_samples:,} answers are too few to bound it, needs ≥ {show_count(needed)}; {asked}"
        return Outcome.INCONCLUSIVE, said, needed
    if not math.isfinite(upper):
        return Outcome.INCONCLUSIVE, f"from {show(lower, limit, rounding='down')} on{symbol}; {asked}", None
    width = upper - estimate if (estimate <= limit) else estimate - lower
    settled = samples_to_settle(times.num_samples, width, abs(estimate - limit))
    hint = f"; about {show_count(settled)} answers would settle it" if settled else ""
    span = f"{show(lower, limit, rounding='down')} to {show(upper, limit, rounding='up')}"
    return Outcome.INCONCLUSIVE, f"{span}{symbol}, on either side of the limit; {asked}{hint}", settled
