"""Judge what an artifact takes: bytes on the disk and over the network, memory, and time until the first answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from bench.gates.faults import busy_machine, count_threads, refuse_not_positive
from bench.gates.verdict import Outcome, Verdict, show
from bench.stats.percentiles import bound_percentile
from edgesmith.errors import ArtifactError, UsageError
from edgesmith.gates import DownloadGate, MemoryGate, SizeGate, StartGate

if TYPE_CHECKING:
    from bench.gates.judge import Subject
    from bench.scenarios.start import Start
    from bench.sizes.footprint import Footprint

__all__ = ["judge_download", "judge_memory", "judge_size", "judge_start"]

BYTES_PER_MB = 1_000_000
_MIN_PROCESSES = 3


def judge_size(gate: SizeGate, artifact: Subject, baseline: Subject | None) -> list[Verdict]:
    """Judge sizes to the byte.

    Args:
        gate: At most so many megabytes, so many times smaller than the baseline, so much larger than it.
        artifact: What is judged.
        baseline: What it is compared with; needed for all but `max_mb`.

    Raises:
        UsageError: There is no baseline.
        ArtifactError: A side has no such file.
    """
    num_bytes, what = _count(gate, artifact), f"the {gate.of}"
    verdicts = []
    if gate.max_mb is not None:
        fits = num_bytes <= Fraction(str(gate.max_mb)) * BYTES_PER_MB
        size_mb = num_bytes / BYTES_PER_MB
        shown = show(size_mb, gate.max_mb)
        reason = f"{what} is {shown} MB ({num_bytes:,} bytes); at most {gate.max_mb:g} MB may ship"
        verdicts.append(_exact("size.max_mb", fits, reason, "MB", gate.max_mb, size_mb))
    if gate.min_reduction is not None:
        before, name = _baseline(gate, baseline, "min_reduction")
        shrunk = before >= Fraction(str(gate.min_reduction)) * num_bytes
        reduction = before / num_bytes
        reason = (
            f"{what} is {show(reduction, gate.min_reduction)}× smaller than {name} "
            f"({num_bytes:,} of {before:,} bytes); at least {gate.min_reduction:g}× is asked for"
        )
        verdicts.append(_exact("size.min_reduction", shrunk, reason, "×", gate.min_reduction, reduction, at_least=True))
    if gate.max_growth is not None:
        before, name = _baseline(gate, baseline, "max_growth")
        fits = num_bytes <= (1 + Fraction(str(gate.max_growth))) * before
        growth = num_bytes / before - 1
        limit = 100 * gate.max_growth
        reason = (
            f"{what} is {show(100 * abs(growth), limit)} % {'larger' if growth > 0 else 'smaller'} than {name} "
            f"({num_bytes:,} after {before:,} bytes); "
            f"at most {limit:g} % is allowed"
        )
        verdicts.append(_exact("size.max_growth", fits, reason, "share", gate.max_growth, growth))
    return verdicts


def _count(gate: SizeGate, subject: Subject) -> int:
    num_bytes = subject.model_bytes if gate.of == "model" else subject.total_bytes
    if num_bytes <= 0:
        raise ArtifactError(f"{subject.name}: has no file to count for size.of: {gate.of} ({num_bytes} bytes)")
    return num_bytes


def _baseline(gate: SizeGate, baseline: Subject | None, limit: str) -> tuple[int, str]:
    if baseline is None:
        raise UsageError(f"the size gate's {limit} needs a baseline", mend="Name one with --against.")
    return _count(gate, baseline), baseline.name


def judge_download(gate: DownloadGate, footprint: Footprint) -> Verdict:
    """Judge the size of all files compressed together, to the byte."""
    num_bytes = footprint.download_bytes
    if num_bytes <= 0:
        raise ArtifactError(f"the footprint says that a download has {num_bytes} bytes", mend="Measure it again.")
    fits = num_bytes <= Fraction(str(gate.max_mb)) * BYTES_PER_MB
    size_mb = num_bytes / BYTES_PER_MB
    shown = show(size_mb, gate.max_mb)
    reason = (
        f"all files compressed are {shown} MB ({num_bytes:,} of {footprint.total_bytes:,} bytes); "
        f"at most {gate.max_mb:g} MB may be fetched"
    )
    return _exact("download", fits, reason, "MB", gate.max_mb, size_mb)


def judge_memory(gate: MemoryGate, starts: Sequence[Start]) -> Verdict:
    """Judge the largest peak of memory that any fresh process on one machine had.

    A process over the limit is proof enough. Below it, the next one may take more: as much as those seen differ
    must be to spare.
    """
    peaks = [process.peak_rss_bytes for start in starts for process in start.processes]
    machine = starts[0].machine.name
    if not peaks or min(peaks) <= 0:
        raise ArtifactError(
            f"a start says that one of {len(peaks)} processes took no memory", mend="Measure again: `edgesmith bench`."
        )
    worst, spread = max(peaks), max(peaks) - min(peaks)
    limit = Fraction(str(gate.max_mb)) * BYTES_PER_MB
    peak_mb = worst / BYTES_PER_MB
    reason = (
        f"a fresh process takes up to {show(peak_mb, gate.max_mb)} MB at its peak, the most of {len(peaks)} processes "
        f"that differ by {show(spread / BYTES_PER_MB)} MB; at most {gate.max_mb:g} MB is allowed; measured on {machine}"
    )
    verdict = _exact("memory", worst <= limit, reason, "MB", gate.max_mb, peak_mb, machine=machine)
    verdict = replace(verdict, num_samples=len(peaks), samples="processes")
    if worst > limit:
        return verdict
    verdict = replace(verdict, bound=(worst + spread) / BYTES_PER_MB, detectable=spread / BYTES_PER_MB)
    if len(peaks) < _MIN_PROCESSES:
        open_ = f"{reason}; {len(peaks)} are too few to see how they differ, needs ≥ {_MIN_PROCESSES}."
        return replace(verdict, verdict=Outcome.INCONCLUSIVE, reason=open_, num_needed=_MIN_PROCESSES)
    if worst + spread > limit:
        open_ = f"{reason}; another process may be over it."
        return replace(verdict, verdict=Outcome.INCONCLUSIVE, reason=open_)
    return verdict


def judge_start(gate: StartGate, starts: Sequence[Start]) -> Verdict:
    """Judge the median time until a fresh process answers, on one machine; the worst if it was measured several times.

    Raises:
        ArtifactError: A start took no time.
    """
    verdicts = [_judge_start(gate, start) for start in starts]
    severity = (Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.FAIL)
    return max(verdicts, key=lambda verdict: (severity.index(verdict.verdict), verdict.estimate or 0.0))


def _judge_start(gate: StartGate, start: Start) -> Verdict:
    times_ms = np.array([process.first_answer_ms for process in start.processes], dtype=np.float64)
    refuse_not_positive(times_ms, "first_answer_ms")
    bounds = bound_percentile(times_ms, 50, gate.confidence)
    n, limit, machine = len(times_ms), gate.max_ms, start.machine.name
    outcome, needed = Outcome.INCONCLUSIVE, None
    if bounds.lower is not None and bounds.lower > limit:
        outcome = Outcome.FAIL
        said = f"a fresh process answers after {show(bounds.lower, limit, rounding='down')} ms at least"
        if busy := busy_machine(start.conditions):
            outcome, said = Outcome.INCONCLUSIVE, f"{said}, but {busy}"
    elif bounds.upper is None or bounds.lower is None:
        needed = bounds.num_required
        said = f"{n} starts are too few to bound their median, needs ≥ {needed}"
    elif bounds.upper <= limit:
        outcome = Outcome.PASS
        said = f"a fresh process answers after {show(bounds.upper, limit, rounding='up')} ms at the most"
    else:
        lower, upper = show(bounds.lower, limit, rounding="down"), show(bounds.upper, limit, rounding="up")
        said = f"a fresh process answers after {lower} to {upper} ms, on either side of the limit"
    estimate = float(np.median(times_ms))
    cache = "from the disk" if start.is_cache_cold else "that may have been in the page cache"
    evidence = (
        f"median {show(estimate, limit)} ms of {n} starts with files {cache}; {count_threads(start.threads)}; "
        f"measured on {machine}; {100 * gate.confidence:g} % confidence"
    )
    return Verdict(
        gate="start",
        verdict=outcome,
        reason=f"{said}; at most {limit:g} ms is allowed ({evidence}).",
        unit="ms",
        threshold=limit,
        estimate=estimate,
        bound=bounds.lower if outcome is Outcome.FAIL else bounds.upper,
        confidence=gate.confidence,
        num_samples=n,
        samples="starts",
        detectable=None if bounds.upper is None else bounds.upper - estimate,
        num_needed=needed,
        machine=machine,
    )


def _exact(
    gate: str,
    passes: bool,
    reason: str,
    unit: str,
    threshold: float,
    value: float,
    *,
    at_least: bool = False,
    machine: str | None = None,
) -> Verdict:
    """A figure without noise is its own bound."""
    return Verdict(
        gate=gate,
        verdict=Outcome.PASS if passes else Outcome.FAIL,
        reason=reason + ".",
        unit=unit,
        threshold=threshold,
        estimate=value,
        bound=value,
        at_least=at_least,
        machine=machine,
    )
