"""Judge evidence against gates.

Each gate is a one-sided test at its confidence: PASS when the bound is inside the limit, FAIL when the opposite
bound is outside, INCONCLUSIVE when the evidence allows both.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

from bench.accuracy_gate import judge_accuracy
from bench.speed_gates import judge_latency, judge_speed
from bench.verdict import Outcome, Verdict, overall, show
from edgesmith.errors import ArtifactError, UsageError
from edgesmith.gates import Gates, SizeGate

if TYPE_CHECKING:
    from bench.accuracy import Evaluation
    from bench.duet import Duet
    from bench.latency import Latency
    from edgesmith.artifact import Artifact

__all__ = ["Evidence", "Outcome", "Subject", "Verdict", "judge", "overall"]

BYTES_PER_MB = 1_000_000

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is judged, or what it is compared with."""

    name: str
    digest: str
    model_bytes: int
    """Of the files with graph and weights."""
    total_bytes: int
    """Of all files."""

    @classmethod
    def of(cls, artifact: Artifact, name: str = "") -> Subject:
        """Take digest and sizes from an opened artifact."""
        return cls(
            name=name or artifact.path.name,
            digest=artifact.digest,
            model_bytes=artifact.model_bytes,
            total_bytes=artifact.size_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that was measured of an artifact, and of its baseline where there is one."""

    artifact: Subject
    baseline: Subject | None = None
    evaluation: Evaluation | None = None
    baseline_evaluation: Evaluation | None = None
    latency: Latency | None = None
    duet: Duet | None = None


def judge(gates: Gates, evidence: Evidence) -> list[Verdict]:
    """Judge every gate that is set.

    Args:
        gates: The limits.
        evidence: What was measured.

    Returns:
        One verdict a limit, in the order accuracy, size, latency, speed.

    Raises:
        UsageError: No gate is set, a gate's evidence or the baseline is missing, the task has no such metric, or
            artifact and baseline were evaluated on different data.
        ArtifactError: The evidence is of another artifact.
    """
    _check_digests(evidence)
    verdicts: list[Verdict] = []
    if gates.accuracy is not None:
        ours = _needed(evidence.evaluation, "accuracy", "an evaluation of the artifact", "eval")
        theirs = _needed(evidence.baseline_evaluation, "accuracy", "an evaluation of the baseline", "eval")
        verdicts.append(judge_accuracy(gates.accuracy, ours, theirs))
    if gates.size is not None:
        verdicts.extend(_judge_size(gates.size, evidence))
    if gates.latency is not None:
        latency = _needed(evidence.latency, "latency", "latencies of the artifact", "bench")
        verdicts.append(judge_latency(gates.latency, latency))
    if gates.speed is not None:
        duet = _needed(evidence.duet, "speed", "a comparison with the baseline", "bench --against BASELINE")
        verdicts.append(judge_speed(gates.speed, duet))
    if not verdicts:
        raise UsageError("no gate is set: there is nothing to judge", mend="Set accuracy, size, latency or speed.")
    return verdicts


def _needed(value: T | None, gate: str, what: str, command: str) -> T:
    if value is None:
        raise UsageError(f"the {gate} gate needs {what}", mend=f"Make it with `edgesmith {command}`.")
    return value


def _check_digests(evidence: Evidence) -> None:
    """Evidence must be of what is judged. An engine that is no artifact has no digest to check."""
    baseline = evidence.baseline.digest if evidence.baseline else None
    found = [
        ("evaluation", evidence.evaluation and evidence.evaluation.artifact_digest, evidence.artifact.digest),
        ("latency", evidence.latency and evidence.latency.artifact_digest, evidence.artifact.digest),
        ("comparison", evidence.duet and evidence.duet.artifact_digest, evidence.artifact.digest),
        (
            "baseline's evaluation",
            evidence.baseline_evaluation and evidence.baseline_evaluation.artifact_digest,
            baseline,
        ),
        ("comparison's baseline", evidence.duet and evidence.duet.baseline_digest, baseline),
    ]
    for what, digest, expected in found:
        if digest and expected and digest != expected:
            raise ArtifactError(
                f"the {what} is of {digest[:19]}…, but {expected[:19]}… is judged",
                mend="Measure again: `edgesmith eval` and `edgesmith bench`.",
            )


def _judge_size(gate: SizeGate, evidence: Evidence) -> list[Verdict]:
    def count(subject: Subject) -> int:
        return subject.model_bytes if gate.of == "model" else subject.total_bytes

    num_bytes, what = count(evidence.artifact), f"the {gate.of}"
    verdicts = []
    if gate.max_mb is not None:
        fits = num_bytes <= Fraction(str(gate.max_mb)) * BYTES_PER_MB
        size_mb = num_bytes / BYTES_PER_MB
        shown = show(size_mb, gate.max_mb)
        reason = f"{what} is {shown} MB ({num_bytes:,} bytes); at most {gate.max_mb:g} MB may ship"
        verdicts.append(_exact("size.max_mb", fits, reason, "MB", gate.max_mb, size_mb))
    if gate.min_reduction is not None:
        baseline = evidence.baseline
        if baseline is None:
            raise UsageError("the size gate's min_reduction needs a baseline", mend="Name one with --against.")
        if num_bytes == 0:
            raise ArtifactError(f"{evidence.artifact.name}: has no model file")
        shrunk = count(baseline) >= Fraction(str(gate.min_reduction)) * num_bytes
        reduction = count(baseline) / num_bytes
        reason = (
            f"{what} is {show(reduction, gate.min_reduction)}× smaller than {baseline.name} "
            f"({num_bytes:,} of {count(baseline):,} bytes); at least {gate.min_reduction:g}× is asked for"
        )
        verdicts.append(_exact("size.min_reduction", shrunk, reason, "×", gate.min_reduction, reduction))
    return verdicts


def _exact(gate: str, passes: bool, reason: str, unit: str, threshold: float, value: float) -> Verdict:
    """A figure without noise is its own bound."""
    outcome = Outcome.PASS if passes else Outcome.FAIL
    return Verdict(
        gate=gate, verdict=outcome, reason=reason, unit=unit, threshold=threshold, estimate=value, bound=value
    )
