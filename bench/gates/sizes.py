"""Judge what an artifact takes: bytes on the disk and over the network, memory, and time until the first answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from bench.gates.faults import busy_machine
from bench.gates.verdict import Outcome, Verdict, show
from edgesmith.errors import ArtifactError, UsageError
from edgesmith.gates import DownloadGate, MemoryGate, SizeGate, StartGate

if TYPE_CHECKING:
    from bench.gates.judge import Subject
    from bench.scenarios.start import Start
    from bench.sizes.footprint import Footprint

__all__ = ["judge_download", "judge_memory", "judge_size", "judge_start"]

BYTES_PER_MB = 1_000_000


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
    """Judge the largest peak of memory that any fresh process on one machine had."""
    worst = max(starts, key=lambda start: start.peak_rss_bytes)
    num_processes = sum(start.num_starts for start in starts)
    if worst.peak_rss_bytes <= 0 or num_processes <= 0:
        raise ArtifactError(
            f"a start says that {num_processes} processes took {worst.peak_rss_bytes} bytes of memory",
            mend="Measure again: `edgesmith bench`.",
        )
    fits = worst.peak_rss_bytes <= Fraction(str(gate.max_mb)) * BYTES_PER_MB
    peak_mb = worst.peak_rss_bytes / BYTES_PER_MB
    reason = (
        f"a fresh process takes {show(peak_mb, gate.max_mb)} MB at its peak, the most of {num_processes} processes; "
        f"at most {gate.max_mb:g} MB is allowed; measured on {worst.machine.name}"
    )
    verdict = _exact("memory", fits, reason, "MB", gate.max_mb, peak_mb, machine=worst.machine.name)
    return replace(verdict, num_samples=num_processes, samples="processes")


def judge_start(gate: StartGate, starts: Sequence[Start]) -> Verdict:
    """Judge the cold start on one machine, the slowest if it was measured several times.

    It is a median of a few starts, without a bound: what is close to the limit may be on its other side next time.
    """
    worst = max(starts, key=lambda start: start.cold_start_ms)
    if not all(math.isfinite(start.cold_start_ms) and start.cold_start_ms > 0 for start in starts):
        raise ArtifactError(f"a cold start of {worst.cold_start_ms} ms is no time", mend="Measure again.")
    reason = (
        f"a fresh process answers after {show(worst.cold_start_ms, gate.max_ms)} ms, the median of {worst.num_starts} "
        f"starts; at most {gate.max_ms:g} ms is allowed; measured on {worst.machine.name}"
    )
    fits = worst.cold_start_ms <= gate.max_ms
    verdict = _exact("start", fits, reason, "ms", gate.max_ms, worst.cold_start_ms, machine=worst.machine.name)
    if not fits and (busy := busy_machine(worst.conditions)):
        verdict = replace(verdict, verdict=Outcome.INCONCLUSIVE, reason=f"{reason}; but {busy}.")
    return replace(verdict, num_samples=worst.num_starts, samples="starts")


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
