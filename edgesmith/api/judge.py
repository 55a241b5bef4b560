"""Judging what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.errors import UsageError

if TYPE_CHECKING:
    from bench.verdict import Verdict

__all__ = ["gate"]


def gate(
    artifact: Path,
    *,
    gates: Path,
    against: Path | None = None,
    evidence: Path | None = None,
    junit: Path | None = None,
    summary: Path | None = None,
) -> tuple[str, list[Verdict]]:
    """Judge an artifact by saved evidence.

    Args:
        artifact: What is to ship.
        gates: A recipe, or a YAML file with just `gates:` or the gates themselves.
        against: Baseline; the one that the evidence names if left out.
        evidence: Folder of evidence; `evidence` beside the artifact if left out.
        junit: Write the verdicts as JUnit XML.
        summary: Write the verdicts as Markdown.

    Returns:
        The overall verdict, and one verdict a limit.

    Raises:
        UsageError: there is no gate, or evidence for one is missing.
        ArtifactError: artifact or evidence was altered.
    """
    from bench.ci import write_junit, write_summary
    from bench.gate import judge, overall
    from edgesmith.artifact import open_artifact
    from edgesmith.evidence import collect_evidence, load_gates

    opened = open_artifact(artifact)
    folder = evidence or artifact.resolve().parent / "evidence"
    if evidence is not None and not evidence.is_dir():
        raise UsageError(f"{evidence}: no such folder of evidence", mend="`run`, `eval -o` and `bench -o` write them.")
    baseline = open_artifact(against) if against else None
    verdicts = judge(load_gates(gates), collect_evidence(opened, folder, baseline))
    if junit is not None:
        write_junit(junit, verdicts, suite=artifact.name)
    if summary is not None:
        write_summary(summary, verdicts)
    return overall(verdicts).value, verdicts
