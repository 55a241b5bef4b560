"""What a report says, before it has a form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from bench.verdict import Outcome, Verdict, overall
from edgesmith.artifact import Parent

if TYPE_CHECKING:
    from bench.accuracy import Evaluation
    from bench.duet import Duet
    from bench.gate import Subject
    from bench.latency import Latency
    from bench.machine import Machine
    from bench.start import Start

__all__ = ["ReportData"]


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """One artifact's release: what it is, what was measured, what was decided. What is missing is left out."""

    title: str
    artifact: Subject
    baseline: Subject | None = None
    verdicts: tuple[Verdict, ...] = ()
    lineage: tuple[Parent, ...] = ()
    """What the artifact was made from, the nearest first."""
    verification: Mapping[str, float | int | str | bool | None] = field(default_factory=dict)
    """Figure → value, as `verify` gave them."""
    evaluation: Evaluation | None = None
    baseline_evaluation: Evaluation | None = None
    latency: Latency | None = None
    baseline_latency: Latency | None = None
    duet: Duet | None = None
    start: Start | None = None
    baseline_start: Start | None = None
    machine: Machine | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    """Tool → version."""
    command: str = ""
    """What reproduces this report."""
    notes: tuple[str, ...] = ()
    """What was left out or chosen on the way."""

    @property
    def outcome(self) -> Outcome | None:
        """The overall verdict; None where no gate was set."""
        return overall(self.verdicts) if self.verdicts else None

    @property
    def headline(self) -> str:
        """The verdict in one line."""
        if self.outcome is None:
            return f"{self.title}: measured, no gates set"
        counts = {outcome: sum(one.verdict is outcome for one in self.verdicts) for outcome in Outcome}
        parts = [f"{count} {outcome.value}" for outcome, count in counts.items() if count]
        return f"{self.title}: {self.outcome.value} ({', '.join(parts)})"

    def to_json(self) -> dict[str, Any]:
        """JSON-able form; parts that were not measured are null."""
        return {
            "schema_version": 1,
            "title": self.title,
            "verdict": self.outcome.value if self.outcome else None,
            "gates": [verdict.to_json() for verdict in self.verdicts],
            "artifact": asdict(self.artifact),
            "baseline": asdict(self.baseline) if self.baseline else None,
            "lineage": [parent.model_dump() for parent in self.lineage],
            "verification": dict(self.verification),
            "evaluation": self.evaluation.summary() if self.evaluation else None,
            "baseline_evaluation": self.baseline_evaluation.summary() if self.baseline_evaluation else None,
            "latency": self.latency.summary() if self.latency else None,
            "baseline_latency": self.baseline_latency.summary() if self.baseline_latency else None,
            "comparison": self.duet.summary() if self.duet else None,
            "start": self.start.summary() if self.start else None,
            "baseline_start": self.baseline_start.summary() if self.baseline_start else None,
            "machine": self.machine.to_json() if self.machine else None,
            "versions": dict(sorted(self.versions.items())),
            "command": self.command,
            "notes": list(self.notes),
        }
