"""Judge evidence against gates.

Each gate is a one-sided test at its confidence: PASS when the bound is inside the limit, FAIL when the opposite
bound is outside, INCONCLUSIVE when the evidence allows both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from bench.gates.accuracy import judge_accuracy
from bench.gates.fitting import check_task_gates
from bench.gates.language import (
    judge_next_token_divergence,
    judge_next_token_flips,
    judge_perplexity,
    judge_perplexity_growth,
)
from bench.gates.machines import judge_machines
from bench.gates.sizes import judge_download, judge_size
from bench.gates.tripwires import judge_divergence, judge_flips
from bench.gates.verdict import Outcome, Verdict, overall
from edgesmith.errors import ArtifactError, EdgesmithError, UsageError
from edgesmith.gates import AccuracyGate, Gates, RegressionGate, SizeGate

if TYPE_CHECKING:
    from bench.accuracy import Evaluation
    from bench.duet.duet import Duet
    from bench.language.answers import Answers
    from bench.language.evaluation import LanguageEvaluation
    from bench.load.result import LoadResult
    from bench.scenarios.generation import Generation
    from bench.scenarios.latency import Latency
    from bench.scenarios.start import Start
    from bench.scenarios.throughput import Throughput
    from bench.sizes.footprint import Footprint
    from edgesmith.artifact import Artifact

__all__ = ["Evidence", "Outcome", "Subject", "Verdict", "check_gates", "judge", "overall"]

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
    language: LanguageEvaluation | None = None
    """What a language model predicts of a text, held against its reference."""
    baseline_language: LanguageEvaluation | None = None
    """The same of an earlier release."""
    answers: Answers | None = None
    """What a language model answers to prompts: takes the place of `evaluation`."""
    baseline_answers: Answers | None = None
    latencies: tuple[Latency, ...] = ()
    """One a scenario, rate and machine."""
    throughputs: tuple[Throughput, ...] = ()
    """One a machine."""
    loads: tuple[LoadResult, ...] = ()
    """Load tests of a server of the artifact."""
    starts: tuple[Start, ...] = ()
    footprint: Footprint | None = None
    baseline_footprint: Footprint | None = None
    duets: tuple[Duet, ...] = ()
    """One a machine."""
    generations: tuple[Generation, ...] = ()
    """Times of written answers, one a machine."""

    @property
    def answered(self) -> Evaluation | None:
        """The artifact's answers to examples or prompts."""
        return self.answers.evaluation if self.evaluation is None and self.answers else self.evaluation

    @property
    def baseline_answered(self) -> Evaluation | None:
        """The baseline's answers to examples or prompts."""
        if self.baseline_evaluation is None and self.baseline_answers:
            return self.baseline_answers.evaluation
        return self.baseline_evaluation


def check_gates(gates: Gates, task: str) -> None:
    """Find before any work what a task cannot be judged by.

    Raises:
        UsageError: The task has no such metric, no classes, a metric that no `min` fits, or what a gate limits.
    """
    check_task_gates(gates, task)


def judge(gates: Gates, evidence: Evidence) -> list[Verdict]:
    """Judge every gate that is set.

    Args:
        gates: The limits.
        evidence: What was measured.

    Returns:
        One verdict a limit and machine, in the order accuracy, flips, divergence, perplexity, size, download, memory,
        start, latency, throughput, cpu, generation, speed, slowdown, devices, growth, loss and perplexity over an
        earlier release.

    Raises:
        UsageError: No gate is set, a gate's evidence or the baseline is missing, the task has no such metric, or
            artifact and baseline were evaluated on different data.
        ArtifactError: The evidence is of another artifact, was held against something else than the baseline, or
            holds what is no figure.
    """
    if not gates.are_set:
        raise UsageError("no gate is set: there is nothing to judge", mend="Set accuracy, size, latency or speed.")
    _check_digests(evidence)
    if evidence.language is not None and gates.needs_language_reference:
        _check_reference(evidence.language, evidence)
    verdicts = [*_judge_answers(gates, evidence), *_judge_files(gates, evidence), *judge_machines(gates, evidence)]
    if gates.regression is not None:
        verdicts += _judge_losses(gates.regression, evidence)
    return [_checked(verdict) for verdict in verdicts]


def _judge_answers(gates: Gates, evidence: Evidence) -> list[Verdict]:
    verdicts = []
    if gates.accuracy:
        ours, theirs = _needed(evidence.answered, "accuracy", "an evaluation of the artifact", "eval"), None
        if any(gate.max_drop is not None for gate in gates.accuracy):
            theirs = _needed(evidence.baseline_answered, "accuracy", "an evaluation of the baseline", "eval")
        verdicts += judge_accuracy(gates.accuracy, ours, theirs)
    if evidence.language is None:
        verdicts += _judge_classes(gates, evidence)
    else:
        if gates.flips is not None:
            verdicts.append(judge_next_token_flips(gates.flips, evidence.language))
        if gates.divergence is not None:
            verdicts.append(judge_next_token_divergence(gates.divergence, evidence.language))
    if gates.perplexity is not None:
        language = _needed(evidence.language, "perplexity", "the artifact's predictions on a text", "eval")
        verdicts += judge_perplexity(gates.perplexity, language)
    return verdicts


def _judge_classes(gates: Gates, evidence: Evidence) -> list[Verdict]:
    if not gates.needs_classes:
        return []
    first = "flips" if gates.flips is not None else "divergence"
    ours = _needed(evidence.evaluation, first, "an evaluation of the artifact", "eval")
    theirs = _needed(evidence.baseline_evaluation, first, "an evaluation of the baseline", "eval")
    verdicts = []
    if gates.flips is not None:
        verdicts.append(judge_flips(gates.flips, ours, theirs))
    if gates.divergence is not None:
        verdicts.append(judge_divergence(gates.divergence, ours, theirs))
    return verdicts


def _judge_losses(gate: RegressionGate, evidence: Evidence) -> list[Verdict]:
    """What got worse than in an earlier release, but for the speed."""
    verdicts = []
    if gate.max_growth is not None:
        [growth] = judge_size(SizeGate(max_growth=gate.max_growth), evidence.artifact, evidence.baseline)
        verdicts.append(replace(growth, gate="regression.max_growth"))
    if gate.max_drop is not None:
        ours = _needed(evidence.answered, "regression", "an evaluation of the artifact", "eval")
        theirs = _needed(evidence.baseline_answered, "regression", "an evaluation of the baseline", "eval")
        limit = AccuracyGate(metric=gate.metric, max_drop=gate.max_drop, confidence=gate.confidence)
        [drop] = judge_accuracy((limit,), ours, theirs)
        verdicts.append(replace(drop, gate="regression.max_drop"))
    if gate.max_perplexity_ratio is not None:
        language = _needed(evidence.language, "regression", "the artifact's predictions on a text", "eval")
        if evidence.baseline_language is None:
            _check_reference(language, evidence)
        verdicts.append(judge_perplexity_growth(gate, language, evidence.baseline_language))
    return verdicts


def _judge_files(gates: Gates, evidence: Evidence) -> list[Verdict]:
    verdicts = []
    if gates.size is not None:
        verdicts += judge_size(gates.size, evidence.artifact, evidence.baseline)
    if gates.download is not None:
        footprint = _needed(evidence.footprint, "download", "the artifact's footprint", "bench")
        verdicts.append(judge_download(gates.download, footprint))
    return verdicts


def _needed(value: T | None, gate: str, what: str, command: str) -> T:
    if value is None:
        raise UsageError(f"the {gate} gate needs {what}", mend=f"Make it with `edgesmith {command}`.")
    return value


def _checked(verdict: Verdict) -> Verdict:
    """Let no PASS through whose own figures do not bear it out."""
    if verdict.verdict is Outcome.PASS:
        bound, limit = verdict.bound, verdict.threshold
        if bound is None or verdict.estimate is None:
            raise EdgesmithError(f"{verdict.gate}: PASS without a figure: {verdict.reason}")
        if (bound < limit) if verdict.at_least else (bound > limit):
            slack = 1e-9 * max(1.0, abs(limit))  # sizes are compared in whole bytes
            if abs(bound - limit) > slack:
                raise EdgesmithError(f"{verdict.gate}: PASS with {bound} against {limit}: {verdict.reason}")
    return verdict


def _check_digests(evidence: Evidence) -> None:
    """Evidence must be of what is judged. An engine that is no artifact has no digest to check."""
    for what, digest, expected in _digests(evidence):
        if digest and expected and digest != expected:
            raise ArtifactError(
                f"the {what} is of {digest[:19]}…, but {expected[:19]}… is judged",
                mend="Measure again: `edgesmith eval` and `edgesmith bench`.",
            )


def _check_reference(language: LanguageEvaluation, evidence: Evidence) -> None:
    """What predictions were held against must be the baseline, and never the artifact itself."""
    if not language.has_reference:
        return  # the gate itself asks for one
    found, expected = language.reference_artifact, evidence.baseline.digest if evidence.baseline else None
    if not found:
        raise ArtifactError(
            "the measurement on text does not say which artifact its reference is", mend=_MEND_REFERENCE
        )
    what = "the artifact itself" if found == evidence.artifact.digest else f"{found[:19]}…"
    if expected is not None and found != expected:
        raise ArtifactError(
            f"the predictions were held against {what}, but the baseline is {expected[:19]}…", mend=_MEND_REFERENCE
        )
    if found == evidence.artifact.digest:
        raise ArtifactError(f"the predictions were held against {what}: that shows nothing", mend=_MEND_REFERENCE)


_MEND_REFERENCE = "Measure again: `edgesmith eval ARTIFACT --against CHECKPOINT`."


def _digests(evidence: Evidence) -> Iterator[tuple[str, str | None, str | None]]:
    """What, the digest that it names, and the digest that is judged."""
    artifact, baseline = evidence.artifact.digest, evidence.baseline.digest if evidence.baseline else None
    if evidence.evaluation is not None:
        yield "evaluation", evidence.evaluation.artifact_digest, artifact
    if evidence.baseline_evaluation is not None:
        yield "baseline's evaluation", evidence.baseline_evaluation.artifact_digest, baseline
    if evidence.language is not None:
        yield "measurement on text", evidence.language.artifact_digest, artifact
    if evidence.baseline_language is not None:
        yield "baseline's measurement on text", evidence.baseline_language.artifact_digest, baseline
    for what, answers, expected in (
        ("answers", evidence.answers, artifact),
        ("baseline's answers", evidence.baseline_answers, baseline),
    ):
        if answers is not None:
            yield what, answers.artifact_digest, expected
    for generation in evidence.generations:
        yield "generation", generation.artifact_digest, artifact
    for latency in evidence.latencies:
        yield "latency", latency.artifact_digest, artifact
    for throughput in evidence.throughputs:
        yield "throughput", throughput.artifact_digest, artifact
    for start in evidence.starts:
        yield "start", start.artifact_digest, artifact
    if evidence.footprint is not None:
        yield "footprint", evidence.footprint.artifact_digest, artifact
    if evidence.baseline_footprint is not None:
        yield "baseline's footprint", evidence.baseline_footprint.artifact_digest, baseline
    for duet in evidence.duets:
        yield "comparison", duet.artifact_digest, artifact
        yield "comparison's baseline", duet.baseline_digest, baseline
