"""Judge throughput, CPU time, and speed against a baseline that was run in turns with the artifact."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np

from bench.gates.faults import UNSETTLED, busy_machine, count_threads, drifting, refuse_not_positive
from bench.gates.verdict import Outcome, Rounding, Verdict, samples_to_settle, show, show_count
from bench.stats.dependence import percentile_inflation
from bench.stats.percentiles import bound_percentile, required_samples
from bench.stats.resampling import Bounds
from edgesmith.gates import CpuGate, RegressionGate, SpeedGate, ThroughputGate

if TYPE_CHECKING:
    from bench.duet.duet import Duet
    from bench.scenarios.latency import Latency
    from bench.scenarios.throughput import Throughput

__all__ = ["judge_cpu", "judge_regression", "judge_speed", "judge_throughput"]


@dataclass(frozen=True, kw_only=True)
class _Question:
    """A limit on a bounded figure of one machine, and how to speak of it."""

    gate: str
    limit: float
    at_least: bool
    """Whether the figure must be at least the limit."""
    confidence: float
    unit: str
    symbol: str
    """The unit as it follows a figure in a sentence."""
    of: str
    """What follows the unit, such as ` of CPU time for the median request`."""
    num_samples: int
    num_required: int
    """Samples below which nothing is judged."""
    samples: str
    evidence: str
    machine: str
    is_settled: bool
    unsteady: str = ""
    """Why the samples are not of one speed; empty if they are."""
    scale: float = 1.0
    """100 where the figure is shown in per cent."""
    busy: str = ""
    """What excuses a figure beyond the limit; empty if nothing does."""
    noise: float = 0.0
    """What a comparison of equals shows in the same run, in the figure's unit."""
    seconds_needed: float | None = None
    """How long a run would settle it; None where that is not known."""

    def shown(self, value: float, rounding: Rounding = "near") -> str:
        """The figure, never rounded onto or across the limit."""
        return show(self.scale * value, self.scale * self.limit, rounding=rounding)


def _judge(question: _Question, bounds: Bounds | None) -> Verdict:
    """Hold bounds against a limit; None where the samples are too few for any."""
    if bounds is not None and not (math.isfinite(bounds.lower) and math.isfinite(bounds.upper)):
        bounds = None
    needed: int | None = None
    if not question.is_settled:
        outcome, said = Outcome.INCONCLUSIVE, UNSETTLED
    elif question.unsteady:
        outcome, said = Outcome.INCONCLUSIVE, question.unsteady
    elif bounds is None or question.num_samples < question.num_required:
        needed = max(question.num_required, question.num_samples + 1)
        outcome = Outcome.INCONCLUSIVE
        said = f"{question.num_samples:,} {question.samples} are too few, needs ≥ {needed:,}"
    else:
        outcome, said, needed = _compare(question, bounds)
    estimate, worse, better, width = "", None, None, None
    if bounds is not None:
        estimate = f"estimate {question.shown(bounds.estimate)}{question.symbol}, "
        worse, better = (bounds.lower, bounds.upper) if question.at_least else (bounds.upper, bounds.lower)
        width = _width(bounds)
    return Verdict(
        gate=question.gate,
        verdict=outcome,
        reason=f"{said} ({estimate}{question.evidence}; {100 * question.confidence:g} % confidence).",
        unit=question.unit,
        threshold=question.limit,
        estimate=None if bounds is None else bounds.estimate,
        bound=better if outcome is Outcome.FAIL else worse,
        confidence=question.confidence,
        num_samples=question.num_samples,
        samples=question.samples,
        detectable=width,
        num_needed=needed,
        at_least=question.at_least,
        machine=question.machine,
    )


def _width(bounds: Bounds) -> float:
    return max(bounds.estimate - bounds.lower, bounds.upper - bounds.estimate)


def _compare(question: _Question, bounds: Bounds) -> tuple[Outcome, str, int | None]:
    """Outcome, what is said of it, and how many samples would settle an open one."""
    limit, tail = question.limit, f"{question.symbol}{question.of}"
    lower, upper = question.shown(bounds.lower, "down"), question.shown(bounds.upper, "up")
    shown_limit = f"{question.scale * limit:g}{question.symbol}"
    asked = f"{shown_limit} {'is asked for' if question.at_least else 'is the limit'}"
    if question.at_least:
        is_within, is_beyond = bounds.lower >= limit, bounds.upper < limit
        passed, failed = f"at least {lower}{tail}; {asked}", f"at most {upper}{tail}; {asked}"
    else:
        is_within, is_beyond = bounds.upper <= limit, bounds.lower > limit
        passed, failed = f"at most {upper}{tail}; {asked}", f"at least {lower}{tail}; {asked}"
    is_noisy = question.noise > limit
    if is_within and (not is_noisy or bounds.upper <= -question.noise):
        return Outcome.PASS, passed, None
    if is_beyond and question.busy:
        return Outcome.INCONCLUSIVE, f"{failed}, but {question.busy}", None
    if is_beyond and (question.at_least or bounds.lower > question.noise):
        return Outcome.FAIL, failed, None
    if is_noisy:
        noise = f"{question.shown(question.noise, 'up')}{question.symbol}"
        said = f"the baseline differs from itself by up to {noise} in this run, more than the limit of {shown_limit}"
        distance, width = limit, question.noise
    else:
        said = f"{lower} to {upper}{tail}, on either side of {shown_limit}"
        distance, width = abs(bounds.estimate - limit), _width(bounds)
    needed = samples_to_settle(question.num_samples, width, distance)
    return Outcome.INCONCLUSIVE, f"{said}{_hint(question, needed, is_noisy=is_noisy)}", needed


def _hint(question: _Question, needed: int | None, *, is_noisy: bool) -> str:
    ways = []
    if question.seconds_needed is not None and not is_noisy:
        ways.append(f"a run of about {math.ceil(question.seconds_needed):,} s")
    elif needed is not None:
        ways.append(f"about {show_count(needed)} {question.samples}")
    if is_noisy:
        ways.append("a quieter machine")
    return f"; {' or '.join(ways)} would settle it" if ways else ""


def judge_throughput(gate: ThroughputGate, throughput: Throughput) -> Verdict:
    """Judge the rate of the median round through all examples.

    Args:
        gate: Fewest examples a second, and confidence.
        throughput: Times of whole rounds.

    Raises:
        ArtifactError: A round took no time.
    """
    refuse_not_positive(np.array(throughput.round_seconds, dtype=np.float64), "round_seconds")
    num_rounds, inflation = len(throughput.round_seconds), throughput.inflation
    required = math.ceil(inflation * required_samples(50, gate.confidence))
    question = _Question(
        gate="throughput",
        limit=gate.min_per_second,
        at_least=True,
        confidence=gate.confidence,
        unit="/s",
        symbol=" examples/s",
        of="",
        num_samples=num_rounds,
        num_required=required,
        samples="rounds",
        evidence=f"{num_rounds} rounds of {throughput.num_examples:,} examples in batches of {throughput.batch_size}"
        f"{_worth(num_rounds, inflation)}; {throughput.inputs}; {count_threads(throughput.threads)}; measured on "
        f"{throughput.machine.name}",
        machine=throughput.machine.name,
        is_settled=throughput.is_settled,
        busy=busy_machine(throughput.conditions),
    )
    enough = num_rounds >= required and throughput.num_examples > 0
    return _judge(question, throughput.examples_per_second(gate.confidence) if enough else None)


def _worth(num_rounds: int, inflation: float) -> str:
    if inflation <= 1:
        return ""
    return f", which depend on each other and say as much as {math.floor(num_rounds / inflation):,} independent ones"


def judge_cpu(gate: CpuGate, latency: Latency) -> Verdict:
    """Judge the median CPU time of a request, one request after the other.

    Others on the machine hardly change it, so they excuse nothing.

    Args:
        gate: Limit and confidence.
        latency: Of scenario `single`.

    Raises:
        ArtifactError: A request took no CPU time.
    """
    refuse_not_positive(latency.cpu_ns, "cpu_ns")
    cpu_ms = latency.cpu_ns / 1e6
    bounds = bound_percentile(cpu_ms, 50, gate.confidence, percentile_inflation(cpu_ms, 50))
    question = _Question(
        gate="cpu",
        limit=gate.max_ms,
        at_least=False,
        confidence=gate.confidence,
        unit="ms",
        symbol=" ms",
        of=" of CPU time for the median request",
        num_samples=bounds.num_samples,
        num_required=bounds.num_required,
        samples="requests",
        evidence=f"{bounds.num_samples:,} requests; {latency.inputs}; {count_threads(latency.threads)}; measured on "
        f"{latency.machine.name}",
        machine=latency.machine.name,
        is_settled=latency.is_settled,
        unsteady=drifting(latency) if bounds.num_samples >= required_samples(50, gate.confidence) else "",
    )
    if bounds.estimate is None or bounds.lower is None or bounds.upper is None:
        return _judge(question, None)
    found = Bounds(estimate=bounds.estimate, lower=bounds.lower, upper=bounds.upper, confidence=gate.confidence)
    return _judge(question, found)


def judge_speed(gate: SpeedGate, duet: Duet) -> Verdict:
    """Judge whether the artifact takes so many times less CPU time than the baseline.

    Args:
        gate: Ratio and confidence.
        duet: Both engines' times, taken in turns.

    Raises:
        ArtifactError: A turn took no time.
    """
    bounds = _duet_bounds(duet, "cpu", gate.confidence)
    slowdown = 1 / gate.min_speedup - 1
    question = _Question(
        gate="speed",
        limit=gate.min_speedup,
        at_least=True,
        confidence=gate.confidence,
        unit="×",
        symbol="×",
        of=" less CPU time than the baseline",
        seconds_needed=duet.seconds_to_settle(slowdown, gate.confidence, "cpu") if bounds else None,
        **_duet_facts(duet),
    )
    return _judge(question, _inverse(bounds))


def judge_regression(gate: RegressionGate, duet: Duet) -> Verdict:
    """Judge whether the artifact is slower than the baseline by at most so much.

    What the baseline differs from itself in the same run is noise: a slowdown below it fails nobody, and a limit
    below it is only held by an artifact that is faster by more than that.

    Args:
        gate: Has `max_slowdown`, of CPU or wall time, and a confidence.
        duet: Both engines' times, taken in turns.

    Raises:
        ArtifactError: A turn took no time.
    """
    assert gate.max_slowdown is not None
    bounds = _duet_bounds(duet, gate.of, gate.confidence)
    noise = 0.0
    if bounds is not None:
        noise = (duet.noise.percent if gate.of == "cpu" else duet.noise.wall_percent) / 100
    question = _Question(
        gate="regression.max_slowdown",
        limit=gate.max_slowdown,
        at_least=False,
        confidence=gate.confidence,
        unit="share",
        symbol=" %",
        scale=100.0,
        of=f" more {'CPU' if gate.of == 'cpu' else 'wall'} time than the baseline",
        noise=noise,
        seconds_needed=duet.seconds_to_settle(gate.max_slowdown, gate.confidence, gate.of) if bounds else None,
        **_duet_facts(duet),
    )
    return _judge(question, bounds)


def _duet_bounds(duet: Duet, of: Literal["cpu", "wall"], confidence: float) -> Bounds | None:
    """The slowdown, widened by what the baseline certainly differs from itself; None if the turns are too few."""
    from bench.duet.duet import MIN_PAIRS, MIN_SESSIONS

    for name in ("baseline", "twin", "artifact"):
        for clock in ("cpu", "wall"):
            refuse_not_positive(getattr(duet, f"{name}_{clock}_ns"), f"{name}_{clock}_ns")
    if duet.num_pairs < MIN_PAIRS or duet.num_sessions < MIN_SESSIONS:
        return None
    bounds = duet.slowdown(confidence, of)
    bias = (duet.noise.bias_percent if of == "cpu" else duet.noise.wall_bias_percent) / 100
    if not all(map(math.isfinite, (bounds.estimate, bounds.lower, bounds.upper, bias))):
        return None
    lower, upper = (1 + bounds.lower) / (1 + bias) - 1, (1 + bounds.upper) * (1 + bias) - 1
    return replace(bounds, lower=lower, upper=upper)


def _inverse(slowdown: Bounds | None) -> Bounds | None:
    """Speed-up, 1 / (1 + slowdown), with its bounds."""
    if slowdown is None or slowdown.lower <= -1:
        return None
    return Bounds(
        estimate=1 / (1 + slowdown.estimate),
        lower=1 / (1 + slowdown.upper),
        upper=1 / (1 + slowdown.lower),
        confidence=slowdown.confidence,
    )


class _DuetFacts(TypedDict):
    num_samples: int
    num_required: int
    samples: str
    evidence: str
    machine: str
    is_settled: bool


def _duet_facts(duet: Duet) -> _DuetFacts:
    from bench.duet.duet import MIN_PAIRS, MIN_SESSIONS

    are_few = duet.num_sessions < MIN_SESSIONS
    return _DuetFacts(
        num_samples=duet.num_sessions if are_few else duet.num_pairs,
        num_required=MIN_SESSIONS if are_few else MIN_PAIRS,
        samples="sessions" if are_few else "pairs of turns",
        evidence=f"{duet.num_pairs:,} pairs of turns of {duet.turn_requests} request(s) in {duet.num_sessions:,} "
        f"sessions; {duet.inputs}; measured on {duet.machine.name}",
        machine=duet.machine.name,
        is_settled=duet.is_settled,
    )
