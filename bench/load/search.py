"""Find the highest rate that a server still answers within a limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.gates.verdict import Outcome
from bench.load.plan import LoadPlan
from bench.load.result import LoadResult
from bench.load.run import run_load
from bench.load.schedule import constant
from bench.load.stored import FILES, LOAD
from bench.raw import pretty_json
from bench.stats.percentiles import required_samples
from edgesmith.errors import ServerError, UsageError
from edgesmith.files import atomic_write, storage_errors
from edgesmith.progress import SILENT, Progress

__all__ = ["SEARCH", "RateSearch", "SearchOptions", "Step", "find_rate", "judge_step", "look_confidence"]

SEARCH = "search.json"
_NUM_LOOKS = 2
_EXPECTED_SLOW = 3
"""Slow requests that a step can have and still certify the percentile."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Where to look and how closely."""

    start_rate: float = 10.0
    """Requests a second of the first step."""
    max_rate: float = 20_000.0
    precision: float = 0.05
    """Ends when the rates on the two sides of a verdict differ by this share at the most."""
    min_step_s: float = 5.0
    max_step_s: float = 90.0
    """A rate at which the requests for a verdict take longer than this stays inconclusive."""
    max_steps: int = 24

    def __post_init__(self) -> None:
        """Refuse what cannot be obeyed."""
        if not 0 < self.start_rate <= self.max_rate < math.inf:
            raise UsageError(f"rates from {self.start_rate:g} to {self.max_rate:g} requests/s")
        if not 0 < self.precision < 1 or not 0 < self.min_step_s <= self.max_step_s < math.inf or self.max_steps < 1:
            raise UsageError("precision must be in (0, 1), the steps' seconds above 0, their number at least 1")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One rate that was tried."""

    rate: float
    outcome: Outcome
    reason: str
    result: LoadResult

    @property
    def is_too_high(self) -> bool:
        """Which way to go on, where the verdict is open by the sample alone."""
        if self.outcome is not Outcome.INCONCLUSIVE:
            return self.outcome is Outcome.FAIL
        limit_ms = self.result.limit_ms or math.inf
        allowed = (100 - self.result.limit_percentile) / 100 * self.result.num_requests
        return self.result.count_over(limit_ms) > allowed


@dataclass(frozen=True, kw_only=True)
class RateSearch:
    """What a search found."""

    limit_ms: float
    percentile: float
    confidence: float
    steps: tuple[Step, ...]
    """In the order in which they were tried."""
    stopped_because: str
    """Why the search ended; empty while it goes on."""

    @property
    def highest_pass(self) -> float | None:
        """Highest rate certified to be within the limit, below every one that is certified not to be; or None."""
        fail = self.lowest_fail
        rates = [step.rate for step in self.steps if step.outcome is Outcome.PASS]
        return max((rate for rate in rates if fail is None or rate < fail), default=None)

    @property
    def lowest_fail(self) -> float | None:
        """Lowest rate certified to be over the limit; None if there was none."""
        return min((step.rate for step in self.steps if step.outcome is Outcome.FAIL), default=None)

    @property
    def sentence(self) -> str:
        """One line for a screen."""
        name = f"p{self.percentile:g} ≤ {self.limit_ms:g} ms"
        good = "no rate" if self.highest_pass is None else f"{self.highest_pass:,.4g} requests/s"
        bad = "none" if self.lowest_fail is None else f"{self.lowest_fail:,.4g} requests/s"
        tried = f", the best of {len(self.steps)} rates tried, each judged on its own" if self.highest_pass else ""
        return f"{name} holds at {good}{tried}; lowest rate at which it does not: {bad} ({self.stopped_because})"

    def summary(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "limit_ms": self.limit_ms,
            "percentile": self.percentile,
            "confidence": self.confidence,
            "confidence_of_a_look": look_confidence(self.confidence),
            "highest_pass": self.highest_pass,
            "lowest_fail": self.lowest_fail,
            "stopped_because": self.stopped_because,
            "steps": [
                {"rate": step.rate, "verdict": step.outcome.value, "reason": step.reason, "load": step.result.summary()}
                for step in self.steps
            ],
        }

    def save(self, folder: Path) -> None:
        """Write `search.json`, and each step's load into a folder of its own; an earlier search's steps are removed.

        Raises:
            StorageError: The folder cannot be written.
        """
        _remove_steps(folder)
        for number in range(1, len(self.steps) + 1):
            self.save_step(folder, number)

    def save_step(self, folder: Path, number: int) -> None:
        """Write one step, from 1 on, and `search.json`.

        Raises:
            StorageError: The folder cannot be written.
        """
        self.steps[number - 1].result.save(folder / f"step-{number:02d}")
        self.save_summary(folder)

    def save_summary(self, folder: Path) -> None:
        """Write `search.json`.

        Raises:
            StorageError: The folder cannot be written.
        """
        atomic_write(folder / SEARCH, pretty_json({"schema_version": 1} | self.summary()))


def find_rate(
    plan: LoadPlan,
    *,
    options: SearchOptions | None = None,
    out: Path | None = None,
    progress: Progress = SILENT,
    run: Callable[[LoadPlan], LoadResult] | None = None,
) -> RateSearch:
    """Double the rate until the limit is broken, then halve the interval; steps are as long as a verdict needs.

    Args:
        plan: The load; its limit, percentile and confidence decide. Its shape is constant: each step has its own.
        options: Where to look.
        out: Folder for the result and the steps, written after every step; None writes none.
        progress: Says each step's verdict.
        run: Runs one load; by default `run_load`.

    Raises:
        UsageError: The plan has no limit, or says what a search cannot obey.
        ServerError: Nobody listens, or what listens speaks no known protocol. Later than at the first step, that ends
            the search.
    """
    _check_plan(plan)
    chosen = options or SearchOptions()
    run_step = run or (lambda step_plan: run_load(step_plan, progress=progress))
    found = _no_steps(plan)
    rate = chosen.start_rate
    while not found.stopped_because:
        try:
            step = _try_rate(plan, rate, chosen, run_step)
        except ServerError as error:
            if not found.steps:
                raise
            found = replace(found, stopped_because=f"before {rate:,.4g} requests/s: {error.message}")
            break
        progress.note(f"{rate:,.4g} requests/s: {step.outcome.value}, {step.reason}")
        found = replace(found, steps=(*found.steps, step), stopped_because=step.result.why_not_kept)
        if not found.stopped_because:
            rate, why = _next_rate(found.steps, chosen)
            found = replace(found, stopped_because=why)
        if out is not None:
            if len(found.steps) == 1:
                _remove_steps(out)
            found.save_step(out, len(found.steps))
    if out is not None:
        found.save_summary(out)
    return found


def look_confidence(confidence: float) -> float:
    """Give the confidence of each of a rate's two looks, of which one that passes is enough.

    Source: Bonferroni's inequality: the chance that either errs is at most the sum of both.

    >>> look_confidence(0.99)
    0.995
    """
    return 1 - (1 - confidence) / _NUM_LOOKS


def _no_steps(plan: LoadPlan) -> RateSearch:
    assert plan.limit_ms is not None
    return RateSearch(
        limit_ms=plan.limit_ms,
        percentile=plan.limit_percentile,
        confidence=plan.confidence,
        steps=(),
        stopped_because="",
    )


def _check_plan(plan: LoadPlan) -> None:
    """Refuse what a search would pass over in silence."""
    if plan.limit_ms is None:
        raise UsageError("a search for the highest rate needs a limit", mend="Give it: --limit-ms 50.")
    if plan.shape.name != "constant":
        raise UsageError(
            f"a search holds every rate constant and cannot have the shape {plan.shape.name}", mend="Leave it out."
        )
    if plan.expect_workers:
        raise UsageError(
            "a search is many loads, and workers of other machines leave after the first",
            mend="Search with --processes, or load at chosen rates.",
        )


def _remove_steps(folder: Path) -> None:
    """Remove what an earlier search left in a folder, and nothing else."""
    with storage_errors(folder):
        for step in folder.glob("step-[0-9]*"):
            if (step / LOAD).is_file():
                for name in FILES:
                    (step / name).unlink(missing_ok=True)
                if not any(step.iterdir()):
                    step.rmdir()
        (folder / SEARCH).unlink(missing_ok=True)


def judge_step(result: LoadResult, *, limit_ms: float, percentile: float, confidence: float) -> tuple[Outcome, str]:
    """Say whether a percentile is certified to be within a limit, certified not to be, or neither; and why."""
    bounds = result.percentile(percentile, confidence)
    name = f"p{percentile:g}"
    failed = f", {result.num_failed:,} of {result.num_requests:,} failed" if result.num_failed else ""
    if not result.is_open_loop_kept:
        return Outcome.INCONCLUSIVE, result.why_not_kept
    if bounds.lower is not None and bounds.lower > limit_ms:
        shown = "later than any limit" if math.isinf(bounds.lower) else f"at least {bounds.lower:.4g} ms"
        return Outcome.FAIL, f"{name} is {shown}{failed}"
    if bounds.upper is None:
        return Outcome.INCONCLUSIVE, f"{bounds.num_samples:,} requests, {name} needs {bounds.num_required:,}{failed}"
    if bounds.upper <= limit_ms:
        return Outcome.PASS, f"{name} is at most {bounds.upper:.4g} ms{failed}"
    lower = "unknown" if bounds.lower is None else f"{bounds.lower:.4g}"
    return Outcome.INCONCLUSIVE, f"{name} may be {lower} to {bounds.upper:.4g} ms{failed}"


def _try_rate(plan: LoadPlan, rate: float, options: SearchOptions, run: Callable[[LoadPlan], LoadResult]) -> Step:
    """Load at one rate; where that leaves the verdict open, once more with as many requests as it asks for.

    A load whose requests left late is repeated once: a moment of the load generator's machine is no reason to end.
    """
    assert plan.limit_ms is not None
    confidence = look_confidence(plan.confidence)
    num_needed = required_samples(plan.limit_percentile, confidence, _EXPECTED_SLOW)
    for attempt in range(_NUM_LOOKS):
        # A tenth more than asked for: the number of a Poisson stream's requests is itself random.
        seconds = min(options.max_step_s, max(options.min_step_s, 1.1 * num_needed / rate))
        result = run(replace(plan, shape=constant(rate, seconds), seed=plan.seed + attempt))
        outcome, reason = judge_step(
            result, limit_ms=plan.limit_ms, percentile=plan.limit_percentile, confidence=confidence
        )
        if not result.is_open_loop_kept:
            if result.is_complete and result.is_late:
                continue
            break
        if outcome is not Outcome.INCONCLUSIVE or seconds >= options.max_step_s:
            break
        bounds = result.percentile(plan.limit_percentile, confidence)
        num_needed = max(2 * num_needed, math.ceil(bounds.inflation * num_needed))
    return Step(rate=rate, outcome=outcome, reason=reason, result=result)


def _next_rate(steps: Sequence[Step], options: SearchOptions) -> tuple[float, str]:
    """Give the next rate to try, or why there is none.

    Up or down until the limit lies between two rates; then towards the highest rate that can be certified, then
    towards the lowest that is certified to be too high: between the two a verdict would take longer steps.
    """
    rates = [step.rate for step in steps]
    first_bad = min((step.rate for step in steps if step.is_too_high), default=None)
    first_good = max((step.rate for step in steps if not step.is_too_high), default=None)
    if len(steps) >= options.max_steps:
        return 0.0, f"{options.max_steps} rates were tried"
    if first_bad is None:
        if max(rates) >= options.max_rate:
            return 0.0, f"{options.max_rate:,.4g} requests/s are the most that were to be tried"
        return min(2 * max(rates), options.max_rate), ""
    if first_good is None:
        if min(rates) / 2 < options.start_rate / 64:
            return 0.0, "the limit is broken at every rate that was tried"
        return min(rates) / 2, ""
    passed = [step.rate for step in steps if step.outcome is Outcome.PASS]
    for good in (passed, [step.rate for step in steps if step.outcome is not Outcome.FAIL]):
        middle = _between(good or [first_good], [rate for rate in rates if rate not in good], options.precision)
        if middle is not None:
            return middle, ""
    return 0.0, f"the rates on both sides are within {100 * options.precision:g} %"


def _between(good: Sequence[float], bad: Sequence[float], precision: float) -> float | None:
    """Give the middle between the lowest bad rate and the highest good one below it; None if they are near."""
    lowest_bad = min(bad, default=math.inf)
    below = [rate for rate in good if rate < lowest_bad]
    if math.isinf(lowest_bad) or not below or lowest_bad <= max(below) * (1 + precision):
        return None
    return (max(below) + lowest_bad) / 2
