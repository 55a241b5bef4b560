"""What a report says, before it has a form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from bench.gates.verdict import Outcome, Verdict, overall
from bench.report.making import ModelStep

if TYPE_CHECKING:
    from bench.accuracy import Evaluation
    from bench.duet.duet import Duet
    from bench.gates.judge import Subject
    from bench.language.answers import Answers
    from bench.language.evaluation import LanguageEvaluation
    from bench.load.result import LoadResult
    from bench.machine.generation_limits import GenerationLimits
    from bench.machine.limits import Limits
    from bench.machine.machine import Machine
    from bench.scenarios.generation import Generation
    from bench.scenarios.latency import Latency
    from bench.scenarios.start import Start
    from bench.scenarios.sweep import Sweep
    from bench.scenarios.throughput import Throughput
    from bench.sizes.footprint import Footprint
    from bench.sizes.tensors import TensorSizes

__all__ = ["Ancestor", "ReleaseReport", "TargetReport"]


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """One thing in an artifact's line: itself, what it was made from, what that was made from."""

    role: str
    """What it is to what was made from it, such as `fp32`, `adapter` or `calibration`; for the artifact its name."""
    digest: str
    step: str = ""
    """What made it, such as `quantize`; empty for what came from outside."""
    detail: str = ""
    """Options in a few words, such as `static-int8, 128 rows`."""
    summary: str = ""
    """What the step did, in a line."""
    parents: tuple[str, ...] = ()
    """Digests of what it was made from."""


@dataclass(frozen=True, kw_only=True)
class TargetReport:
    """One artifact: what it is, what was measured, what was decided. What was not measured is left out."""

    name: str
    """The target's, unique in the release."""
    artifact: Subject
    baseline: Subject | None = None
    verdicts: tuple[Verdict, ...] = ()
    lineage: tuple[Ancestor, ...] = ()
    """The artifact first, then what it was made from, the nearest first. One without `parents` that is not named as
    a parent either is shown below the artifact."""
    verification: Mapping[str, float | int | str | bool | None] = field(default_factory=dict)
    """Figure → value, as `verify` gave them."""
    evaluation: Evaluation | None = None
    baseline_evaluation: Evaluation | None = None
    language: LanguageEvaluation | None = None
    """What a language model predicts of a text, held against its reference."""
    answers: Answers | None = None
    """What it answers to prompts."""
    baseline_answers: Answers | None = None
    latencies: tuple[Latency, ...] = ()
    """One a scenario, rate and device."""
    baseline_latencies: tuple[Latency, ...] = ()
    throughputs: tuple[Throughput, ...] = ()
    baseline_throughputs: tuple[Throughput, ...] = ()
    loads: tuple[LoadResult, ...] = ()
    generation: Generation | None = None
    baseline_generation: Generation | None = None
    generation_limits: GenerationLimits | None = None
    sweep: Sweep | None = None
    limits: Limits | None = None
    baseline_limits: Limits | None = None
    duets: tuple[Duet, ...] = ()
    starts: tuple[Start, ...] = ()
    baseline_starts: tuple[Start, ...] = ()
    footprint: Footprint | None = None
    baseline_footprint: Footprint | None = None
    tensors: TensorSizes | None = None
    """What fills the model file, by kind of tensor."""
    baseline_tensors: TensorSizes | None = None
    notes: tuple[str, ...] = ()
    """What was left out or chosen on the way."""

    @property
    def outcome(self) -> Outcome | None:
        """The target's verdict; None where no gate was set."""
        return overall(self.verdicts) if self.verdicts else None

    def to_json(self) -> dict[str, Any]:
        """JSON-able form; parts that were not measured are not in it."""
        whole = {
            "name": self.name,
            "verdict": self.outcome.value if self.outcome else None,
            "gates": [verdict.to_json() for verdict in self.verdicts],
            "artifact": asdict(self.artifact),
            "baseline": asdict(self.baseline) if self.baseline else None,
            "lineage": [asdict(one) | {"parents": list(one.parents)} for one in self.lineage],
            "verification": dict(self.verification),
        }
        parts = {name: _summarize(getattr(self, name)) for name in _PARTS}
        return whole | {name: value for name, value in parts.items() if value} | {"notes": list(self.notes)}


_PARTS = (
    "evaluation",
    "baseline_evaluation",
    "language",
    "answers",
    "baseline_answers",
    "latencies",
    "baseline_latencies",
    "throughputs",
    "baseline_throughputs",
    "loads",
    "generation",
    "baseline_generation",
    "generation_limits",
    "sweep",
    "limits",
    "baseline_limits",
    "duets",
    "starts",
    "baseline_starts",
    "footprint",
    "baseline_footprint",
    "tensors",
    "baseline_tensors",
)


class _Summarized(Protocol):
    def summary(self) -> dict[str, Any]: ...


def _summarize(part: _Summarized | Sequence[_Summarized] | None) -> Any:
    if part is None:
        return None
    return [one.summary() for one in part] if isinstance(part, Sequence) else part.summary()


@dataclass(frozen=True, kw_only=True)
class ReleaseReport:
    """A whole release: every target, and where and how all of it was made and measured."""

    title: str
    targets: tuple[TargetReport, ...]
    machine: Machine | None = None
    """Where it was measured, unless the measurements say otherwise themselves."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Tool → version."""
    command: str = ""
    """What reproduces this report."""
    notes: tuple[str, ...] = ()
    """What was left out or chosen on the way, of all targets."""
    steps: tuple[ModelStep, ...] = ()
    """What became of the checkpoint before the targets were made of it, in order."""

    @property
    def outcome(self) -> Outcome | None:
        """The overall verdict; None where no gate was set."""
        verdicts = self.verdicts
        return overall(verdicts) if verdicts else None

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Those of all targets, in their order."""
        return tuple(verdict for target in self.targets for verdict in target.verdicts)

    @property
    def obstacles(self) -> tuple[tuple[str, Verdict], ...]:
        """Target's name and verdict of every gate that is not met, the FAILs first."""
        found = [(target.name, verdict) for target in self.targets for verdict in target.verdicts]
        rising = sorted(found, key=lambda pair: pair[1].verdict is not Outcome.FAIL)
        return tuple(pair for pair in rising if pair[1].verdict is not Outcome.PASS)

    @property
    def headline(self) -> str:
        """The verdict in one line."""
        if self.outcome is None:
            return f"{self.title}: measured, no gates set"
        counts = {outcome: sum(one.verdict is outcome for one in self.verdicts) for outcome in Outcome}
        parts = [f"{count} {outcome.value}" for outcome, count in counts.items() if count]
        return f"{self.title}: {self.outcome.value} ({', '.join(parts)})"

    def to_json(self) -> dict[str, Any]:
        """JSON-able form; the samples stay in the evidence."""
        return {
            "schema_version": 2,
            "title": self.title,
            "verdict": self.outcome.value if self.outcome else None,
            "targets": [target.to_json() for target in self.targets],
            "machine": self.machine.to_json() if self.machine else None,
            "versions": dict(sorted(self.versions.items())),
            "command": self.command,
            "steps": [asdict(step) for step in self.steps],
            "notes": list(self.notes),
        }
